"""The one source of every setting: default, range, unit, help and place in the form.

The form, the YAML in `configs/`, the command line's dotted overrides, validation and `docs/settings.md` derive from the
models below. Names are those of Transformers, PEFT and TRL. Secrets have no place here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from gemma_tune import support
from gemma_tune.errors import ConfigError, Fault, shown
from gemma_tune.sections import ADVANCED_LORA, ADVANCED_OBJECTIVE, ADVANCED_TRAINER, RunConfig

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,59}")


def settings() -> Iterator[tuple[str, FieldInfo]]:
    """Every setting in order, as ("train.learning_rate", its field)."""
    for section_name, section in RunConfig.model_fields.items():
        for name, info in section.annotation.model_fields.items():
            yield f"{section_name}.{name}", info


def field_of(dotted: str) -> FieldInfo:
    section, name = dotted.split(".")
    return RunConfig.model_fields[section].annotation.model_fields[name]


def applies(dotted: str, values: Mapping[str, Any]) -> bool:
    """Whether a setting has any effect beside the other ones, given as {"method.type": "lora", …}; default where absent."""
    return all(
        values.get(name, field_of(name).default) in wanted
        for name, wanted in field_of(dotted).json_schema_extra["only"].items()
    )


def flat(config: RunConfig) -> dict[str, Any]:
    """Every setting's value by its dotted name."""
    return {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name, _ in settings()}


def bounds(info: FieldInfo) -> dict[str, float]:
    """The numeric rules of a field: any of gt, ge, lt, le."""
    return {
        rule: getattr(meta, rule)
        for meta in info.metadata
        for rule in ("gt", "ge", "lt", "le")
        if getattr(meta, rule, None) is not None
    }


def parse(values: Mapping[str, Any]) -> RunConfig:
    """Validate nested values. Raises ConfigError with every fault at once."""
    if not isinstance(values, Mapping):
        raise ConfigError.at(
            "configuration", values, "It must be a mapping of sections.", "Begin with 'model:'."
        )
    try:
        config = RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(*(_fault(item) for item in error.errors())) from None
    if faults := cross_faults(config):
        raise ConfigError(*faults)
    return config


def load(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """A YAML file with `section.name=value` overrides on top."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError.at(
            str(path), None, "There is no such file.", "Give the path of a YAML file."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError.at(
            str(path), error, "The file cannot be read as UTF-8 text.", "Check it."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError.at(
            str(path), error, "The file is not valid YAML.", "Mend the line named."
        ) from None
    return parse(apply_overrides(values, overrides or []))


def apply_overrides(values: Any, overrides: list[str]) -> Any:
    """Dotted overrides onto nested values; a value is read as YAML, with 1e-4 as a number."""
    if not isinstance(values, dict):
        return values
    result = {key: dict(section) if isinstance(section, dict) else section for key, section in values.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.split(".")
        if not equals or len(parts) < 2:
            raise ConfigError.at(
                override, None, "An override is section.name=value.", "train.seed=1, for instance."
            )
        section = result.setdefault(parts[0], {})
        for part in parts[1:-1]:
            section = section.setdefault(part, {})
        section[parts[-1]] = _scalar(text)
    return result


def cross_faults(config: RunConfig) -> list[Fault]:
    """Rules over one field that pydantic cannot word, and over several."""
    faults = []
    if not RUN_NAME.fullmatch(config.output.name):
        faults.append(
            Fault(
                "output.name",
                shown(config.output.name),
                "A run name has 1 to 60 letters, digits, spaces, dots, dashes or underscores and begins with a "
                "letter or digit.",
                "Choose such a name, for instance my-gemma.",
            )
        )
    trainer = ADVANCED_TRAINER | ADVANCED_OBJECTIVE[config.objective.type]
    for section, allowed in (("trainer", trainer), ("lora", ADVANCED_LORA)):
        for name in getattr(config.advanced, section):
            if name not in allowed:
                faults.append(
                    Fault(f"advanced.{section}.{name}", "", "This argument cannot be passed through.",
                          _did_you_mean(name, sorted(allowed)))
                )  # fmt: skip
    if not config.model.id.strip():
        faults.append(Fault("model.id", "", "A model is needed.", "Choose one, for instance pocket."))
    if not config.data.source.strip():
        faults.append(
            Fault("data.source", "", "A data source is needed.", "Upload a file or choose an example.")
        )
    return faults + _combinations(config)


def _combinations(config: RunConfig) -> list[Fault]:
    """What cannot be asked for together."""
    unsupported = support.fault_of(config, model_type="")
    return [*([unsupported] if unsupported else []), *_learning_faults(config), *_device_faults(config)]


def _learning_faults(config: RunConfig) -> list[Fault]:
    goal, train, faults = config.objective, config.train, []
    rows = train.per_device_train_batch_size
    if goal.type == "grpo" and goal.reward == "regex":
        faults += _pattern_faults(goal.reward_pattern)
    batch = rows * train.gradient_accumulation_steps * config.devices.num_processes
    if goal.type == "grpo" and batch % goal.num_generations:
        faults.append(
            Fault("objective.num_generations", shown(goal.num_generations),
                  f"It must divide the {batch} answers of a step (batch size × accumulation × processes).",
                  "Choose a batch size that is a multiple of it.")
        )  # fmt: skip
    if goal.type == "kto" and rows < 2:
        faults.append(
            Fault("train.per_device_train_batch_size", shown(rows),
                  "KTO compares the answers of a batch, so it needs at least two.", "Set it to 2 or more.")
        )  # fmt: skip
    for name in ("early_stopping_patience", "load_best_model_at_end"):
        if (value := getattr(config.eval, name)) and not config.eval.eval_steps:
            faults.append(
                Fault(f"eval.{name}", shown(value), "It needs validations, and there are none.",
                      "Set eval.eval_steps, for instance to 0.1.")
            )  # fmt: skip
    return faults


def _pattern_faults(pattern: str) -> list[Fault]:
    where = "objective.reward_pattern"
    if not pattern:
        return [Fault(where, shown(""), "The reward regex needs a pattern.", r"Write one, for instance \d+.")]
    try:
        re.compile(pattern)
    except re.error as error:
        return [Fault(where, shown(pattern), f"This is no regular expression: {error}.", "Mend it.")]
    return []


def _device_faults(config: RunConfig) -> list[Fault]:
    devices, faults = config.devices, []

    def refuse(name: str, rule: str, way_out: str) -> None:
        faults.append(Fault(f"devices.{name}", shown(getattr(devices, name)), rule, way_out))

    if config.method.type == "qlora" and devices.distributed_type != "ddp" and devices.num_processes > 1:
        refuse("distributed_type", "A quantized base is not shared out between GPUs here.",
               "Choose ddp, or the method lora.")  # fmt: skip
    train = config.train
    if devices.is_zero_3 and train.activation_checkpointing and train.selective_checkpointing:
        refuse("zero_stage", "ZeRO stage 3 cannot keep single results of a layer.",
               "Turn train.selective_checkpointing off, or set it to 2.")  # fmt: skip
    if devices.num_machines > 1 and not devices.main_process_ip:
        refuse(
            "main_process_ip",
            "Several hosts need the address of host 0.",
            "Write its address, such as 10.0.0.1.",
        )
    if devices.machine_rank >= devices.num_machines:
        rule = f"With {devices.num_machines} hosts it is below {devices.num_machines}."
        refuse("machine_rank", rule, "Count from 0.")
    if devices.gpu_ids and not re.fullmatch(r"\d+(,\d+)*", devices.gpu_ids):
        refuse("gpu_ids", "GPUs are numbers with commas between them.", "Write 0,1 for the first two.")
    elif devices.gpu_ids and len(set(devices.gpu_ids.split(","))) != devices.num_processes:
        rule = f"There is one process for each GPU, and {devices.num_processes} processes are asked for."
        refuse("gpu_ids", rule, "Name as many GPUs as processes.")
    return faults


def range_text(dotted: str) -> str:
    """The rule of a setting in words: 'a number above 0 and at most 0.1'."""
    info = field_of(dotted)
    choices = get_args(info.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return "one of " + ", ".join(choices)
    kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(info.annotation)
    if get_origin(info.annotation) is list:
        inner = get_args(get_args(info.annotation)[0])
        kind = "a list" + (f" of {', '.join(inner)}" if inner else "")
    kind = kind or "a mapping"
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    limits = [
        f"{words[rule]} {value:,g}" if value < 1e6 else f"{words[rule]} {value:,}"
        for rule, value in bounds(info).items()
    ]
    return f"{kind} {' and '.join(limits)}".strip()


def short_range(dotted: str) -> str:
    """The numeric range of a setting in a few words, '1 to 1,024' or 'above 0, up to 0.1'; empty without one."""
    limits = bounds(field_of(dotted))
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if low is None or high is None or high >= 2**31 - 1:
        return ""
    return f"above {low:,.10g}, up to {high:,.10g}" if "gt" in limits else f"{low:,.10g} to {high:,.10g}"


def _fault(item: Mapping[str, Any]) -> Fault:
    where = ".".join(str(part) for part in item["loc"]) or "configuration"
    known = dict(settings())
    if item["type"] == "extra_forbidden":
        sections = list(RunConfig.model_fields)
        names = list(known) if "." in where else sections
        return Fault(where, shown(item["input"]), "There is no such setting.", _did_you_mean(where, names))
    if ".".join(where.split(".")[:2]) == "data.fixes":
        where = "data.fixes"
    if where in known:
        info = known[where]
        unit = info.json_schema_extra["unit"]
        rule = f"{info.json_schema_extra['label']} must be {range_text(where)}{' ' + unit if unit else ''}."
        return Fault(where, shown(item["input"]), rule, f"The default is {info.default}.")
    return Fault(where, shown(item["input"]), item["msg"] + ".", "See docs/settings.md.")


def _did_you_mean(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else "See docs/settings.md for what there is."


def _scalar(text: str) -> Any:
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text):
        return float(text)  # YAML 1.1 reads 1e-4 as text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
