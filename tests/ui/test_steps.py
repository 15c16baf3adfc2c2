import pytest

from gemma_tune.config import RunConfig, parse
from gemma_tune.ui import method_views, steps
from gemma_tune.ui.form import SetUp


def named(tab: SetUp, updates: dict) -> dict:
    """Updates by the name of the part or setting."""
    names = {id(part): name for name, part in (tab.parts | tab.form.widgets | tab.groups).items()}
    return {names.get(id(part), "saved"): update for part, update in updates.items()}


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("example:pocket-json", "example"),
        ("hub:me/set", "hub"),
        ("tfds:set/en", "tfds"),
        ("", "upload"),
        ("/data/rows", "folder"),
    ],
)
def test_a_source_is_shown_under_the_way_it_was_chosen(source, kind):
    assert steps._kind_of(source) == kind


def test_an_uploaded_file_is_shown_under_uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path))
    assert steps._kind_of(str(tmp_path / "uploads" / "a.json")) == "upload"


def test_a_configuration_is_shown_whole_with_the_widgets_that_choose_its_settings(tab):
    config = parse(
        {
            "model": {"id": "google/gemma-3-4b-pt"},
            "data": {"source": "tfds:set", "mix": [{"source": "hub:me/set"}]},
            "objective": {"type": "dpo", "loss_type": "robust"},
            "method": {"type": "qlora"},
        }
    )
    filled = steps.fill(tab, config)
    assert set(filled) <= set(steps.helper_outputs(tab))
    shown = named(tab, filled)
    assert (shown["family"]["value"], shown["size"]["value"], shown["variant"]["value"]) == (
        "Gemma 3",
        "4B",
        "base",
    )
    assert shown["remote_id"] == "set" and "me/set" in shown["mix"]
    assert shown["objective.label_smoothing"] == {"__type__": "update", "visible": True, "value": 0.1}
    assert shown["method.quantization"]["visible"] and not shown["train.packing"]["visible"]


def test_a_first_visit_begins_with_what_suits_the_first_model(tab):
    shown = named(tab, steps.restore(tab, None))
    assert shown["train.learning_rate"]["value"] == 3e-3 and shown["family"]["value"] == "Pocket Gemma"


def test_what_this_browser_remembers_is_shown_and_what_it_does_not_know_is_the_default(tab):
    shown = named(tab, steps.restore(tab, {"model.id": "me/own", "objective.type": "kto", "train.seed": 7}))
    assert shown["family"]["value"] == "own" and shown["own_model"] == "me/own"
    assert shown["train.seed"]["value"] == 7 and shown["objective.beta"]["value"] == 0.1
    assert (
        shown["objective.desirable_weight"]["visible"] and not shown["objective.num_generations"]["visible"]
    )


def test_a_change_updates_memory_advice_and_forecast_at_once(tab, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path))
    raw = (*(update["value"] for update in tab.form.write(RunConfig())), "")
    shown = named(tab, steps._follow(tab, *raw))
    assert shown["saved"]["train.seed"] == 42 and "Will it fit?" in shown["forecast"]
    assert "yours: 2e-4" in shown["advice"] and not shown["hosts"]["visible"]
    several = [
        update["value"]
        for update in tab.form.write(parse({"devices": {"num_machines": 2, "main_process_ip": "10.0.0.1"}}))
    ]
    hosts = named(tab, steps._follow(tab, *several, ""))["hosts"]
    assert hosts["visible"] and "devices.machine_rank=1" in hosts["value"]


def test_a_wrong_number_is_said_in_place_of_a_forecast(tab):
    values = tab.form.values(tuple(update["value"] for update in tab.form.write(RunConfig())))
    raw = tuple((values | {"train.learning_rate": 50}).values())
    assert "at most 0.1" in named(tab, steps._follow(tab, *raw, ""))["forecast"]


def test_only_one_listener_waits_for_the_last_change_of_a_setting():
    """Of several, Gradio calls each anew when another ends, and never comes to rest."""
    from gemma_tune.ui import build

    waiting = [fn for fn in build().fns.values() if fn.trigger_mode == "always_last"]
    targets = [target for fn in waiting for target in fn.targets]
    assert len(targets) == len(set(targets))


def test_every_setting_that_is_advised_exists(tab):
    assert set(method_views.advisable()) <= set(tab.form.widgets)
