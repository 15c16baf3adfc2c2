"""How many optimizer steps a run takes, counted as Transformers' and TRL's trainers count them. No torch."""

from __future__ import annotations

import math

from gemma_tune.config import RunConfig


def steps_per_epoch(rows: int, tokens: int, config: RunConfig) -> int:
    """Optimizer steps of one pass over all devices, counted as Transformers' Trainer counts them."""
    train = config.train
    if (
        config.objective.type == "grpo"
    ):  # each prompt is answered several times, and an answer may be used again
        again = config.advanced.trainer.get("num_iterations", 1)
        steps = config.advanced.trainer.get("steps_per_generation", train.gradient_accumulation_steps)
        batches = rows // rows_per_batch(config) * steps * again
        return math.ceil(batches / train.gradient_accumulation_steps)
    if packs(config):
        rows = min(rows, math.ceil(tokens / train.max_length))
    batches = rows / (train.per_device_train_batch_size * config.devices.processes)
    batches = (
        math.floor(batches) if config.advanced.trainer.get("dataloader_drop_last") else math.ceil(batches)
    )
    return math.ceil(batches / train.gradient_accumulation_steps)


def packs(config: RunConfig) -> bool:
    return config.train.packing and config.objective.type == "sft"


def total_steps(per_epoch: int, config: RunConfig) -> int:
    """Of the whole run, from those of one pass."""
    if config.train.max_steps > 0:
        return config.train.max_steps
    return math.ceil(config.train.num_train_epochs * per_epoch)


def rows_per_batch(config: RunConfig) -> int:
    """Rows that the smallest unit of training needs: a micro-batch, or for GRPO the prompts of one step's answers."""
    train = config.train
    if config.objective.type != "grpo":
        return train.per_device_train_batch_size
    answers = train.per_device_train_batch_size * config.devices.processes
    steps = config.advanced.trainer.get("steps_per_generation", train.gradient_accumulation_steps)
    return max(1, answers * steps // config.objective.num_generations)
