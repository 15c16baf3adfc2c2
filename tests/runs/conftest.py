import json
import os
import sys
from pathlib import Path

import pytest
from live_runs import FAKE_WORKER, everything_of, named

from gemma_tune.runs import engine
from gemma_tune.runs.folder import RunFolder, list_runs
from gemma_tune.runs.launch import WORKER_COMMAND_VARIABLE
from gemma_tune.runs.processes import end_processes

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def children_find_the_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home; whatever still runs in it afterwards is ended."""
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GEMMA_TUNE_TERM_SECONDS", "0.5")
    monkeypatch.setenv("GEMMA_TUNE_KEEP_SECONDS", "5")
    monkeypatch.setattr(engine, "_free_bytes", lambda path: 10**12)
    yield tmp_path / "home"
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path / "home"))
    for folder in list_runs():
        end_processes(lambda folder=folder: everything_of(folder), term_seconds=0)


@pytest.fixture
def fake_worker(monkeypatch):
    """Makes the supervisor start the fake worker with these arguments."""

    def use(*arguments):
        monkeypatch.setenv(
            WORKER_COMMAND_VARIABLE, json.dumps([sys.executable, str(FAKE_WORKER), *arguments])
        )

    use()
    return use


@pytest.fixture
def begin(home, fake_worker):
    """Starts a run with a fake worker; the run's folder."""

    def begin(*arguments, name="a run"):
        fake_worker(*arguments)
        return RunFolder(home / "runs" / engine.start(named(name)))

    return begin
