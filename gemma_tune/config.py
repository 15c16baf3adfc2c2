"""The one source of every setting: default, range, unit, help and place in the form.

The form, the YAML in `configs/`, the command line's dotted overrides, validation and `docs/settings.md` derive from the
models below. Names are those of Transformers, PEFT and TRL. Secrets have no place here.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from gemma_tune.errors import ConfigError, Fault, shown

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,59}")

# Further arguments that `advanced` may pass through: no paths, no code, no reporting targets.
ADVANCED_SFT = frozenset(
    [
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "optim_args",
        "lr_scheduler_kwargs",
        "dataloader_num_workers",
        "dataloader_drop_last",
        "data_seed",
        "loss_type",
        "tf32",
        "torch_compile",
        "torch_empty_cache_steps",
        "packing",
        "packing_strategy",
        "padding_free",
        "pad_to_multiple_of",
        "eval_accumulation_steps",
        "eval_delay",
        "train_sampling_strategy",
        "label_smoothing_factor",
        "auto_find_batch_size",
        "full_determinism",
    ]
)
ADVANCED_LORA = frozenset(
    [
        "use_dora",
        "use_rslora",
        "bias",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "exclude_modules",
        "modules_to_save",
        "target_modules",
    ]
)


def setting(default: Any, label: str, help: str, *, unit: str = "", front: bool = False, **rules: Any) -> Any:
    """One setting. `front`: stands in the form before the fold; `rules`: pydantic's (gt, ge, lt, le, only)."""
    only = rules.pop("only", None)  # the method type for which it applies
    extra = {"label": label, "unit": unit, "front": front, "only": only}
    return Field(default, description=help, json_schema_extra=extra, **rules)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), validate_default=True)


class ModelSection(Section):
    id: str = setting("pocket", "Model", "A model of the catalogue, a Hub id or a local folder.", front=True)
    revision: str = setting("main", "Revision", "Branch, tag or commit of the model on the Hub.")
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Weights",
        "Number format of the loaded weights; auto is bfloat16 on a GPU, float32 without one.",
    )


Schema = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "preference", "kto", "text"]
Fix = Literal["strip", "drop_empty_turns", "merge_turns"]


class MixSource(BaseModel):
    """One more source of a run, with how its rows are read."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    source: str = Field(min_length=1)
    subset: str = ""
    split: str = "train"
    format: Schema = "auto"
    columns: dict[str, str] = {}
    weight: float = Field(1.0, gt=0, le=100)


class DataSection(Section):
    source: str = setting(
        "example:pocket-json",
        "Data",
        "example:NAME, hub:OWNER/NAME, tfds:NAME, or the path of a file, a zip file or a folder.",
        front=True,
    )
    subset: str = setting("", "Subset", "Configuration of a Hub data set; empty for its default.")
    split: str = setting(
        "train", "Split", "Split of a Hub or TFDS data set; train[:1000] and train[10%:20%] take a part."
    )
    format: Schema = setting("auto", "Schema", "How a row is read; auto recognises it from the columns.")
    columns: dict[str, str] = setting(
        {}, "Columns", "Which column holds which field, such as prompt: question. Empty: by their names."
    )
    fixes: list[Fix] = setting(
        [],
        "Fixes",
        "What is mended in rows: strip blanks around turns, drop_empty_turns, merge_turns of one role.",
    )
    weight: float = setting(
        1.0, "Weight", "How often each row is learned per epoch: 0.5 takes half of them, 2 each twice.",
        gt=0, le=100, unit="times",
    )  # fmt: skip
    mix: list[MixSource] = setting(
        [],
        "Mix",
        "Further sources of the same run, each with source, subset, split, format, columns, weight.",
    )
    validation_source: str = setting(
        "",
        "Validation data",
        "A source of its own for validation; empty splits some off (examples bring theirs).",
    )
    validation_fraction: float = setting(
        0.1, "Validation share", "Share of the rows held back to measure progress.", ge=0, le=0.5, front=True
    )
    validation_rows: int = setting(
        0, "Validation count", "So many rows held back in place of a share; 0: the share counts.",
        ge=0, le=10_000_000, unit="rows",
    )  # fmt: skip
    split_column: str = setting(
        "", "Split column", "A column that says train, or validation, dev, eval or test; empty: none."
    )
    split_seed: int = setting(
        42, "Split seed", "The same seed splits the same data alike.", ge=0, le=2**31 - 1
    )


class MethodSection(Section):
    type: Literal["lora", "full"] = setting(
        "lora", "Method", "LoRA trains a small adapter; full trains every weight.", front=True
    )
    r: int = setting(16, "LoRA rank", "Size of the adapter.", ge=1, le=512, front=True, only="lora")
    lora_alpha: int = setting(
        32,
        "LoRA alpha",
        "Strength of the adapter; twice the rank is usual.",
        ge=1,
        le=2048,
        front=True,
        only="lora",
    )
    lora_dropout: float = setting(
        0.0, "LoRA dropout", "Share of adapter inputs left out at random.", ge=0, le=0.9, only="lora"
    )
    target_modules: Literal["all-linear", "attention"] = setting(
        "all-linear", "LoRA layers", "Which linear layers of the language model get an adapter.", only="lora"
    )


class TrainSection(Section):
    num_train_epochs: float = setting(
        3.0, "Epochs", "How often the model sees every row.", gt=0, le=1000, unit="passes", front=True
    )
    max_steps: int = setting(
        -1,
        "Maximum steps",
        "Stops after so many steps whatever the epochs; -1: no limit.",
        ge=-1,
        le=10_000_000,
    )
    per_device_train_batch_size: int = setting(
        8, "Batch size", "Rows per step on one device.", ge=1, le=1024, unit="rows", front=True
    )
    gradient_accumulation_steps: int = setting(
        1,
        "Gradient accumulation",
        "Batches added up before the weights change.",
        ge=1,
        le=1024,
        unit="batches",
    )
    learning_rate: float = setting(
        2e-4, "Learning rate", "Size of each change. Full fine-tuning wants about a tenth of LoRA's.",
        gt=0, le=0.1, front=True,
    )  # fmt: skip
    max_length: int = setting(
        1024,
        "Maximum length",
        "Longer rows are cut at the end.",
        ge=16,
        le=131_072,
        unit="tokens",
        front=True,
    )
    seed: int = setting(42, "Seed", "The same seed gives the same run.", ge=0, le=2**31 - 1, front=True)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = setting(
        "linear", "Schedule", "How the learning rate falls over the run."
    )
    warmup_steps: float = setting(
        0.03, "Warm-up", "Steps of rising learning rate; below 1 it is a share of the run.", ge=0, le=100_000
    )
    weight_decay: float = setting(0.0, "Weight decay", "Pull of the weights towards zero.", ge=0, le=1)
    max_grad_norm: float = setting(
        1.0, "Gradient clipping", "Longest gradient allowed; 0: no limit.", ge=0, le=1000
    )
    optim: Literal["adamw_torch_fused", "adamw_torch", "adafactor", "sgd"] = setting(
        "adamw_torch_fused", "Optimizer", "Adafactor needs least memory."
    )
    activation_checkpointing: bool = setting(
        True, "Gradient checkpointing", "Less memory for about a third more time."
    )
    bf16: Literal["auto", "on", "off"] = setting(
        "auto", "bfloat16 arithmetic", "Mixed precision; auto is on where a GPU supports it."
    )
    assistant_only_loss: bool = setting(
        True, "Learn answers only", "Only the assistant's words are learned, not the questions."
    )
    neftune_noise_alpha: float = setting(
        0.0,
        "NEFTune noise",
        "Noise on the embeddings against overfitting; 5 is usual, 0 is off.",
        ge=0,
        le=100,
    )
    logging_steps: int = setting(
        1, "Log every", "Steps between two points of the curve.", ge=1, le=10_000, unit="steps"
    )


class EvalSection(Section):
    eval_steps: float = setting(
        0.1,
        "Evaluate every",
        "Steps between two validations; below 1 it is a share of the run; 0: never.",
        ge=0,
        le=1e6,
    )
    per_device_eval_batch_size: int = setting(
        8, "Validation batch size", "Rows per validation batch.", ge=1, le=1024, unit="rows"
    )
    exact_match_rows: int = setting(
        64, "Report size", "Validation rows that base and tuned both answer at the end; 0: no report.",
        ge=0, le=10_000, unit="rows",
    )  # fmt: skip
    max_new_tokens: int = setting(
        128, "Report answer length", "Longest answer in that report.", ge=1, le=8192, unit="tokens"
    )


class OutputSection(Section):
    name: str = setting("my-gemma", "Run name", "Letters, digits, space, dot, dash, underscore.", front=True)
    save_steps: float = setting(
        0.25, "Save every", "Steps between two checkpoints; below 1 it is a share of the run.", gt=0, le=1e6
    )
    save_total_limit: int = setting(2, "Checkpoints kept", "Older ones are removed.", ge=1, le=100)


class AdvancedSection(Section):
    sft: dict[str, Any] = setting({}, "SFTConfig", "Further arguments of TRL's SFTConfig.")
    lora: dict[str, Any] = setting({}, "LoraConfig", "Further arguments of PEFT's LoraConfig.", only="lora")


class RunConfig(Section):
    """Everything that decides what a run computes."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    method: MethodSection = MethodSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    output: OutputSection = OutputSection()
    advanced: AdvancedSection = AdvancedSection()

    def to_yaml(self, *, complete: bool = False) -> str:
        """YAML with only what differs from the defaults, or complete."""
        values = self.model_dump() if complete else self.model_dump(exclude_defaults=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else "{}\n"

    def digest(self) -> str:
        """16 hex digits that are equal exactly where two configurations are."""
        text = json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings() -> Iterator[tuple[str, FieldInfo]]:
    """Every setting in order, as ("train.learning_rate", its field)."""
    for section_name, section in RunConfig.model_fields.items():
        for name, info in section.annotation.model_fields.items():
            yield f"{section_name}.{name}", info


def field_of(dotted: str) -> FieldInfo:
    section, name = dotted.split(".")
    return RunConfig.model_fields[section].annotation.model_fields[name]


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
    for section, allowed in (("sft", ADVANCED_SFT), ("lora", ADVANCED_LORA)):
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
