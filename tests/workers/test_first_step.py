import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from gemma_tune import config
from gemma_tune.workers import train
from gemma_tune.workers.first_step import FirstLossError, FirstStepCallback, NoLabelError

from .conftest import events_of


class Tiny(torch.nn.Module):
    config = type("Config", (), {"get_text_config": lambda self: type("Text", (), {"vocab_size": 1000})})()

    def forward(self, **named):
        return named


def looks(objective: dict, loss: float, step: int = 1) -> None:
    callback = FirstStepCallback(config.parse({"objective": objective}))
    callback.on_log(None, TrainerState(global_step=step), None, logs={"loss": loss}, model=Tiny())


@pytest.mark.parametrize("objective", ["sft", "dpo", "orpo", "grpo"])
def test_a_first_loss_that_is_no_number_ends_the_run(objective):
    with pytest.raises(FirstLossError, match="no number"):
        looks({"type": objective}, math.nan)


def test_a_model_that_is_worse_than_guessing_ends_the_run():
    looks({"type": "sft"}, 1.4 * math.log(1000))
    with pytest.raises(FirstLossError, match="guesses at random has 6.91"):
        looks({"type": "sft"}, 1.6 * math.log(1000))
    looks({"type": "sft"}, 100.0, step=2)  # a later loss is not judged here


def test_dpo_must_begin_at_ln_2():
    looks({"type": "dpo"}, math.log(2))
    with pytest.raises(FirstLossError, match="disable_dropout"):
        looks({"type": "dpo"}, 0.75)
    for other in ({"loss_type": "ipo"}, {"sft_weight": 1.0}):
        looks({"type": "dpo", **other}, 2.5)


def test_a_first_batch_without_labels_ends_the_run_and_a_later_one_does_not():
    model, callback = Tiny(), FirstStepCallback(config.parse({}))
    callback.on_train_begin(None, TrainerState(), None, model=model)
    with pytest.raises(NoLabelError, match="None of its tokens is learned"):
        model(labels=torch.full((2, 5), -100))
    model(labels=torch.full((2, 5), -100))
    callback.on_train_begin(None, TrainerState(), None, model=model)
    model(labels=torch.tensor([[-100, 3]]))
    callback.on_train_begin(None, TrainerState(global_step=7), None, model=model)  # resumed
    model(labels=torch.full((2, 5), -100))


def test_broken_weights_end_a_run_with_the_reason(make_run, gemma3, tmp_path):
    broken = shutil.copytree(gemma3, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] += 40.0  # scores so sharp that they are mostly wrong
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    run = make_run(f"model.id={broken}", "train.logging_steps=100")
    assert train.main([str(run.path)]) == train.FAULT_EXIT
    (error,) = events_of(run, "error")
    assert (error["cause"], error["faults"][0]["where"]) == ("config", "first loss")
    assert not events_of(run, "metrics") and not events_of(run, "checkpoint")
