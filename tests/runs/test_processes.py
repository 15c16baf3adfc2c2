import os
import subprocess
import sys

import psutil
import pytest

from gemma_tune.runs.processes import RUN_VARIABLE, end_processes, identity, is_alive, living, run_processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper(tmp_path):
    process = subprocess.Popen(SLEEP, env=os.environ | {RUN_VARIABLE: str(tmp_path)}, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_process_is_known_by_pid_start_time_and_boot(sleeper):
    known = identity(sleeper.pid)
    assert is_alive(known)
    assert not is_alive(known | {"created": known["created"] - 100})
    assert not is_alive(known | {"boot": "another"})
    assert not is_alive(None)
    assert not is_alive({})
    sleeper.kill()
    psutil.wait_procs([psutil.Process(sleeper.pid)], timeout=0.2)
    assert not is_alive(known)  # a zombie: nobody has waited for it yet


def test_the_processes_of_a_run_are_found_by_their_environment_only(sleeper, tmp_path):
    stranger = subprocess.Popen(SLEEP)
    try:
        assert [process.pid for process in run_processes(tmp_path)] == [sleeper.pid]
        end_processes(lambda: run_processes(tmp_path), term_seconds=5)
        assert run_processes(tmp_path) == []
        assert living([psutil.Process(stranger.pid)])
    finally:
        stranger.kill()
        stranger.wait()
