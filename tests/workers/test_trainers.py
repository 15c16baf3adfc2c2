import pytest
import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTTrainer

from gemma_tune import config
from gemma_tune.errors import ConfigError
from gemma_tune.objectives import OBJECTIVES
from gemma_tune.workers import adapters, arguments, modeling, train, trainers
from gemma_tune.workers.validation import StoppableValidation, ValidationStopped

from .conftest import events_of

ROWS = Dataset.from_list([{"input_ids": [2, 9, 17, 30], "labels": [-100, 9, 17, 30]}] * 8)


@pytest.fixture
def build(gemma3, tmp_path):
    def make(**sections):
        settings = config.parse({"model": {"id": str(gemma3)}, **sections})
        model = modeling.load_model(gemma3, torch.float32)
        args = arguments.training_arguments(settings, tmp_path, has_validation=False)
        wanted = adapters.adapter_config(settings, model)
        tokenizer = modeling.load_tokenizer(gemma3)
        return trainers.build_trainer(settings, args, model, tokenizer, ROWS, None, wanted, [])

    return make


def test_every_objective_has_its_builder():
    assert set(trainers.BUILDERS) == set(OBJECTIVES) == set(arguments.OWN)


def test_it_is_trls_trainer_that_says_nothing_by_itself(build):
    trainer = build()
    assert isinstance(trainer, SFTTrainer) and isinstance(trainer, StoppableValidation)
    assert not any(isinstance(one, PrinterCallback) for one in trainer.callback_handler.callbacks)


def test_settings_that_trl_refuses_together_are_a_fault_of_advanced(build):
    with pytest.raises(ConfigError, match="advanced: These settings do not go together: .*bogus"):
        build(advanced={"trainer": {"loss_type": "bogus"}})


def test_a_validation_that_was_broken_off_is_never_the_best(build, monkeypatch):
    trainer = build()

    def broken_off(*args, **kwargs):
        raise ValidationStopped

    monkeypatch.setattr(SFTTrainer, "evaluate", broken_off)
    trainer.args.metric_for_best_model = "eval_loss"
    assert trainer.evaluate() == {} and trainer._determine_best_metric({}, None) is False


def test_lora_reaches_the_layers_that_are_asked_for(build):
    for wanted, layers in (("all-linear", 7), ("attention", 4)):
        trainer = build(method={"target_modules": wanted})
        names = {name.split(".")[-4] for name, one in trainer.model.named_parameters() if one.requires_grad}
        assert len(names) == layers


@pytest.mark.training
def test_grpo_on_whole_weights_holds_to_the_model_as_it_began(make_run):
    """With the adapter of the stage before, which is merged into it: the folder of the base does not have that."""
    first = make_run("train.learning_rate=0.01")
    assert train.main([str(first.path)]) == 0
    run = make_run(
        f"model.id=run:{first.id}", "method.type=full", "objective.type=grpo", "objective.max_completion_length=4",
        "train.max_steps=1",
    )  # fmt: skip
    assert train.main([str(run.path)]) == 0, events_of(run, "error")
    assert events_of(run, "metrics")[0]["measures"]["kl"] == pytest.approx(0, abs=1e-6)
