import os
import shutil
import statistics
import subprocess
import sys
import threading
import time

import pytest
from live_runs import named, supervisor_of, wait_for, wait_for_step, wait_over

from gemma_tune.errors import RunError
from gemma_tune.runs import engine
from gemma_tune.runs.events import EventWriter
from gemma_tune.runs.folder import create_run
from gemma_tune.runs.follower import follower, resume_following

SLOW = ("--steps", "2000", "--step-seconds", "0.03")
NEW_APP = """
import sys, time
from gemma_tune.runs.follower import follower, resume_following
begin = time.perf_counter()
resume_following()
state, version = follower(sys.argv[1]).snapshot()
first_log, next_log, lines = follower(sys.argv[1]).log_lines()
print(state.status, state.step > 0, bool(lines), time.perf_counter() - begin)
"""


def test_a_follower_reads_on_though_nobody_asks(begin):
    folder = begin(*SLOW)
    following = follower(folder.id)
    following.snapshot()
    wait_for_step(folder, 3)
    time.sleep(0.5)
    assert following._state.step >= 3
    engine.stop(folder.id)
    wait_for(lambda: following._state.is_over)
    assert [text for text, _ in following.log_lines(None, 2)[2]][-1].startswith("step")


def test_events_reach_a_snapshot_within_half_a_second(home, begin):
    folder = begin(*SLOW)
    wait_for_step(folder, 1)
    following, delays = follower(folder.id), []
    version = -1
    for _ in range(10):
        state, version = wait_for(lambda v=version: (s := following.snapshot())[1] != v and s)
        delays.append(time.time() - state.last_time)
    assert statistics.median(delays) < 0.5


def test_there_is_one_follower_per_run_and_none_without_run(begin):
    folder = begin("--steps", "1")
    assert follower(folder.id) is follower(folder.id)
    with pytest.raises(RunError):
        follower("../../etc")


def test_a_run_that_is_over_is_read_without_a_thread_and_seen_again_when_resumed(begin, fake_worker):
    folder = begin("--steps", "1", "--exit", "1")
    wait_over(folder)
    following = follower(folder.id)
    state, version = following.snapshot()
    assert state.outcome == "failed"
    assert following.snapshot() == (state, version)
    assert following._thread is None
    fake_worker(*SLOW)
    engine.resume(folder.id)
    assert following.snapshot()[0].is_live
    assert following._thread.is_alive()


def test_a_new_app_sees_a_live_run_within_two_seconds(begin):
    folder = begin(*SLOW)
    wait_for_step(folder)
    shown = subprocess.run(
        [sys.executable, "-c", NEW_APP, folder.id], capture_output=True, text=True, check=True
    )
    status, trains, logs, seconds = shown.stdout.split()
    assert (status, trains, logs) == ("training", "True", "True")
    assert float(seconds) < 2


def test_a_new_app_adopts_a_run_whose_supervisor_was_killed(begin):
    folder = begin("--steps", "60", "--step-seconds", "0.03")
    wait_for_step(folder)
    supervisor_of(folder).kill()
    resume_following().join()
    assert wait_over(folder).outcome == "finished"


def test_a_damaged_or_replaced_event_file_does_not_end_the_thread(home, monkeypatch):
    monkeypatch.setattr(engine, "reconcile", lambda run_id: None)
    (home / "runs").mkdir(parents=True)
    folder = create_run(named())
    following = follower(folder.id)
    following.snapshot()
    with folder.events_path.open("ab") as file:
        file.write(b'\n{"kind": "metr\xff\n[[[\n\n{"kind":"metrics","step":3,"loss":1.0}\n{"kind":"to')
    wait_for(lambda: following.snapshot()[0].step == 3)
    assert following.snapshot()[0].unreadable == 2
    folder.events_path.write_bytes(b'{"kind":"metrics","step":1,"loss":2.0}\n')  # shorter than before
    wait_for(lambda: following.snapshot()[0].step == 1)
    folder.events_path.unlink()
    folder.log_path.mkdir()  # cannot be read
    wait_for(lambda: following.trouble)
    folder.log_path.rmdir()
    with EventWriter(folder.path, f"app-{os.getpid()}") as writer:
        writer.write("metrics", step=7, loss=1.0)
    wait_for(lambda: following.snapshot()[0].step == 7)
    thread = following._thread
    shutil.rmtree(folder.path)
    wait_for(lambda: not thread.is_alive())


def test_snapshots_from_many_threads_are_whole(begin):
    folder = begin("--steps", "100", "--step-seconds", "0.005")
    following, wrong = follower(folder.id), []

    def look():
        while not (state := following.snapshot()[0]).is_over:
            if [point[0] for point in state.train_points] != list(range(1, state.step + 1)):
                wrong.append(state)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert following.snapshot()[0].outcome == "finished"
