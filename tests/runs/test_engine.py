import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from live_runs import (
    FAKE_WORKER,
    everything_of,
    named,
    supervisor_of,
    wait_for,
    wait_for_step,
    wait_over,
)

from gemma_tune.config import RunConfig, parse
from gemma_tune.errors import ConfigError, RunError
from gemma_tune.runs import engine
from gemma_tune.runs.checkpoints import complete_checkpoints
from gemma_tune.runs.events import read_events
from gemma_tune.runs.folder import RunFolder, create_run, list_runs, read_json, write_json
from gemma_tune.runs.launch import worker_command
from gemma_tune.runs.processes import living, run_processes

START = "from gemma_tune.config import parse; from gemma_tune.runs import engine; engine._free_bytes = lambda path: 10**12; "
SLOW = ("--steps", "2000", "--step-seconds", "0.03")


def kinds(folder):
    return [event["kind"] for event in read_events(folder.events_path)[0]]


def starter(code=""):
    line = START + "print(engine.start(parse({'output': {'name': 'a run'}})), flush=True)" + code
    return subprocess.Popen([sys.executable, "-c", line], stdout=subprocess.PIPE, text=True)


def kill(*processes):
    for process in processes:
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not living(processes))


# ---------------------------------------------------------------- start


def test_a_run_goes_from_start_to_finish(begin):
    folder = begin("--steps", "4")
    state = wait_over(folder)
    assert (state.outcome, state.exit_code, state.step, state.progress) == ("finished", 0, 4, 1.0)
    assert kinds(folder)[:3] == ["created", "queued", "started"]
    assert kinds(folder)[-1] == "ended"
    assert state.hardware["memory_total_bytes"] > 0
    assert [step for step, _ in complete_checkpoints(folder.path)] == [2, 4]
    assert folder.config() == named()
    assert folder.provenance()["config_digest"] == named().digest()
    assert not folder.reserve_path.exists()


def test_starting_twice_at_once_makes_one_run(home, fake_worker):
    fake_worker(*SLOW)
    ids = []
    threads = [threading.Thread(target=lambda: ids.append(engine.start(named()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == len(list_runs()) == 1


def test_starting_from_several_processes_at_once_makes_one_run(home, fake_worker):
    fake_worker(*SLOW)
    starters = [starter() for _ in range(3)]
    assert len({process.communicate()[0] for process in starters}) == len(list_runs()) == 1


def test_the_same_configuration_starts_again_once_the_first_is_over(begin):
    first = begin("--steps", "1")
    wait_over(first)
    assert begin("--steps", "1").id != first.id
    assert len(list_runs()) == 2


def test_another_configuration_is_another_run_that_waits_for_the_device(begin):
    first = begin(*SLOW)
    second = begin("--steps", "1", name="another")
    third = begin("--steps", "1", name="a third")
    state = wait_for(lambda: (s := engine.read_state(second.id)).behind and s)
    assert (state.status, state.behind) == ("queued", first.id)
    assert wait_for(lambda: engine.read_state(third.id).behind) == second.id
    engine.stop(first.id, now=True)
    assert wait_over(second).started_time < wait_over(third).started_time
    assert wait_over(first).outcome == "stopped"


@pytest.mark.parametrize("name", ["../../x", "x" * 300, "🙂🙂", "", "a/b", "-x", "a\x00b"])
def test_a_run_name_that_could_do_harm_is_refused_with_its_place(home, name):
    config = RunConfig.model_construct(
        **{**dict(RunConfig()), "output": RunConfig().output.model_copy(update={"name": name})}
    )
    for attempt in (lambda: parse({"output": {"name": name}}), lambda: engine.start(config)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert caught.value.faults[0].where == "output.name"
        assert caught.value.faults[0].way_out
        assert len(str(caught.value)) < 400
    assert list_runs() == []


def test_a_home_that_cannot_be_written_is_said_with_a_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file" / "home", "/proc/gemma"):
        monkeypatch.setenv("GEMMA_TUNE_HOME", str(home))
        with pytest.raises(RunError, match="GEMMA_TUNE_HOME"):
            engine.start(named())


@contextmanager
def without_write_permission(path):
    """For root, who may write everywhere, a read-only mount."""
    if os.geteuid() != 0:
        path.chmod(0o500)
        try:
            yield
        finally:
            path.chmod(0o700)
        return
    if subprocess.run(["mount", "--bind", path, path], capture_output=True).returncode:
        pytest.skip("root cannot be refused here")
    subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_run_folder_without_write_permission_is_said_with_a_way_out(begin):
    over, live = begin("--steps", "1", "--exit", "1"), begin(*SLOW, name="another")
    wait_over(over)
    wait_for_step(live)
    for folder, action in ((over, engine.resume), (live, engine.stop), (over, engine.delete_run)):
        with without_write_permission(folder.path), pytest.raises(RunError, match="write permission"):
            action(folder.id)
    assert engine.read_state(over.id).outcome == "failed"
    assert engine.read_state(live.id).status == "training"


def test_a_nearly_full_disk_is_refused_before_anything_is_made(home, monkeypatch):
    monkeypatch.setattr(engine, "_free_bytes", lambda path: 300_000_000)
    with pytest.raises(RunError, match=r"0\.3 GB free"):
        engine.start(named())
    assert list_runs() == []


def test_full_fine_tuning_needs_room_for_its_checkpoints(home):
    config = parse({"model": {"id": "google/gemma-3-1b-it"}, "method": {"type": "full"}})
    assert 30e9 < engine.needed_bytes(config) < 50e9
    with pytest.raises(RunError, match="GB of disk"):
        engine.check_room(config, free_bytes=lambda path: 20_000_000_000)


def test_large_adapters_need_room_too_and_small_ones_a_little(home):
    large = parse({"model": {"id": "google/gemma-3-27b-it"}, "method": {"r": 256}})
    assert engine.needed_bytes(large) > 20e9
    assert engine.needed_bytes(parse({})) == engine.MINIMUM_FREE_BYTES


def test_a_supervisor_that_cannot_start_leaves_a_failed_run_and_a_message(home, monkeypatch):
    monkeypatch.setattr(
        engine, "supervisor_command", lambda path, adopt: [sys.executable, "-c", "raise SystemExit('no')"]
    )
    with pytest.raises(RunError, match="did not start"):
        engine.start(named())
    state = engine.read_state(list_runs()[0].id)
    assert (state.outcome, state.cause, state.log_tail) == ("failed", "bug", ("no",))


def test_a_worker_that_cannot_be_started_leaves_a_failed_run(home, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_WORKER_COMMAND", json.dumps(["/nowhere/python"]))
    state = wait_over(RunFolder(home / "runs" / engine.start(named())))
    assert (state.outcome, state.cause) == ("failed", "bug")
    assert "/nowhere/python" in state.message


def test_a_worker_that_ends_at_once_without_a_model_is_a_failed_run(home, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_WORKER_COMMAND", json.dumps(["/bin/true"]))
    state = wait_over(RunFolder(home / "runs" / engine.start(named())))
    assert (state.outcome, state.cause, state.exit_code) == ("failed", "bug", 0)


def test_the_token_reaches_the_worker_and_no_file_or_command_line(home, monkeypatch):
    canary = "hf_canary0123456789"
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code = "import os, time; print(len(os.environ['HF_TOKEN'])); time.sleep(60)"
    monkeypatch.setenv("GEMMA_TUNE_WORKER_COMMAND", json.dumps([sys.executable, "-c", code]))
    folder = RunFolder(home / "runs" / engine.start(named(), canary))
    wait_for(lambda: folder.log_path.exists() and folder.log_path.read_text() == f"{len(canary)}\n")
    for process in everything_of(folder):
        assert canary not in " ".join(process.cmdline())
    for path in home.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes()


# ---------------------------------------------------------------- stop


def test_stop_and_keep_finishes_the_step_and_saves(begin):
    folder = begin(*SLOW)
    wait_for_step(folder)
    engine.stop(folder.id)
    state = wait_over(folder)
    assert (state.outcome, state.stop_mode, state.trained_step) == ("stopped", "keep", state.step)
    assert complete_checkpoints(folder.path)[-1][0] == state.step
    assert state.saved
    engine.stop(folder.id, now=True)  # over: nothing happens
    assert engine.read_state(folder.id) == state


def test_stop_now_ends_a_deaf_worker_with_all_its_grandchildren(begin):
    folder = begin(*SLOW, "--deaf", "--grandchildren")
    wait_for_step(folder)
    assert len(run_processes(folder.path)) == 3
    engine.stop(folder.id, now=True)
    state = wait_over(folder)
    assert (state.outcome, state.exit_code, state.saved) == ("stopped", -9, None)
    assert everything_of(folder) == []


def test_stop_now_overrides_a_keep_that_takes_too_long(begin):
    folder = begin(*SLOW, "--deaf")
    wait_for_step(folder)
    engine.stop(folder.id)
    wait_for(lambda: engine.read_state(folder.id).status == "stopping")
    engine.stop(folder.id, now=True)
    engine.stop(folder.id)  # is not taken back
    state = wait_over(folder)
    assert (state.outcome, state.stop_mode) == ("stopped", "now")
    assert read_json(folder.stop_path) == {"mode": "now"}


def test_a_keep_that_is_not_obeyed_in_time_ends_the_worker(begin, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_KEEP_SECONDS", "0.3")
    folder = begin(*SLOW, "--deaf")
    wait_for_step(folder)
    engine.stop(folder.id)
    state = wait_over(folder)
    assert state.outcome == "stopped"
    assert "in time" in state.message


@pytest.mark.parametrize("now", [False, True])
def test_a_stop_before_the_first_step_ends_the_run_at_once(begin, now):
    folder = begin("--load-seconds", "60")
    wait_for(lambda: engine.read_state(folder.id).phase == "loading")
    begun = time.monotonic()
    engine.stop(folder.id, now=now)
    state = wait_over(folder)
    assert time.monotonic() - begun < 4
    assert (state.outcome, state.step) == ("stopped", 0)
    assert "before the first step" in state.message


@pytest.mark.parametrize("now", [False, True])
def test_a_stop_while_queued_ends_the_run_without_a_worker(begin, now):
    first, second = begin(*SLOW), begin(name="another")
    engine.stop(second.id, now=now)
    state = wait_over(second)
    assert (state.outcome, state.started_time) == ("stopped", None)
    assert "started" not in kinds(second)
    assert engine.read_state(first.id).is_live
    assert list((first.home / "queue").iterdir()) == []


def test_a_process_that_outlives_its_worker_is_ended_with_the_run(begin):
    folder = begin("--steps", "2", "--grandchildren")
    assert wait_over(folder).outcome == "finished"


# ---------------------------------------------------------------- death and adoption


def test_the_run_goes_on_when_the_app_is_killed(home, fake_worker):
    fake_worker("--steps", "60", "--step-seconds", "0.02")
    app = starter("; import time; time.sleep(60)")
    folder = RunFolder(home / "runs" / app.stdout.readline().strip())
    wait_for_step(folder)
    app.kill()
    app.wait()
    assert wait_over(folder).outcome == "finished"
    assert engine.read_state(folder.id).attempt == 1


def test_a_killed_supervisor_is_replaced_and_the_end_is_true(begin):
    folder = begin("--steps", "40", "--step-seconds", "0.05")
    wait_for_step(folder)
    kill(supervisor_of(folder))
    wait_for(lambda: engine.reconcile(folder.id).is_live and "adopted" in kinds(folder))
    state = wait_over(folder)
    assert (state.outcome, state.exit_code, state.attempt, state.step) == ("finished", None, 1, 40)


SLOW_TO_SAY_STARTED = """
import sys, time
from gemma_tune.runs import supervisor

say = supervisor.Supervisor.say
supervisor.Supervisor.say = lambda self, kind, **fields: (
    time.sleep(kind == "started") or say(self, kind, **fields)
)
supervisor.main(sys.argv[1:])
"""


def test_a_start_is_written_before_the_worker_writes_however_slow_the_disk(begin, monkeypatch):
    command = [sys.executable, "-c", SLOW_TO_SAY_STARTED]
    monkeypatch.setattr(engine, "supervisor_command", lambda path, adopt: [*command, str(path)])
    folder = begin("--steps", "2")
    assert wait_over(folder).attempt == 1
    writers = [event["by"].partition("-")[0] for event in read_events(folder.events_path)[0]]
    assert kinds(folder).index("started") < writers.index("worker")


def test_an_adopted_run_can_be_stopped_and_keeps_the_device(begin):
    folder = begin(*SLOW, "--deaf", "--grandchildren")
    wait_for_step(folder)
    kill(supervisor_of(folder))
    second = begin("--steps", "1", name="another")
    assert wait_for(lambda: engine.read_state(second.id).behind) == folder.id
    engine.stop(folder.id, now=True)
    assert wait_over(folder).outcome == "stopped"
    assert wait_over(second).outcome == "finished"


def test_many_reconcilers_make_one_supervisor(begin):
    folder = begin(*SLOW)
    wait_for_step(folder)
    kill(supervisor_of(folder))
    threads = [threading.Thread(target=engine.reconcile, args=(folder.id,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds(folder).count("adopted") == 1


def test_a_killed_worker_is_a_failed_run_with_cause_and_last_lines(begin):
    folder = begin(*SLOW)
    wait_for_step(folder)
    kill(*run_processes(folder.path))
    state = wait_over(folder)
    assert (state.outcome, state.cause, state.exit_code) == ("failed", "killed", -9)
    assert "SIGKILL" in state.message
    assert state.log_tail[-1].startswith("step ")
    assert state.can_resume


def test_a_killed_worker_and_supervisor_is_a_lost_run_that_resumes_from_the_last_whole_checkpoint(
    begin, fake_worker
):
    folder = begin(*SLOW)
    wait_for_step(folder, 5)
    kill(supervisor_of(folder), *run_processes(folder.path))
    whole = complete_checkpoints(folder.path)[-1][0]
    half = folder.checkpoints_dir / "checkpoint-999"
    half.mkdir()
    state = engine.reconcile(folder.id)
    assert (state.outcome, state.way_out) == ("lost", f"Resume it: it goes on after step {whole}.")
    fake_worker("--steps", str(whole + 3))
    assert engine.resume(folder.id) == folder.id
    state = wait_over(folder)
    assert (state.outcome, state.attempt, state.resume_step, state.step) == ("finished", 2, whole, whole + 3)
    assert [point[0] for point in state.train_points] == list(range(1, whole + 4))
    assert not half.exists()


def test_a_run_is_lost_after_a_reboot_though_its_pids_live_again(begin):
    folder = begin(*SLOW)
    wait_for_step(folder)
    kill(supervisor_of(folder), *run_processes(folder.path))
    record = read_json(folder.process_path)
    record["supervisor"] |= {"pid": os.getpid()}  # another process has the pid now
    write_json(folder.process_path, record)
    assert engine.reconcile(folder.id).outcome == "lost"


def test_a_run_that_was_saved_before_everything_died_is_finished(begin):
    folder = begin("--steps", "2")
    wait_over(folder)
    lines = [line for line in folder.events_path.read_bytes().split(b"\n") if line and b'"ended"' not in line]
    folder.events_path.write_bytes(b"\n".join(lines) + b"\n")
    assert engine.reconcile(folder.id).outcome == "finished"


def test_a_run_that_was_made_but_never_started_is_lost(home):
    (home / "runs").mkdir(parents=True)
    assert engine.reconcile(create_run(named()).id).outcome == "lost"


def test_a_run_whose_supervisor_dies_while_it_waits_is_lost_and_waits_again_when_resumed(begin):
    first, second = begin(*SLOW), begin("--steps", "1", name="another")
    wait_for(lambda: engine.read_state(second.id).behind)
    kill(supervisor_of(second))
    assert engine.reconcile(second.id).outcome == "lost"
    engine.resume(second.id)
    assert wait_for(lambda: engine.read_state(second.id).behind) == first.id
    assert len(list((first.home / "queue").glob("[0-9]*"))) == 1  # the ticket of the dead one is gone
    engine.stop(first.id, now=True)
    assert wait_over(second).outcome == "finished"


def test_a_lost_twin_does_not_hinder_a_new_start(begin):
    folder = begin(*SLOW)
    wait_for_step(folder)
    kill(supervisor_of(folder), *run_processes(folder.path))
    assert begin("--steps", "1").id != folder.id


# ---------------------------------------------------------------- resume, delete


def test_resume_without_a_checkpoint_begins_from_the_start_and_says_so(begin, fake_worker):
    folder = begin("--steps", "1", "--exit", "1")
    assert wait_over(folder).outcome == "failed"
    fake_worker("--steps", "3")
    ids = []
    threads = [threading.Thread(target=lambda: ids.append(engine.resume(folder.id))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = wait_over(folder)
    assert (state.outcome, state.attempt, state.resume_step) == ("finished", 2, 0)
    assert any("from the start" in warning for warning in state.warnings)
    assert set(ids) == {folder.id}


def test_a_finished_run_is_not_resumed(begin):
    folder = begin("--steps", "1")
    wait_over(folder)
    with pytest.raises(RunError, match="finished"):
        engine.resume(folder.id)


def test_a_live_run_is_not_deleted_and_one_that_is_over_is(begin):
    folder = begin(*SLOW)
    with pytest.raises(RunError, match="live"):
        engine.delete_run(folder.id)
    engine.stop(folder.id, now=True)
    wait_over(folder)
    engine.delete_run(folder.id)
    assert not folder.path.exists()
    with pytest.raises(RunError, match="no such run"):
        engine.delete_run(folder.id)


@pytest.mark.parametrize("name", ["", "..", "../..", "/etc", "*", "\x00"])
def test_nothing_outside_the_runs_is_deleted(begin, name):
    wait_over(begin("--steps", "1"))
    with pytest.raises(RunError):
        engine.delete_run(name)


def test_a_link_to_elsewhere_is_not_deleted(begin, tmp_path):
    folder = begin("--steps", "1")
    wait_over(folder)
    folder.path.rename(tmp_path / "precious")
    folder.path.symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="within the runs folder"):
        engine.delete_run(folder.id)
    assert (tmp_path / "precious" / "config.yaml").exists()


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(home):
    home.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(home)], capture_output=True
    ).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield home
    wait_for(lambda: subprocess.run(["umount", str(home)], capture_output=True).returncode == 0)


def test_a_run_on_a_full_disk_fails_with_that_cause_and_keeps_its_record(small_disk, begin):
    folder = begin("--steps", "5", "--fill-disk")
    state = wait_over(folder)
    assert (state.outcome, state.cause) == ("failed", "disk")
    assert [point[0] for point in state.train_points] == [1, 2, 3]
    assert state.checkpoints


def test_a_run_on_a_full_disk_can_be_stopped(small_disk, begin):
    folder = begin(*SLOW, "--deaf")
    wait_for_step(folder)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    engine.stop(folder.id, now=True)
    assert wait_over(folder).outcome == "stopped"


# ---------------------------------------------------------------- under the real launcher


def test_a_worker_killed_under_accelerate_launch_is_known_as_killed(home, monkeypatch):
    monkeypatch.delenv("GEMMA_TUNE_WORKER_COMMAND", raising=False)
    (home / "launch").mkdir(parents=True)
    two = {"devices": parse({"devices": {"num_processes": 2}}).devices.model_dump()}
    launcher = worker_command(RunFolder(home / "launch"), two)[: -len(["-m", "gemma_tune.workers.train"])]
    command = [*launcher, str(FAKE_WORKER), *SLOW]
    monkeypatch.setenv("GEMMA_TUNE_WORKER_COMMAND", json.dumps(command))
    folder = RunFolder(home / "runs" / engine.start(named()))
    wait_for(lambda: engine.read_state(folder.id).step >= 2, 60)
    worker = next(event for event in read_events(folder.events_path)[0] if event["kind"] == "plan")
    os.kill(int(worker["by"].rpartition("-")[2]), signal.SIGKILL)
    state = wait_over(folder)
    assert (state.outcome, state.cause, state.exit_code) == ("failed", "killed", -9)
    assert any(line.startswith("step ") for line in state.log_tail)
