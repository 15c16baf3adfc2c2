"""The training worker: `python -m gemma_tune.workers.train RUN_DIR [--resume-from CHECKPOINT]`, by accelerate launch.

It computes what the folder's config.yaml says and tells it in events. Exit 0: finished, or stopped and kept; 3: a fault
that the user can mend, told in an `error` event; 1: a bug of ours, its traceback in the log; 143: stopped at once.
This module is light, so that a fault of model or data is told before torch is imported.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from gemma_tune import data, hub, support
from gemma_tune.config import RunConfig
from gemma_tune.errors import AccessError, ConfigError, DataError, Fault, GemmaTuneError, RunError, shown
from gemma_tune.runs.checkpoints import is_complete, remove_partial_checkpoints
from gemma_tune.runs.events import EventWriter
from gemma_tune.runs.folder import RunFolder, write_json
from gemma_tune.workers import dataset, startup
from gemma_tune.workers.job import Job

FAULT_EXIT, BUG_EXIT, STOPPED_NOW_EXIT = 3, 1, 143
FULL_DISK_BYTES = 16_000_000  # a write that fails with less than this left failed for lack of space

NO_MEMORY = re.compile(r"allocate memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.I)  # from below torch
ON_HOST_0 = ("metrics", "evaluated", "sample", "report")  # events of the whole run, told once

log = logging.getLogger("gemma_tune.workers.train")


def main(arguments: list[str] | None = None, import_session: Callable[..., ModuleType] | None = None) -> int:
    """The exit code. `import_session` imports the module of the training; by default plainly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--resume-from", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("gemma_tune").setLevel(logging.INFO)
    run = RunFolder(options.run_dir.resolve())
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # of this host: each has a run folder of its own
    write = _writer(run) if first else _nothing
    try:
        return _work(run, options.resume_from, first, write, import_session or _session)
    except GemmaTuneError as error:
        log.error("%s", error)
        write("error", cause=cause_of(error, run.path), faults=[fault.as_dict() for fault in error.faults])
        return FAULT_EXIT
    except Exception as error:  # told as far as it is known; the traceback is for us
        log.exception("The worker failed.")
        if cause := cause_of(error, run.path):
            write("error", cause=cause, faults=[_fault_of(cause, error).as_dict()])
        return BUG_EXIT


def _session(config: RunConfig) -> ModuleType:
    from gemma_tune.workers import session

    return session


def _work(
    run: RunFolder,
    resume_from: Path | None,
    first: bool,
    write: Callable[..., None],
    import_session: Callable[..., ModuleType],
) -> int:
    token = os.environ.get("HF_TOKEN") or None
    config = run.config()
    facts = hub.inspect_model(
        config.model.id, run.provenance().get("model_revision", config.model.revision), token
    )
    write("phase", name="tokenizing")
    if first:
        remove_partial_checkpoints(run.path)
        write_json(run.provenance_path, run.provenance() | {"model_revision": facts.revision})
        try:
            rows = dataset.rows_of(run, config, token, partial(_look_for_stop, run))
            if fault := support.fault_of(config, facts.model_type, images=rows.store.has_images):
                raise ConfigError(fault)
            folder = hub.tokenizer_folder(config.model.id, facts.revision or "main", token)
            dataset.tokens_of(
                rows, config, folder, partial(_look_for_stop, run)
            )  # found in the cache from here on
        except data.Cancelled:
            return _stopped_at_once()
    checkpoint = checked_checkpoint(run, resume_from)
    session = import_session(config)

    from gemma_tune.workers import callbacks, hosts

    if config.devices.num_machines > 1:
        checkpoint = hosts.agreed_checkpoint(run)
    job = Job(run, config, facts, checkpoint, token, write)

    try:
        session.work(job)
    except callbacks.StoppedNow:
        return _stopped_at_once()
    return 0


def _look_for_stop(run: RunFolder, phase: str, done: int, total: int | None) -> None:
    if run.stop_mode() == "now":
        raise data.Cancelled


def _stopped_at_once() -> int:
    log.info("Stopped at once, as asked.")
    return STOPPED_NOW_EXIT


def checked_checkpoint(run: RunFolder, resume_from: Path | None) -> Path | None:
    """Only a whole checkpoint that this run wrote is ever read: optimizer.pt is a pickle."""
    if resume_from is None:
        return None
    path = (run.path / resume_from).resolve()
    if path.parent != run.checkpoints_dir or not is_complete(path):
        raise RunError.at(
            "checkpoint", str(resume_from), "This is not a whole checkpoint of the run.",
            "Resume the run without naming one: its last whole checkpoint is found.",
        )  # fmt: skip
    return path


def cause_of(error: Exception, run_path: Path) -> str | None:
    """The event's word for what went wrong; None where it is a bug."""
    if getattr(error, "cause", None):
        return error.cause
    if isinstance(error, AccessError):
        return "licence" if "licen" in str(error).lower() else "token"
    if isinstance(error, DataError):
        return "data"
    if isinstance(error, GemmaTuneError):
        return "config"
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or NO_MEMORY.search(str(error))
    ):
        return "out_of_memory"
    if getattr(error, "errno", None) == 28 or shutil.disk_usage(run_path).free < FULL_DISK_BYTES:
        return "disk"
    return None


def _fault_of(cause: str, error: Exception) -> Fault:
    if cause == "disk":
        return Fault("disk", shown(str(error)), "The disk is full.", "Free some space, then resume the run.")
    return Fault(
        "memory", shown(str(error)), "The training does not fit into memory.",
        "Lower train.per_device_train_batch_size (and raise gradient_accumulation_steps alike) or train.max_length, "
        "turn on activation_checkpointing, use LoRA, or choose a smaller model.",
    )  # fmt: skip


def _writer(run: RunFolder) -> Callable[..., None]:
    """Writes events into this host's folder; on a host other than the first without those of the whole run."""
    write = EventWriter(run.path, f"worker-{os.getpid()}").write
    if os.environ.get("RANK", "0") == "0":
        return write
    return lambda kind, **fields: None if kind in ON_HOST_0 else write(kind, **fields)


def _nothing(kind: str, **fields: object) -> None:
    """What the other ranks of a host write."""


if __name__ == "__main__":
    startup.leave(main(import_session=startup.import_session))
