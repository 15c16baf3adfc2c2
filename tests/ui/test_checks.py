import threading
import time

import pytest

from gemma_tune import config, data
from gemma_tune.ui import checks


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch, checks_end):
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path))
    checks._reports.clear()
    checks._running.clear()


@pytest.fixture
def slow(monkeypatch):
    """A check that goes on until it is told to stop or let go."""
    let_go = threading.Event()

    def check(config, token, watch):
        while not let_go.wait(0.01):
            watch("reading", 1, 2)
        return config.data.source

    monkeypatch.setattr(data, "check", check)
    yield let_go
    let_go.set()


def wanted(**values):
    return config.parse({"data": {"source": "example:pocket-json", **values}})


def test_a_check_tells_how_far_it_is_and_ends_with_a_report(slow):
    check = checks.begin("page", wanted(), None)
    time.sleep(0.1)
    assert check.progress == ("reading", 1, 2) and not check.ended.is_set()
    slow.set()
    assert check.ended.wait(5) and check.report == "example:pocket-json" and check.error is None


def test_a_later_check_of_the_same_page_replaces_the_earlier_and_another_page_does_not(slow):
    first = checks.begin("page", wanted(), None)
    other = checks.begin("other page", wanted(), None)
    second = checks.begin("page", wanted(split_seed=1), None)
    assert first.ended.wait(5) and first.replaced and first.stopped
    assert not second.replaced and not other.replaced
    checks.stop("page")
    assert second.ended.wait(5) and second.stopped and not second.replaced
    assert not other.ended.is_set()


def test_a_report_is_kept_for_the_same_data_and_what_does_not_matter_to_it(monkeypatch):
    calls = []
    monkeypatch.setattr(data, "check", lambda config, token, watch: calls.append(config) or "report")
    for changes in ({}, {"output": {"name": "other"}}, {"method": {"r": 8}}, {"eval": {"eval_steps": 0}}):
        checks.report_for(config.parse({"data": {"source": "example:pocket-json"}, **changes}), None)
    assert len(calls) == 1 and checks.known(wanted()) == "report"
    checks.report_for(wanted(split_seed=7), None)
    assert len(calls) == 2


def test_the_latest_report_of_the_same_data_is_found_whatever_else_is_set(monkeypatch):
    reports = iter(["first", "second"])
    monkeypatch.setattr(data, "check", lambda config, token, watch: next(reports))
    for rate in (1e-4, 1e-5):
        checks.report_for(config.parse({"train": {"learning_rate": rate}}), None)
    changed = config.parse({"train": {"num_train_epochs": 9}, "method": {"type": "full"}})
    assert checks.of_data(changed) == "second"
    assert checks.of_data(wanted(split_seed=9)) is None
    assert checks.of_data(config.parse({"model": {"id": "google/gemma-3-1b-it"}})) is None


def test_a_file_that_changed_on_the_disk_is_checked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "check", lambda config, token, watch: "report")
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    known = wanted(source=str(path))
    checks.report_for(known, None)
    assert checks.known(known)
    path.write_text("{} ")
    assert not checks.known(known)
    folder = wanted(source=str(tmp_path))
    checks.report_for(folder, None)
    assert checks.known(folder)
    (tmp_path / "more.jsonl").write_text("{}")
    assert not checks.known(folder)


def test_a_bug_in_a_check_is_kept_for_whoever_waits(monkeypatch):
    def fail(config, token, watch):
        raise ZeroDivisionError

    monkeypatch.setattr(data, "check", fail)
    check = checks.begin("page", wanted(), None)
    assert check.ended.wait(5) and isinstance(check.error, ZeroDivisionError)


def test_a_check_that_was_asked_for_earlier_but_arrives_later_is_not_made():
    assert checks.is_newest("page", 1)
    assert checks.is_newest("page", 3)
    assert not checks.is_newest("page", 2)
    assert checks.is_newest("another page", 2)
    assert checks.is_newest("page", 4)
