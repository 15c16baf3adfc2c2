"""From a RunConfig to TRL's SFTTrainer. What it computes is TRL's own; nothing of the training is changed here."""

from __future__ import annotations

import typing
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from pydantic import TypeAdapter, ValidationError
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from gemma_tune.config import RunConfig
from gemma_tune.errors import ConfigError, Fault, shown
from gemma_tune.workers import modeling
from gemma_tune.workers.validation import StoppableValidation

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = {"attention": ATTENTION, "all-linear": [*ATTENTION, "gate_proj", "up_proj", "down_proj"]}


class Trainer(StoppableValidation, SFTTrainer):
    """SFTTrainer whose validation can be broken off."""


def sft_config(config: RunConfig, output_dir: Path, *, has_validation: bool) -> SFTConfig:
    """Raises ConfigError, naming the setting of `advanced` that is wrong."""
    gpu = torch.cuda.is_available()
    train, advanced = config.train, config.advanced.trainer
    evaluates = has_validation and config.eval.eval_steps > 0
    own = {
        "output_dir": str(output_dir),
        "num_train_epochs": train.num_train_epochs,
        "max_steps": train.max_steps,
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "per_device_eval_batch_size": config.eval.per_device_eval_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        "warmup_steps": _steps(train.warmup_steps),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optim,
        "activation_checkpointing": train.activation_checkpointing,
        "bf16": train.bf16 == "on" or (train.bf16 == "auto" and modeling.computes_bfloat16()),
        "packing": train.packing,
        "neftune_noise_alpha": train.neftune_noise_alpha or None,
        "seed": train.seed,
        "max_length": train.max_length if train.packing else None,  # the rows come already cut
        "logging_steps": train.logging_steps,
        "logging_nan_inf_filter": False,  # it would show the last good loss in place of NaN
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": _steps(config.eval.eval_steps) if evaluates else None,
        "save_strategy": "steps",
        "save_steps": _steps(config.output.save_steps),
        "save_total_limit": config.output.save_total_limit,
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return _built(SFTConfig, "advanced.trainer", own, advanced)


def lora_config(config: RunConfig) -> LoraConfig:
    """Raises ConfigError, naming the setting of `advanced` that is wrong."""
    method = config.method
    own = {
        "r": method.r,
        "lora_alpha": method.lora_alpha,
        "lora_dropout": method.lora_dropout,
        "target_modules": TARGETS[method.target_modules],
        "use_dora": method.use_dora,
        "use_rslora": method.use_rslora,
        "init_lora_weights": True if method.init_lora_weights == "default" else method.init_lora_weights,
        "task_type": "CAUSAL_LM",
    }
    return _built(LoraConfig, "advanced.lora", own, config.advanced.lora)


def build_trainer(
    config: RunConfig,
    args: SFTConfig,
    model,
    tokenizer,
    train_rows: Dataset,
    validation_rows: Dataset | None,
    callbacks: list,
) -> Trainer:
    """The trainer, ready for `train()`, on rows of `input_ids` and `labels` as long as each other. Raises ConfigError where TRL or PEFT refuse a combination of settings."""
    try:
        trainer = Trainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=train_rows,
            eval_dataset=validation_rows,
            peft_config=lora_config(config) if config.method.type == "lora" else None,
            callbacks=callbacks,
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        if not (config.advanced.trainer or config.advanced.lora):
            raise
        raise ConfigError.at(
            "advanced", {**config.advanced.trainer, **config.advanced.lora}, f"These settings do not go together: {error}",
            "Take one out after the other; docs/settings.md says what there is.",
        ) from error  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def _steps(value: float) -> float | int:
    """Transformers' convention: a float below 1 is a share of the run, an int a number of steps."""
    return value if value < 1 else round(value)


def _built(kind: type, where: str, own: dict, advanced: dict):
    """`kind(**own, **advanced)`, with every fault of `advanced` by its name."""
    hints = typing.get_type_hints(kind)
    faults = [
        Fault(f"{where}.{name}", shown(value), f"{kind.__name__} takes {_type_name(hints[name])} here.",
              "See docs/settings.md.")
        for name, value in advanced.items()
        if not _fits(hints[name], value)
    ]  # fmt: skip
    if faults:
        raise ConfigError(*faults)
    try:
        return kind(**own | advanced)
    except (ValueError, TypeError) as error:
        raise ConfigError(*_culprits(kind, where, own, advanced, error)) from error


def _culprits(kind: type, where: str, own: dict, advanced: dict, error: Exception) -> list[Fault]:
    """Which single settings of `advanced` are refused; failing that, the refusal as it is."""
    faults = []
    for name, value in advanced.items():
        try:
            kind(**own | {name: value})
        except (ValueError, TypeError) as refusal:
            faults.append(Fault(f"{where}.{name}", shown(value), str(refusal), "Correct it or take it out."))
    return faults or [Fault(where if advanced else "train", "", str(error), "Change the setting named.")]


def _fits(hint: object, value: object) -> bool:
    try:
        TypeAdapter(hint).validate_python(value)
    except ValidationError:
        return False
    return True


def _type_name(hint: object) -> str:
    return str(getattr(hint, "__name__", hint)) if isinstance(hint, type) else str(hint)
