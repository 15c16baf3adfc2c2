"""Several processes, and a run that runs out of memory: real workers started by the engine, on the CPU over gloo."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from gemma_tune import config
from gemma_tune.runs import engine
from gemma_tune.runs.checkpoints import complete_checkpoints
from gemma_tune.runs.folder import RunFolder, create_run
from gemma_tune.runs.launch import WORKER_COMMAND_VARIABLE
from gemma_tune.runs.processes import end_processes, run_processes
from gemma_tune.workers import train

from .conftest import events_of, losses_of

pytestmark = pytest.mark.training

OOM_WORKER = Path(__file__).with_name("oom_worker.py")
SECONDS = 180.0
STEPS = 40  # long enough to be killed within
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GEMMA_TUNE_TERM_SECONDS", "2")
    monkeypatch.delenv(WORKER_COMMAND_VARIABLE, raising=False)
    monkeypatch.setattr(engine, "_free_bytes", lambda path: 10**12)


@pytest.fixture
def settings(gemma3, talks):
    """A configuration of the tiny Gemma 3, on 64 rows: 8 steps of 8 rows are an epoch."""

    def settings(*overrides: str) -> config.RunConfig:
        values = {
            "model": {"id": str(gemma3)},
            "data": {"source": str(talks), "validation_fraction": 0},
            "method": {"type": "full"},
            "train": {
                "max_steps": STEPS,
                "activation_checkpointing": False,
                "max_length": 128,
                "learning_rate": 0.003,
            },
            "eval": {"exact_match_rows": 0, "eval_steps": 0},
            "output": {"save_steps": 3, "save_total_limit": 9},
        }
        return config.parse(config.apply_overrides(values, list(overrides)))

    return settings


@pytest.fixture
def start(settings, monkeypatch, tmp_path):
    """Starts a run through the engine; what still lives of it at the end is killed."""
    folders = []

    def start(*overrides: str, home: str = "home") -> RunFolder:
        monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path / home))
        folders.append(RunFolder(tmp_path / home / "runs" / engine.start(settings(*overrides))))
        return folders[-1]

    yield start
    for folder in folders:
        end_processes(lambda folder=folder: run_processes(folder.path), term_seconds=0)


@pytest.fixture
def resume(monkeypatch, tmp_path):
    def resume(folder: RunFolder, home: str = "home") -> None:
        monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path / home))
        engine.resume(folder.id)

    return resume


@pytest.fixture
def losses_alone(settings):
    """The losses of one process that has all the memory it wants."""

    def losses_alone(*overrides: str) -> list[float]:
        run = create_run(settings(*overrides))
        assert train.main([str(run.path)]) == 0
        return losses_of(run)

    return losses_alone


def over(folder: RunFolder):
    """The state at the end of the run, by when no process of it is left."""
    reader = engine.StateReader(folder.events_path)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if (state := reader.read()).is_over:
            assert run_processes(folder.path) == []
            return state
        time.sleep(0.1)
    raise AssertionError(folder.log_path.read_text()[-3000:])


def wait_for_step(folder: RunFolder, step: int) -> None:
    deadline = time.monotonic() + SECONDS
    while not any(event["step"] >= step for event in events_of(folder, "metrics")):
        assert time.monotonic() < deadline, folder.log_path.read_text()[-3000:]
        time.sleep(0.05)


def by_step(folder: RunFolder) -> list[float]:
    """The last loss told of each step."""
    return list({event["step"]: event["loss"] for event in events_of(folder, "metrics")}.values())


# ---------------------------------------------------------------- images


def test_two_processes_learn_from_images_what_one_learns(start, losses_alone, multimodal, painted, tmp_path):
    """With rows without any between them, so that a process may have a batch without an image."""
    lines = painted.read_text().splitlines()
    plain = {"messages": [{"role": "user", "content": "Say hat."}, {"role": "assistant", "content": "hat"}]}
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join([*lines[:24], *[json.dumps(plain | {"row": row}) for row in range(24)]]))
    more = [f"model.id={multimodal}", f"data.source={mixed}", "train.max_steps=10"]
    rows = ["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=4"]
    folder = start(*more, "devices.num_processes=2", *rows)
    alone = losses_alone(*more)
    assert over(folder).outcome == "finished"
    assert by_step(folder) == pytest.approx(alone, abs=TOLERANCE)
    assert alone[-1] < alone[0] - 1


# ---------------------------------------------------------------- out of memory


def test_a_run_that_ran_out_of_memory_has_the_loss_curve_of_one_that_did_not(
    start, losses_alone, monkeypatch
):
    monkeypatch.setenv(WORKER_COMMAND_VARIABLE, json.dumps([sys.executable, str(OOM_WORKER), "4", "5"]))
    folder = start()
    small = ["train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=2"]
    alone, alone_and_small = losses_alone(), losses_alone(*small)
    state = over(folder)
    assert (state.outcome, state.attempt, state.resume_step) == ("finished", 2, 3)
    assert events_of(folder, "error")[0]["cause"] == "out_of_memory"
    assert by_step(folder) == pytest.approx(alone, abs=TOLERANCE)
    assert by_step(folder)[3:] == pytest.approx(alone_and_small[3:], abs=TOLERANCE)
    assert alone[-1] < alone[0] - 1


# ---------------------------------------------------------------- several processes of one host


def test_two_processes_compute_what_one_does_and_resume_after_a_kill(start, losses_alone):
    folder = start("devices.num_processes=2", "train.per_device_train_batch_size=4")
    wait_for_step(folder, 4)
    ranks = [process for process in run_processes(folder.path) if process.environ().get("RANK") == "1"]
    assert len(ranks) == 1
    os.kill(ranks[0].pid, signal.SIGKILL)
    state = over(folder)
    assert (state.outcome, state.cause, state.exit_code) == ("failed", "killed", -9)
    assert psutil.pid_exists(ranks[0].pid) is False
    engine.resume(folder.id)
    state = over(folder)
    assert (state.outcome, state.attempt) == ("finished", 2)
    assert state.resume_step >= 3
    assert by_step(folder) == pytest.approx(losses_alone(), abs=TOLERANCE)


def test_an_adapter_with_checkpointing_trains_on_two_processes_and_both_stop_at_the_same_step(start):
    folder = start(
        "devices.num_processes=2", "method.type=lora", "train.activation_checkpointing=true", "train.max_steps=5000",
        "train.per_device_train_batch_size=4",
    )  # fmt: skip
    wait_for_step(folder, 2)
    engine.stop(folder.id)
    state = over(folder)
    assert (state.outcome, state.trained_stopped) == ("stopped", True)
    step, path = complete_checkpoints(folder.path)[-1]
    assert step == state.trained_step
    assert {file.name for file in path.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert events_of(folder, "saved")


# ---------------------------------------------------------------- several hosts


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_hosts_compute_what_one_process_does_also_after_one_was_killed(start, resume, losses_alone):
    alone = losses_alone()
    devices = [
        "devices.num_machines=2", "devices.main_process_ip=127.0.0.1", f"devices.main_process_port={free_port()}",
        "train.per_device_train_batch_size=4",
    ]  # fmt: skip
    hosts = [start(*devices, f"devices.machine_rank={rank}", home=f"host-{rank}") for rank in (0, 1)]
    wait_for_step(hosts[0], 4)
    end_processes(lambda: run_processes(hosts[1].path), term_seconds=0)
    first, second = map(over, hosts)
    assert (first.outcome, first.cause, second.outcome, second.cause) == (
        "failed",
        "peer",
        "failed",
        "killed",
    )
    resume(hosts[1], "host-1")
    resume(hosts[0], "host-0")
    first, second = map(over, hosts)
    assert (first.outcome, second.outcome) == ("finished", "finished")
    assert by_step(hosts[0]) == pytest.approx(alone, abs=TOLERANCE)
    assert len(losses_of(hosts[0])) < 2 * STEPS  # it went on, not anew
    assert losses_of(hosts[1]) == []
    assert (first.machine_rank, second.machine_rank) == (0, 1)
    assert "host 0, 127.0.0.1" in second.warnings[0]
    weights = [load_file(host.model_dir / "model.safetensors") for host in hosts]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
