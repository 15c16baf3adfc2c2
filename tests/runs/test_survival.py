import os
import signal

import pytest
from live_runs import supervisor_of, wait_for, wait_for_step, wait_over

from gemma_tune.config import parse
from gemma_tune.runs import engine, survival
from gemma_tune.runs.events import read_events
from gemma_tune.runs.evidence import Evidence
from gemma_tune.runs.folder import RunFolder, create_run
from gemma_tune.runs.processes import living
from gemma_tune.runs.state import State


def settings(batch, accumulation=1, checkpointing=True, validation=8, selective=False, **devices):
    return parse(
        {
            "train": {
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": accumulation,
                "activation_checkpointing": checkpointing,
                "selective_checkpointing": selective,
            },
            "eval": {"per_device_eval_batch_size": validation},
            "devices": devices,
        }
    )


def warnings_of(folder):
    return [event for event in read_events(folder.events_path)[0] if event["kind"] == "warning"]


@pytest.mark.parametrize("batch", [1, 2, 3, 6, 7, 8, 9, 12, 25, 1024])
def test_every_batch_shrinks_to_one_row_and_each_step_keeps_its_rows(batch):
    config, sizes = settings(batch, validation=1), [batch]
    while changes := survival.smaller(config):
        sizes.append(changes[survival.BATCH])
        assert sizes[-1] * changes[survival.ACCUMULATION] == batch
        assert sizes[-2] % sizes[-1] == 0 and sizes[-1] < sizes[-2]
        config = settings(sizes[-1], changes[survival.ACCUMULATION], validation=1)
    assert sizes[-1] == 1


def test_the_batch_comes_first_then_checkpointing_then_validation_then_nothing():
    assert survival.smaller(settings(6, 5)) == {
        survival.BATCH: 3, survival.ACCUMULATION: 10, survival.VALIDATION_BATCH: 4,
    }  # fmt: skip
    assert survival.smaller(settings(1, 8, checkpointing=False, validation=1)) == {
        survival.CHECKPOINTING: True
    }
    assert survival.smaller(settings(1, 8, selective=True, validation=1)) == {survival.SELECTIVE: False}
    assert survival.smaller(settings(1, 8, validation=8)) == {survival.VALIDATION_BATCH: 1}
    assert survival.smaller(settings(1, 8, validation=1)) is None


def test_an_accumulation_beyond_its_range_is_not_asked_for():
    assert survival.smaller(settings(2, 1024, checkpointing=False, validation=1)) == {
        survival.CHECKPOINTING: True
    }


def judged(state, log=("torch.OutOfMemoryError: CUDA out of memory",)):
    return Evidence(state, 1, None, False, log, 10**9, 0)


def test_only_training_that_ran_out_goes_on_and_only_on_one_host(home):
    training = judged(State(plan={"device": "cpu"}))
    folder = create_run(settings(8))
    assert survival.shrink(folder, judged(State())) is None  # it cannot even be loaded
    assert survival.shrink(folder, judged(State(plan={"device": "cpu"}), ["KeyError: 1"])) is None
    assert folder.overrides() == {}
    assert survival.shrink(folder, training)["changed"][survival.BATCH] == {"from": 8, "to": 4}
    hosts = create_run(settings(8, num_machines=2, main_process_ip="10.0.0.1"))
    assert survival.shrink(hosts, training) is None
    assert "every host" in survival.advice(hosts, training)["way_out"]
    assert survival.advice(folder, training) == {}


def test_a_run_that_runs_out_goes_on_smaller_from_its_last_checkpoint(begin):
    folder = begin("--rows-that-fit", "2", "--steps", "5")
    asked = folder.config_path.read_text()
    state = wait_over(folder)
    assert (state.outcome, state.attempt, state.resume_step, state.cause) == ("finished", 3, 2, None)
    first, second = warnings_of(folder)
    assert first["cause"] == "out_of_memory"
    assert first["changed"][survival.BATCH] == {"from": 8, "to": 4}
    assert second["changed"][survival.ACCUMULATION] == {"from": 2, "to": 4}
    assert second["message"] in state.warnings
    assert folder.config_path.read_text() == asked
    assert folder.config().train.per_device_train_batch_size == 2
    assert folder.config().eval.per_device_eval_batch_size == 2
    assert [point[0] for point in state.train_points] == [1, 2, 3, 4, 5]
    assert state.spent_seconds > 0  # of the attempts that ran out


def test_what_was_changed_counts_when_the_run_is_resumed(begin, fake_worker):
    folder = begin("--rows-that-fit", "4", "--steps", "3", "--exit", "1")
    assert (wait_over(folder).outcome, len(warnings_of(folder))) == ("failed", 1)
    fake_worker("--rows-that-fit", "4", "--steps", "6")
    engine.resume(folder.id)
    assert wait_over(folder).outcome == "finished"
    assert len(warnings_of(folder)) == 1


def test_when_nothing_is_left_to_change_the_run_fails_and_says_what_to_do(begin):
    folder = begin("--rows-that-fit", "0")
    state = wait_over(folder)
    assert (state.outcome, state.cause, state.attempt) == ("failed", "out_of_memory", 4)
    assert "one row at a time" in state.message
    assert "maximum length" in state.way_out


def test_it_can_be_switched_off(home, fake_worker):
    fake_worker("--rows-that-fit", "2")
    config = parse({"train": {"survive_out_of_memory": False}})
    state = wait_over(RunFolder(home / "runs" / engine.start(config)))
    assert (state.outcome, state.cause, state.attempt) == ("failed", "out_of_memory", 1)


def test_a_supervisor_that_took_over_lets_the_run_survive_too(begin):
    folder = begin("--rows-that-fit", "4", "--steps", "30", "--step-seconds", "0.05", "--oom-step", "25")
    wait_for_step(folder)
    supervisor = supervisor_of(folder)
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_for(lambda: not living([supervisor]))
    assert engine.reconcile(folder.id).is_live
    state = wait_over(folder)
    assert (state.outcome, state.attempt, state.resume_step) == ("finished", 2, 24)
    assert folder.overrides()[survival.BATCH] == 4


def test_kto_keeps_two_answers_in_a_batch():
    config = parse(
        {
            "objective": {"type": "kto"},
            "train": {"per_device_train_batch_size": 2, "activation_checkpointing": False},
        }
    )
    assert survival.smaller(config)["train.activation_checkpointing"] is True
    assert survival.BATCH not in survival.smaller(config)
