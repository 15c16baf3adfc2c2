"""What a run changes when it ran out of memory: smaller micro-batches, each step of training the same as before.

The rows of one optimizer step stay the same ones, so the loss curve does too; only more of them wait for their turn.
What was changed lies in the run folder over config.yaml, and counts for every later attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemma_tune.runs.evidence import Evidence
from gemma_tune.runs.folder import RunFolder, write_json
from gemma_tune.runs.verdict import judge

if TYPE_CHECKING:
    from gemma_tune.config import RunConfig

BATCH = "train.per_device_train_batch_size"
ACCUMULATION = "train.gradient_accumulation_steps"
CHECKPOINTING = "train.activation_checkpointing"
SELECTIVE = "train.selective_checkpointing"
VALIDATION_BATCH = "eval.per_device_eval_batch_size"

SEVERAL_HOSTS = {
    "way_out": "Lower train.per_device_train_batch_size, and raise gradient_accumulation_steps alike, on every host, then "
    "start the run on all of them again.",
}
EXHAUSTED = {  # in place of the advice that was followed already
    "message": "The memory was not enough, even for one row at a time with gradient checkpointing.",
    "way_out": "Lower the maximum length, use LoRA or QLoRA, choose a smaller model, or a device with more memory.",
}


def shrink(folder: RunFolder, evidence: Evidence) -> dict[str, Any] | None:
    """After an attempt that ran out of memory: writes smaller settings into the folder, for the next one.

    Gives the fields of the warning that tells of them; None where there is no next attempt.
    """
    if not _ran_out(evidence):
        return None
    before = folder.config()
    changes = smaller(before) if _may_go_on(before) else None
    if changes is None:
        return None
    write_json(folder.overrides_path, folder.overrides() | changes)
    changed = {name: {"from": _value(before, name), "to": value} for name, value in changes.items()}
    return {"cause": "out_of_memory", "changed": changed, "message": _message(before, changes)}


def advice(folder: RunFolder, evidence: Evidence) -> dict[str, str]:
    """What the end says in place of the usual words, where those were followed already or would be half the truth."""
    if not _ran_out(evidence):
        return {}
    config = folder.config()
    if config.devices.num_machines > 1:
        return SEVERAL_HOSTS
    return EXHAUSTED if _may_go_on(config) and smaller(config) is None else {}


def smaller(config: RunConfig) -> dict[str, Any] | None:
    """The least change that needs less memory, as new values by dotted name. None: nothing is left to change.

    The batch is divided by its smallest factor (8 → 4, 3 → 1) and the accumulation multiplied by it.
    """
    from gemma_tune.config import bounds, field_of

    train, rows = config.train, config.train.per_device_train_batch_size
    factor = _smallest_factor(rows)
    accumulation = train.gradient_accumulation_steps * factor
    changes: dict[str, Any] = {}
    if (
        rows // factor >= smallest_batch(config)
        and rows > 1
        and accumulation <= bounds(field_of(ACCUMULATION))["le"]
    ):
        changes = {BATCH: rows // factor, ACCUMULATION: accumulation}
    elif not train.activation_checkpointing:
        changes = {CHECKPOINTING: True}
    elif train.selective_checkpointing:
        changes = {SELECTIVE: False}
    validation_rows = config.eval.per_device_eval_batch_size
    if validation_rows > 1:
        changes[VALIDATION_BATCH] = validation_rows // factor if rows > 1 else 1
        changes[VALIDATION_BATCH] = max(changes[VALIDATION_BATCH], 1)
    return changes or None


def smallest_batch(config: RunConfig) -> int:
    """KTO compares the answers of a micro-batch with each other's prompts, so it needs two."""
    return 2 if config.objective.type == "kto" else 1


def _ran_out(evidence: Evidence) -> bool:
    """While it trained: an attempt that cannot even load the model gains nothing from a smaller batch."""
    return evidence.state.plan is not None and judge(evidence).get("cause") == "out_of_memory"


def _may_go_on(config: RunConfig) -> bool:
    """Several hosts must change alike, and each has a supervisor of its own."""
    return config.train.survive_out_of_memory and config.devices.num_machines == 1


def _message(before: RunConfig, changes: dict[str, Any]) -> str:
    train = before.train
    rows, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    if BATCH in changes:
        what = (
            f"the batch is now {changes[BATCH]} × {changes[ACCUMULATION]} accumulated in place of {rows} × {accumulation}, "
            f"still {rows * accumulation} rows per step and device"
        )
        if before.objective.type == "kto":
            what += "; KTO's curve changes a little, since it compares the answers within a batch"
    elif CHECKPOINTING in changes:
        what = "gradient checkpointing is now on, which computes the same in more time"
    elif SELECTIVE in changes:
        what = "gradient checkpointing keeps no costly results any more, which computes the same in more time"
    else:
        what = "validation now takes one row at a time"
    return f"The memory was not enough. The run goes on by itself: {what}."


def _smallest_factor(number: int) -> int:
    return next((factor for factor in range(2, number + 1) if number % factor == 0), 1)


def _value(config: RunConfig, dotted: str) -> Any:
    section, name = dotted.split(".")
    return getattr(getattr(config, section), name)
