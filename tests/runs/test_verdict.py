import pytest

from gemma_tune.runs.evidence import Evidence
from gemma_tune.runs.folding import fold
from gemma_tune.runs.state import State
from gemma_tune.runs.verdict import ADVICE, judge, lost

LAUNCHER = "subprocess.CalledProcessError: Command '['python', '-m', 'gemma_tune.workers.train']'"
TRACEBACK = "Traceback (most recent call last):"


def evidence(
    *log, state=None, exit_code=1, stop_mode=None, forced=False, free_bytes=10**9, checkpoint_step=0
):
    return Evidence(state or State(), exit_code, stop_mode, forced, log, free_bytes, checkpoint_step)


def saved(stopped=False):
    return State(saved={"path": "model"}, trained_step=9, trained_stopped=stopped)


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"], "out_of_memory"),
        (
            ["RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"],
            "out_of_memory",
        ),
        (["MemoryError"], "out_of_memory"),
        (["OSError: [Errno 28] No space left on device"], "disk"),
        (["huggingface_hub.errors.GatedRepoError: 401 Client Error."], "licence"),
        (["403 Client Error: Forbidden for url"], "licence"),
        (["401 Client Error: Unauthorized for url"], "token"),
        ([TRACEBACK, "KeyError: 'x'"], "bug"),
        ([f"{LAUNCHER} died with <Signals.SIGKILL: 9>."], "killed"),
        ([f"{LAUNCHER} died with <Signals.SIGTERM: 15>."], "killed"),
        ([f"{LAUNCHER} died with <Signals.SIGSEGV: 11>."], "bug"),
    ],
)
def test_the_cause_is_read_from_the_log_and_each_has_a_way_out(lines, cause):
    verdict = judge(evidence(*lines))
    assert (verdict["outcome"], verdict["cause"]) == ("failed", cause)
    assert verdict["message"].endswith((".", ")"))
    assert verdict["way_out"].endswith(".")


def test_the_workers_own_code_is_read_from_the_launchers_words():
    assert judge(evidence(f"{LAUNCHER} died with <Signals.SIGKILL: 9>."))["exit_code"] == -9
    assert judge(evidence(f"{LAUNCHER} returned non-zero exit status 3."))["exit_code"] == 3
    assert judge(evidence("nothing of it", exit_code=7))["exit_code"] == 7


def test_the_workers_own_error_comes_first_with_its_faults_words():
    fault = {"where": "line 3", "rule": "The answer is empty.", "way_out": "Fill it."}
    state = fold([{"kind": "error", "cause": "data", "faults": [fault]}])
    verdict = judge(evidence("CUDA out of memory", state=state, stop_mode="keep"))
    assert verdict["cause"] == "data"
    assert (verdict["message"], verdict["way_out"]) == ("The answer is empty.", "Fill it.")


@pytest.mark.parametrize("cause", list(ADVICE))
def test_every_cause_of_the_worker_has_words(cause):
    verdict = judge(evidence(state=State(cause=cause)))
    assert verdict["message"]
    assert verdict["way_out"]


def test_finished_stopped_and_unsaved_are_told_apart():
    assert judge(evidence(state=saved(), exit_code=0))["outcome"] == "finished"
    assert judge(evidence(state=saved(), exit_code=0, stop_mode="keep"))["outcome"] == "finished"
    assert judge(evidence(state=saved(stopped=True), exit_code=0, stop_mode="keep"))["outcome"] == "stopped"
    assert judge(evidence(state=saved(), exit_code=None))["outcome"] == "finished"
    assert judge(evidence(exit_code=0))["cause"] == "bug"


def test_our_own_kill_is_a_stop_and_a_crash_while_stopping_is_not():
    assert judge(evidence(exit_code=-15, stop_mode="now", forced=True))["outcome"] == "stopped"
    assert judge(evidence(exit_code=-9, stop_mode="keep", forced=True))["outcome"] == "stopped"
    assert judge(evidence(TRACEBACK, "KeyError: 1", stop_mode="keep"))["outcome"] == "failed"
    assert judge(evidence("step 1", exit_code=None, stop_mode="keep"))["outcome"] == "stopped"


def test_a_disk_so_full_that_the_log_says_nothing_is_known_by_its_space():
    assert judge(evidence("step 3", free_bytes=0))["cause"] == "disk"


FULL = State(hardware={"memory_used_bytes": 97, "memory_total_bytes": 100})


@pytest.mark.parametrize(
    ("exit_code", "state", "oom_kills", "cause"),
    [
        (-9, State(), 1, "out_of_memory"),
        (137, State(), 1, "out_of_memory"),
        (None, State(), 1, "out_of_memory"),
        (-9, FULL, 0, "out_of_memory"),
        (-9, State(hardware={"memory_used_bytes": 50, "memory_total_bytes": 100}), 0, "killed"),
        (-15, FULL, 1, "killed"),
        (1, FULL, 1, "bug"),
    ],
)
def test_a_worker_that_the_kernel_ended_for_lack_of_memory_ran_out_of_it(exit_code, state, oom_kills, cause):
    known = Evidence(state, exit_code, None, False, ["step 3"], 10**9, 0, oom_kills)
    assert judge(known)["cause"] == cause


def test_the_rank_that_ended_first_is_read_from_torchruns_words():
    log = [
        "  rank      : 1 (local_rank: 1)",
        "  exitcode  : -9 (pid: 4711)",
        "  traceback : Signal 9 (SIGKILL)",
    ]
    assert judge(evidence(*log))["cause"] == "killed"
    assert judge(evidence(*log, "Connection closed by peer [127.0.0.1]:1"))["exit_code"] == -9


def test_torchruns_own_words_are_left_out_of_the_last_lines():
    failed = "E1124 19:15 7 .venv/torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -9) local_rank: 0"
    noise = [TRACEBACK, *["  File x"] * 50, "  exitcode  : -9 (pid: 4711)"]
    assert judge(evidence("step 3", failed, *noise))["log_tail"] == ["step 3", failed]


def test_a_host_that_lost_another_one_says_so():
    lost_peer = "RuntimeError: [gloo/transport/tcp/pair.cc:545] Connection closed by peer [10.0.0.2]:31234"
    assert judge(evidence(TRACEBACK, lost_peer))["cause"] == "peer"
    assert judge(evidence(TRACEBACK, lost_peer, "CUDA out of memory"))["cause"] == "out_of_memory"


def test_a_host_that_keeps_no_model_is_done_with_its_part():
    state = State(machine_rank=1, trained_step=9, trained_stopped=False)
    assert judge(evidence(state=state, exit_code=0))["outcome"] == "finished"
    assert "host 0" in judge(evidence(state=state, exit_code=0))["message"]
    assert judge(evidence(state=state, exit_code=1))["outcome"] == "failed"


def test_an_adopted_worker_that_vanished_was_killed():
    assert judge(evidence("step 3", exit_code=None))["cause"] == "killed"
    assert judge(evidence(TRACEBACK, "KeyError: 1", exit_code=None))["cause"] == "bug"


def test_lost_is_only_what_nothing_else_explains():
    assert lost(evidence("step 3", exit_code=None))["outcome"] == "lost"
    assert "step 7" in lost(evidence(exit_code=None, checkpoint_step=7))["way_out"]
    assert lost(evidence(TRACEBACK, "KeyError: 1", exit_code=None))["outcome"] == "failed"
    assert lost(evidence(exit_code=None, state=saved()))["outcome"] == "finished"
    assert lost(evidence(exit_code=None, stop_mode="now"))["outcome"] == "stopped"


def test_the_last_forty_lines_go_into_the_record():
    assert judge(evidence(*[f"line {number}" for number in range(100)]))["log_tail"][0] == "line 60"
