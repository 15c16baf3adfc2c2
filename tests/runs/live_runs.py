"""Starting and watching real runs in the tests."""

import time
from pathlib import Path

import psutil

from gemma_tune.config import parse
from gemma_tune.runs import engine
from gemma_tune.runs.folder import read_json
from gemma_tune.runs.processes import descendants, is_alive, run_processes

FAKE_WORKER = Path(__file__).parent / "fake_worker.py"


def named(name="a run"):
    return parse({"output": {"name": name}})


def supervisor_of(folder):
    return psutil.Process(read_json(folder.process_path)["supervisor"]["pid"])


def everything_of(folder):
    """Processes of the run and its supervisor."""
    known = (read_json(folder.process_path) or {}).get("supervisor")
    supervisor = descendants(known["pid"])[:1] if is_alive(known) else []  # it may end between the two calls
    return run_processes(folder.path) + supervisor


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
