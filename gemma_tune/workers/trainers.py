"""One short builder per objective over TRL's trainers. What they compute is TRL's own; nothing of it is changed here.

The rows come as tokens (`preference`, `dataset`): the very ones that the data check counted and showed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from gemma_tune.config import RunConfig
from gemma_tune.errors import ConfigError
from gemma_tune.workers import hosts, rewards
from gemma_tune.workers.validation import StoppableValidation


class TakesTokens:
    """Put before a trainer of TRL's: its rows are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *rest: object) -> Dataset:
        return dataset


def build_trainer(
    config: RunConfig,
    args: TrainingArguments,
    model,
    tokenizer,
    train_rows: Dataset,
    validation_rows: Dataset | None,
    peft_config: PeftConfig | None,
    callbacks: list,
    collator: Callable[[list[dict]], dict] | None = None,
) -> Trainer:
    """The trainer, ready for `train()`. Raises ConfigError where TRL or PEFT refuse a combination of settings.

    `collator`: of supervised rows with images. `model` may be a PeftModel whose adapter is trained further, then without `peft_config`: DPO and KTO hold a frozen
    copy of it as their reference.
    """
    if isinstance(model, PeftModel) and config.method.type == "full":
        raise TypeError("A full fine-tuning needs plain weights")
    given = {
        "model": model,
        "args": args,
        "processing_class": tokenizer,
        "train_dataset": train_rows,
        "eval_dataset": validation_rows,
        "peft_config": peft_config,
        "callbacks": callbacks,
    }
    if collator:
        given["data_collator"] = collator
    try:
        trainer = BUILDERS[config.objective.type](config, given)
    except (ValueError, TypeError, NotImplementedError) as error:
        if not (config.advanced.trainer or config.advanced.lora):
            raise
        raise ConfigError.at(
            "advanced", {**config.advanced.trainer, **config.advanced.lora}, f"These settings do not go together: {error}",
            "Take one out after the other; docs/settings.md says what there is.",
        ) from error  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    if args.save_on_each_node:
        hosts.save_on_every_host(trainer.model)
    return trainer


def _sft(config: RunConfig, given: dict) -> Trainer:
    from gemma_tune.workers.sft import sft_trainer

    return sft_trainer(
        config, given["args"], given["model"], given["processing_class"], given["train_dataset"],
        given["eval_dataset"], given["peft_config"], given["callbacks"], given.get("data_collator"),
    )  # fmt: skip


def _dpo(config: RunConfig, given: dict) -> Trainer:
    from trl import DPOTrainer

    return _stoppable(DPOTrainer, TakesTokens)(**given)


def _kto(config: RunConfig, given: dict) -> Trainer:
    from trl import KTOTrainer

    return _stoppable(KTOTrainer, TakesTokens)(**given)


def _orpo(config: RunConfig, given: dict) -> Trainer:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.orpo import ORPOTrainer

    return _stoppable(ORPOTrainer, OrpoRows)(**given)


def _reward(config: RunConfig, given: dict) -> Trainer:
    from trl import RewardTrainer

    trainer = _stoppable(RewardTrainer, TakesTokens)(**given)
    # On a quantized base TRL brings all that is trained to bfloat16, and the head would no longer fit what comes to it.
    whole = trainer.model.get_input_embeddings().weight.dtype
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad and ".score." in name:
            parameter.data = parameter.data.to(whole)
    return trainer


def _grpo(config: RunConfig, given: dict) -> Trainer:
    from trl import GRPOTrainer

    earned = rewards.reward_function(config.objective, given["processing_class"])
    with _own_reference(given["model"]):
        return _stoppable(GRPOTrainer, GrpoPrompts)(**given, reward_funcs=[earned])


@contextmanager
def _own_reference(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Lets a full GRPO hold to a copy of the model as it begins.

    TRL would load the checkpoint's folder anew: with its towers, and without the adapter that was merged into the model.
    """
    from trl.trainer import grpo_trainer

    loads = grpo_trainer.create_model_from_path
    grpo_trainer.create_model_from_path = lambda *_, **__: copy.deepcopy(model).requires_grad_(False)
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path = loads


BUILDERS: dict[str, Callable[[RunConfig, dict], Trainer]] = {
    "sft": _sft, "dpo": _dpo, "kto": _kto, "orpo": _orpo, "reward": _reward, "grpo": _grpo,
}  # fmt: skip


class OrpoRows:
    """ORPO takes its rows through this method; they have all their columns. Tokens are counted as TRL's others do."""

    _tokens_seen = 0

    def tokenize_row(self, feature: dict, model: object = None) -> dict:
        return {}

    def training_step(self, model, inputs, *rest):
        read = sum(inputs[f"{side}_attention_mask"].sum() for side in ("chosen", "rejected"))
        self._tokens_seen += int(self.accelerator.gather(read).sum())
        return super().training_step(model, inputs, *rest)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs["num_tokens"] = self._tokens_seen
        super().log(logs, start_time)


class GrpoPrompts:
    """GRPO's prompts are tokens already, with the functions of their own row."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict]:
        return prompts, None, {}


@cache
def _stoppable(trainer: type[Trainer], *before: type) -> type[Trainer]:
    return type(f"Our{trainer.__name__}", (StoppableValidation, *before, trainer), {})
