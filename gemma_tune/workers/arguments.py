"""From a RunConfig to the arguments of TRL's trainers and of PEFT: what all objectives share, and what is each one's own.

`advanced` lies over them, checked against the real fields; every fault is told by the name of its setting.
"""

from __future__ import annotations

import importlib.util
import os
import typing
from pathlib import Path

import torch
from peft import LoftQConfig, LoraConfig
from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from gemma_tune import support
from gemma_tune.config import RunConfig
from gemma_tune.errors import ConfigError, Fault, shown
from gemma_tune.workers import fast, selective


def training_arguments(
    config: RunConfig, output_dir: Path, *, has_validation: bool, parameters: int = 0
) -> TrainingArguments:
    """TRL's configuration of the objective. Raises ConfigError, naming the settings that are wrong."""
    _refuse_unfit(config, has_validation)
    own = (
        _common(config, output_dir, parameters)
        | _validation(config, has_validation)
        | OWN[config.objective.type](config)
    )
    return _built(_kind(config.objective.type), "advanced.trainer", own, config.advanced.trainer)


def lora_config(config: RunConfig, target_modules: str | list[str]) -> LoraConfig:
    """`target_modules`: of modeling.lora_targets. Raises ConfigError, naming the setting of `advanced` that is wrong."""
    method = config.method
    own = {
        "r": method.r,
        "lora_alpha": method.lora_alpha,
        "lora_dropout": method.lora_dropout,
        "target_modules": target_modules,
        "use_dora": method.use_dora,
        "use_rslora": method.use_rslora,
        "init_lora_weights": True if method.init_lora_weights == "default" else method.init_lora_weights,
        "task_type": "SEQ_CLS" if config.objective.type == "reward" else "CAUSAL_LM",
    }
    if method.init_lora_weights == "loftq":
        own["loftq_config"] = LoftQConfig(loftq_bits=4)
    _refuse_unfit_start(config)
    return _built(LoraConfig, "advanced.lora", own, config.advanced.lora)


# ---- what all objectives share ---------------------------------------------------------------------------------------
def _common(config: RunConfig, output_dir: Path, parameters: int) -> dict:
    train, gpu = config.train, torch.cuda.is_available()
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": train.num_train_epochs,
        "max_steps": train.max_steps,
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        "warmup_steps": _steps(train.warmup_steps),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optim,
        "activation_checkpointing": train.activation_checkpointing,
        "activation_checkpointing_kwargs": selective.arguments() if train.selective_checkpointing else None,
        "bf16": train.bf16 == "on" or (train.bf16 == "auto" and fast.gains_from_bfloat16(parameters)),
        "use_liger_kernel": _uses_liger(train.use_liger_kernel),
        "torch_compile": train.torch_compile,
        "seed": train.seed,
        "logging_steps": train.logging_steps,
        "logging_first_step": True,  # what the first loss tells must not wait
        "logging_nan_inf_filter": False,  # it would show the last good loss in place of NaN
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "disable_tqdm": True,
        "report_to": "none",
        "restore_callback_states_from_checkpoint": True,
    }


def _validation(config: RunConfig, has_validation: bool) -> dict:
    """When it is validated and saved. The best checkpoint is kept only if every validation has one."""
    evaluates = has_validation and config.eval.eval_steps > 0
    eval_steps, save_steps = _steps(config.eval.eval_steps), _steps(config.output.save_steps)
    keeps_best = evaluates and config.eval.load_best_model_at_end
    found = {
        "per_device_eval_batch_size": config.eval.per_device_eval_batch_size,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": eval_steps if evaluates else None,
        "save_strategy": "steps",
        "save_steps": eval_steps if keeps_best else save_steps,
        "save_total_limit": config.output.save_total_limit,
        # Each host resumes from its own folder; what is shared out is gathered on the first one only.
        "save_on_each_node": config.devices.num_machines > 1 and config.devices.distributed_type == "ddp",
        "load_best_model_at_end": keeps_best,
    }
    if keeps_best or (evaluates and config.eval.early_stopping_patience):
        rewards = config.objective.type == "grpo"  # its loss says nothing: it begins at 0 and stays near it
        found |= {
            "metric_for_best_model": "eval_reward" if rewards else "eval_loss",
            "greater_is_better": rewards,
        }
    return found


def _uses_liger(asked: str) -> bool:
    able = torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None
    if asked == "on" and not able:
        raise ConfigError.at(
            "train.use_liger_kernel", asked, "It needs a GPU and the package liger-kernel.", "Set it to auto."
        )
    return able and asked != "off"


def _refuse_unfit(config: RunConfig, has_validation: bool) -> None:
    faults = []
    for name in ("early_stopping_patience", "load_best_model_at_end"):
        if (value := getattr(config.eval, name)) and not has_validation:
            faults.append(
                Fault(f"eval.{name}", shown(value), "It needs validation rows, and there are none.",
                      "Set data.validation_fraction to 0.1, or name data.validation_source.")
            )  # fmt: skip
    if faults:
        raise ConfigError(*faults)


def _refuse_unfit_start(config: RunConfig) -> None:
    if found := support.fault_of(config, "", torch.cuda.is_available()):
        raise ConfigError(found)


def _steps(value: float) -> float | int:
    """Transformers' convention: a float below 1 is a share of the run, an int a number of steps."""
    return value if value < 1 else round(value)


# ---- what is each objective's own ------------------------------------------------------------------------------------
def _sft(config: RunConfig) -> dict:
    return {
        "packing": config.train.packing,
        "neftune_noise_alpha": config.train.neftune_noise_alpha or None,
        "max_length": config.train.max_length if config.train.packing else None,  # the rows come already cut
    }


def _dpo(config: RunConfig) -> dict:
    goal = config.objective
    more = {"label_smoothing": goal.label_smoothing} if goal.loss_type == "robust" else {}
    both = {"loss_type": [goal.loss_type, "sft"], "loss_weights": [1.0, goal.sft_weight]}
    return _referenced(config) | more | (both if goal.sft_weight else {"loss_type": [goal.loss_type]})


def _kto(config: RunConfig) -> dict:
    goal = config.objective
    return _referenced(config) | {
        "desirable_weight": goal.desirable_weight,
        "undesirable_weight": goal.undesirable_weight,
    }


def _referenced(config: RunConfig) -> dict:
    """An adapter is its own reference when it is turned off; for whole models a second copy would take the memory."""
    return {
        "beta": config.objective.beta,
        "max_length": config.train.max_length,
        "precompute_ref_log_probs": config.method.type == "full",
    }


def _orpo(config: RunConfig) -> dict:
    return {
        "beta": config.objective.beta,
        "max_length": config.train.max_length,
        "remove_unused_columns": False,
    }


def _reward(config: RunConfig) -> dict:
    return {"max_length": config.train.max_length}


def _grpo(config: RunConfig) -> dict:
    goal, rows = config.objective, config.eval.per_device_eval_batch_size
    return {
        "beta": goal.beta,
        "num_generations": goal.num_generations,
        "max_completion_length": goal.max_completion_length,
        "temperature": goal.temperature,
        # whole groups of answers, as TRL wants them
        "per_device_eval_batch_size": -(-rows // goal.num_generations) * goal.num_generations,
    }


OWN = {"sft": _sft, "dpo": _dpo, "kto": _kto, "orpo": _orpo, "reward": _reward, "grpo": _grpo}


def _kind(objective: str) -> type[TrainingArguments]:
    """Imported when it is needed: each trainer's module takes its time."""
    if objective == "orpo":
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.orpo import ORPOConfig

        return ORPOConfig
    import trl

    name = "RewardConfig" if objective == "reward" else f"{objective.upper()}Config"
    return getattr(trl, name)


# ---- `advanced` ------------------------------------------------------------------------------------------------------
def _built(kind: type, where: str, own: dict, advanced: dict):
    """`kind(**own, **advanced)`, with every fault of `advanced` by its name."""
    hints = typing.get_type_hints(kind)
    faults = [
        Fault(f"{where}.{name}", shown(value), f"{kind.__name__} takes {_type_name(hints[name])} here.",
              "See docs/settings.md.")
        if name in hints
        else Fault(f"{where}.{name}", shown(value), f"{kind.__name__} has no such argument.", "Take it out.")
        for name, value in advanced.items()
        if name not in hints or not _fits(hints[name], value)
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
