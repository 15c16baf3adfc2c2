import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from gemma_tune.config import parse
from gemma_tune.runs import engine
from gemma_tune.runs.folder import RunFolder, list_runs, read_json
from gemma_tune.runs.launch import WORKER_COMMAND_VARIABLE
from gemma_tune.runs.processes import end_processes, is_alive, run_processes

REPOSITORY = Path(__file__).parents[2]
FAKE_WORKER = Path(__file__).parent / "fake_worker.py"


@pytest.fixture(autouse=True)
def children_find_the_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home; whatever still runs in it afterwards is ended."""
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GEMMA_TUNE_TERM_SECONDS", "1")
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


def named(name="a run"):
    return parse({"output": {"name": name}})


def supervisor_of(folder):
    return psutil.Process(read_json(folder.process_path)["supervisor"]["pid"])


def everything_of(folder):
    """Processes of the run and its supervisor."""
    known = (read_json(folder.process_path) or {}).get("supervisor")
    return run_processes(folder.path) + ([psutil.Process(known["pid"])] if is_alive(known) else [])


def wait_for(condition, seconds=15.0):
    """The first true value of `condition`, asked every 20 ms."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def wait_over(folder, seconds=15.0):
    """The state once the run is over and nothing of it is left."""
    wait_for(lambda: engine.read_state(folder.id).is_over, seconds)
    wait_for(lambda: not everything_of(folder), 5)
    return engine.read_state(folder.id)


def wait_for_step(folder, step=2):
    return wait_for(lambda: engine.read_state(folder.id).step >= step)
