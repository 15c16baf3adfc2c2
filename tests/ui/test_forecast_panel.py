"""The forecast on the page: bar and figures, ways to make it fit, and two measured steps."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from gemma_tune import outlook
from gemma_tune.config import parse
from gemma_tune.errors import RunError
from gemma_tune.fit import make_it_fit
from gemma_tune.forecast import Device, Lengths, forecast
from gemma_tune.ui import fitting, forecast_panel, forecast_views, measuring

CPU = Device("cpu", "this CPU", 1, 16 << 30, 12 << 30, cores=2, bfloat16=False)
ROWS = Lengths(1000, 300_000, 900, 0.5, tuple(range(900, 400, -1)))
FULL_4B = parse({"model": {"id": "google/gemma-3-4b-it"}, "method": {"type": "full"}})
SHAPE_4B = outlook.geometry_of("google/gemma-3-4b-it")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path))
    measuring._measured.clear()


def test_the_segments_are_in_proportion_and_a_line_marks_what_is_free():
    found = forecast(FULL_4B, SHAPE_4B, CPU, ROWS)
    page = forecast_views.panel(found, "on this CPU")
    widths = [float(width) for width in re.findall(r'gt-part gt-p-\w+" style="width:([\d.]+)%', page)]
    assert sum(widths) == pytest.approx(100, abs=0.5)
    free = float(re.search(r'gt-free" style="left:([\d.]+)%', page).group(1))
    assert free == pytest.approx(100 * found.available_bytes / found.peak_bytes, abs=0.1)
    assert "Does not fit" in page and "Optimizer" in page and f"{found.steps:,}" in page


def test_what_fits_leaves_the_rest_of_the_bar_empty():
    config = parse({"model": {"id": "pocket"}})
    found = forecast(config, outlook.geometry_of("pocket"), CPU, ROWS)
    page = forecast_views.panel(found, "on this CPU", measured=True)
    widths = [float(width) for width in re.findall(r'gt-part gt-p-\w+" style="width:([\d.]+)%', page)]
    assert sum(widths) == pytest.approx(100 * found.peak_bytes / found.available_bytes, abs=0.5)
    assert "gt-free" not in page and "Fits" in page and "Measured on two real steps" in page


def test_a_duration_is_as_coarse_as_an_estimate():
    found = forecast(FULL_4B, SHAPE_4B, CPU, ROWS)
    seconds = [forecast_views.about(one) for one in (None, 0.2, 40, 100, 7_200, 200_000)]
    assert seconds == ["unknown", "1 s", "40 s", "1.7 min", "2 h", "2.3 days"]
    low, high = (
        float(one) for one in re.match(r"([\d.]+) to ([\d.]+) ", forecast_views.span(found)).groups()
    )
    assert low < high


def test_each_way_to_make_it_fit_carries_its_changes_and_what_it_costs(tab):
    found = make_it_fit(FULL_4B, SHAPE_4B, CPU, ROWS)
    page = forecast_views.choices(found, fits=False)
    assert "Make it fit" in page and page.count("Apply") == len(found) >= 1
    assert found[0].costs in page
    told = json.loads(re.search(r'data-changes="([^"]*)"', page).group(1).replace("&quot;", '"'))
    assert told == found[0].changes
    raw = tuple(update["value"] for update in tab.form.write(FULL_4B))
    updates = forecast_panel._apply(tab, json.dumps(told | {"no.setting": 1}), raw)
    for name, value in told.items():
        assert updates[tab.form.widgets[name]]["value"] == value
    assert updates[tab.form.widgets["method.r"]]["visible"]  # the way is an adapter, whose rank now applies


def test_where_nothing_makes_it_fit_that_is_said_and_where_it_fits_the_ways_are_folded():
    assert "Nothing here makes it fit" in forecast_views.choices([], fits=False)
    assert forecast_views.choices([], fits=True) == ""
    found = make_it_fit(FULL_4B, SHAPE_4B, CPU, ROWS)
    assert forecast_views.choices(found, fits=True).startswith("<details")


def test_a_model_whose_shape_is_not_known_yet_is_not_guessed():
    assert "is known once" in forecast_panel.shown(parse({"model": {"id": "me/unknown"}}))[0]


def test_the_fit_at_a_glance_is_the_forecast_of_the_usual_settings():
    by_method = {one.method_type: one for one in fitting.of_machine("google/gemma-3-27b-it")}
    assert by_method["full"].needed_bytes > by_method["lora"].needed_bytes > by_method["qlora"].needed_bytes
    assert not by_method["full"].fits and all(one.fits for one in fitting.of_machine("pocket"))


# ---- measuring -----------------------------------------------------------------------------------------------------
@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Replaces the worker by a script."""

    def stand_in(script: str) -> None:
        path = tmp_path / "worker.py"
        path.write_text(
            "import json, sys, time\ntell = lambda **line: print(json.dumps(line), flush=True)\n" + script
        )
        monkeypatch.setattr(measuring, "command", lambda config: [sys.executable, str(path), str(config)])

    return stand_in


def test_what_was_measured_stands_in_place_of_the_estimate_for_these_settings_only(worker):
    worker(
        'tell(kind="phase", name="loading")\ntell(kind="measured", peak_bytes=2_000_000_000, seconds_per_step=3.0)'
    )
    config = parse({"train": {"max_steps": 10}})
    assert list(measuring.measure(config, None)) == ["starting", "loading"]
    found = fitting.forecast_of(config)
    assert found.peak_bytes == pytest.approx(2e9, rel=1e-6) and found.seconds == 30.0
    assert "Measured" in forecast_panel.card(config)
    renamed = parse({"train": {"max_steps": 10}, "output": {"name": "other"}})
    assert measuring.known(renamed) and not measuring.known(parse({"train": {"max_steps": 11}}))


def test_it_is_the_worker_that_is_started():
    assert measuring.command(Path("c.yaml"))[1:] == ["-m", "gemma_tune.workers.measure", "c.yaml"]
    assert find_spec("gemma_tune.workers.measure")


def test_what_stops_the_measuring_is_said(worker, tab):
    worker('sys.stderr.write("model.id: its weights are not on this disk.\\n")\nsys.exit(3)')
    raw = (*(update["value"] for update in tab.form.write(parse({}))), "")
    *_, last = forecast_panel._measure(tab, *raw)
    assert "not on this disk" in last[tab.parts["measuring"]] and last[tab.parts["measure"]]["interactive"]
    worker("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunError, match="memory was not enough"):
        list(measuring.measure(parse({}), None))


def test_measuring_can_be_stopped_and_is_done_once_at_a_time(worker):
    worker('tell(kind="phase", name="loading")\ntime.sleep(60)')
    first = measuring.measure(parse({}), None)
    assert [next(first), next(first)] == ["starting", "loading"]
    with pytest.raises(RunError, match="already"):
        next(measuring.measure(parse({}), None))
    measuring.stop()
    with pytest.raises(RunError, match="stopped"):
        next(first)


def test_leaving_the_page_ends_the_process(worker):
    worker('tell(kind="phase", name="loading")\ntime.sleep(60)')
    leaving = measuring.measure(parse({}), None)
    next(leaving)
    process = measuring._one._process
    leaving.close()
    assert process.poll() is not None


def test_a_model_shared_out_to_several_processes_is_not_measured_on_one():
    config = parse({"devices": {"num_processes": 2, "distributed_type": "fsdp"}})
    with pytest.raises(RunError, match="shared out"):
        next(measuring.measure(config, None))
