"""Makes a run fit into the memory that is there: the least harmful change first, each with what it costs. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gemma_tune.config import RunConfig, parse
from gemma_tune.errors import ConfigError
from gemma_tune.forecast import Device, Forecast, Lengths, forecast
from gemma_tune.geometry import Geometry
from gemma_tune.objectives import OBJECTIVES

BATCH, ACCUMULATION = "train.per_device_train_batch_size", "train.gradient_accumulation_steps"
VALIDATION_BATCH, LENGTH = "eval.per_device_eval_batch_size", "train.max_length"
SHORTEST = 128  # tokens; below that little is left of an answer
WORTH_SAVING = 0.03  # of the peak: less is no way out
LEAST_ROWS = {"kto": 2}  # KTO compares the rows of a batch

Changes = dict[str, Any]  # new values by dotted setting


@dataclass(frozen=True)
class Choice:
    """One way to need less memory. `why` it helps and what it `costs`, a sentence each; `forecast` with the changes."""

    changes: Changes
    why: str
    costs: str
    forecast: Forecast


@dataclass(frozen=True)
class _Way:
    changes: Changes
    why: str
    costs: str


def make_it_fit(
    config: RunConfig, geometry: Geometry, device: Device, lengths: Lengths | None = None
) -> list[Choice]:
    """Single changes that suffice, the least harmful first; then the least that suffices together, where that differs.

    Where the run fits already: the single changes that save something. Nothing that the configuration refuses.
    """
    today = forecast(config, geometry, device, lengths)

    def tried(way: _Way) -> Choice | None:
        changed = _changed(config, way.changes)
        if changed is None:
            return None
        after = forecast(changed, geometry, device, lengths)
        saves = after.peak_bytes <= (1 - WORTH_SAVING) * today.peak_bytes
        return Choice(way.changes, way.why, way.costs, after) if after.fits and saves else None

    singles = []
    for kind in _kinds(config, device, lengths):
        found = next((choice for way in kind if (choice := tried(way))), None)
        singles += [found] if found else []
    if today.fits:
        return singles
    together = next((choice for way in _ladder(config, device, lengths) if (choice := tried(way))), None)
    known = [choice.changes for choice in singles]
    return [*singles, together] if together and together.changes not in known else singles


def _changed(config: RunConfig, changes: Changes) -> RunConfig | None:
    values = config.model_dump()
    for dotted, value in changes.items():
        section, name = dotted.split(".")
        values[section][name] = value
    try:
        return parse(values)
    except ConfigError:
        return None


def _kinds(config: RunConfig, device: Device, lengths: Lengths | None) -> list[list[_Way]]:
    """The kinds of change, the least harmful first; of each its steps, the smallest first."""
    return [
        list(_smaller_batches(config)),
        list(_checkpointing(config)),
        list(_optimizer(config)),
        list(_method(config)),
        list(_shorter(config, lengths)),
        list(_shared(config, device)),
    ]


def _ladder(config: RunConfig, device: Device, lengths: Lengths | None) -> Iterator[_Way]:
    """Rung by rung more is changed, and on each the batch stays as large as it can."""
    batches, *rungs = _kinds(config, device, lengths)
    unchanged = _Way({}, "", "")
    taken: list[_Way] = []
    for rung in rungs:
        if not rung:
            continue
        for step in rung:
            for batch in [unchanged, *batches]:
                yield _joined([*taken, step, batch])
        taken.append(rung[-1])


def _joined(ways: list[_Way]) -> _Way:
    ways = [way for way in ways if way.changes]
    changes = {name: value for way in ways for name, value in way.changes.items()}
    return _Way(changes, " ".join(way.why for way in ways), " ".join(way.costs for way in ways))


# ---- the ways --------------------------------------------------------------------------------------------------------
def _smaller_batches(config: RunConfig) -> Iterator[_Way]:
    rows, accumulation = config.train.per_device_train_batch_size, config.train.gradient_accumulation_steps
    validation = config.eval.per_device_eval_batch_size
    while rows % 2 == 0 and rows // 2 >= LEAST_ROWS.get(config.objective.type, 1):
        rows, accumulation, validation = rows // 2, accumulation * 2, max(validation // 2, 1)
        yield _Way(
            {BATCH: rows, ACCUMULATION: accumulation, VALIDATION_BATCH: validation},
            f"{rows} {'row' if rows == 1 else 'rows'} at a time, {accumulation} times per step.",
            "The steps compute the same; on a GPU each takes a little longer.",
        )


def _checkpointing(config: RunConfig) -> Iterator[_Way]:
    if not config.train.activation_checkpointing:
        yield _Way(
            {"train.activation_checkpointing": True},
            "Keeps the inputs of the layers only, and computes the rest again when it is needed.",
            "The same result, about a third more time.",
        )
    elif config.train.selective_checkpointing:
        yield _Way(
            {"train.selective_checkpointing": False},
            "Gradient checkpointing keeps no results of the layers.",
            "The same result, about a tenth more time.",
        )


def _optimizer(config: RunConfig) -> Iterator[_Way]:
    if config.train.optim in ("adamw_torch", "adamw_torch_fused"):
        yield _Way(
            {"train.optim": "adamw_8bit"},
            "Keeps Adam's two averages in 8 bits.",
            "The curve differs a little; the result is usually as good.",
        )


def _method(config: RunConfig) -> Iterator[_Way]:
    """LoRA's rate is its own, since it wants about ten times the full one."""
    if config.method.type == "full":
        rate = OBJECTIVES[config.objective.type].adapter["train.learning_rate"].value
        base = {"train.learning_rate": rate}
        yield _Way(
            {"method.type": "lora"} | base,
            "Trains a small adapter in place of every weight: no gradient and no optimizer state for the rest.",
            "Learns less new knowledge; formats, styles and tasks as well.",
        )
    else:
        base = {}
    if config.method.type != "qlora":
        yield _Way(
            {"method.type": "qlora", "method.quantization": "nf4"} | base,
            "Holds the frozen weights in about half a byte each.",
            "Slower steps, and a base that is a little less exact.",
        )


def _shorter(config: RunConfig, lengths: Lengths | None) -> Iterator[_Way]:
    limit = config.train.max_length
    longest = min(limit, lengths.longest) if lengths else limit
    while limit // 2 >= SHORTEST:
        limit //= 2
        if limit < longest:
            yield _Way({LENGTH: limit}, f"Reads at most {limit:,} tokens of a row.", _cut(limit, lengths))


def _cut(limit: int, lengths: Lengths | None) -> str:
    """How many rows lose their end."""
    if lengths is None:
        return "Longer rows lose their end."
    longer = sum(tokens > limit for tokens in lengths.longest_rows)
    known = longer < len(lengths.longest_rows) or longer == lengths.rows
    if not lengths.longest_rows:
        return "Longer rows lose their end; the data check counts them."
    some = f"{longer:,}" if known else f"At least {longer:,}"
    return f"{some} of {lengths.rows:,} rows lose their end."


def _shared(config: RunConfig, device: Device) -> Iterator[_Way]:
    """The model lies in parts on all GPUs; the rows of a step stay as many."""
    devices, accumulation = config.devices, config.train.gradient_accumulation_steps
    if device.kind != "cuda" or device.count < 2 or devices.distributed_type == "fsdp":
        return
    more = device.count // devices.num_processes
    rows = config.train.per_device_train_batch_size
    if accumulation % more == 0:
        same_rows = {ACCUMULATION: accumulation // more}
    elif rows % more == 0:
        same_rows = {BATCH: rows // more}
    else:
        return
    yield _Way(
        {"devices.distributed_type": "fsdp", "devices.num_processes": devices.num_processes * more, "devices.gpu_ids": "",
         **same_rows},
        f"Shares weights, gradients and optimizer between {device.count} GPUs.",
        "The GPUs wait for each other's weights: slower where no fast link joins them.",
    )  # fmt: skip
