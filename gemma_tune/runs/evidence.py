"""What is known at the end of a run, gathered from its folder for the verdict."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_tune.runs import hardware
from gemma_tune.runs.checkpoints import complete_checkpoints
from gemma_tune.runs.events import read_events
from gemma_tune.runs.folder import RunFolder, read_json
from gemma_tune.runs.folding import fold
from gemma_tune.runs.state import State

LOG_LINES = 200  # of the log's end are searched for a cause
LINE_BYTES = 500  # more than most lines have


@dataclass(frozen=True)
class Evidence:
    state: State  # the fold over the run's events
    exit_code: int | None  # of the launcher; None when it could not be waited for
    stop_mode: str | None  # what was asked for
    forced: bool  # whether we ended the processes ourselves
    log: Sequence[str]  # the last LOG_LINES lines of this attempt
    free_bytes: int | None  # on the run's disk; None when unknown
    checkpoint_step: int  # of the last complete checkpoint, 0 without one
    oom_kills: int = 0  # processes that the kernel ended for lack of memory since the worker was started


def gather(folder: RunFolder, exit_code: int | None, *, forced: bool = False) -> Evidence:
    record = read_json(folder.process_path) or {}
    return Evidence(
        state=fold(read_events(folder.events_path)[0]),
        exit_code=exit_code,
        stop_mode=folder.stop_mode(),
        forced=forced,
        log=log_lines(folder.log_path, record.get("log_offset", 0)),
        free_bytes=shutil.disk_usage(folder.path).free,
        checkpoint_step=max((step for step, _ in complete_checkpoints(folder.path)), default=0),
        oom_kills=_kills_since(record.get("oom_kills")),
    )


def _kills_since(earlier: int | None) -> int:
    now = hardware.oom_kills()
    return 0 if None in (earlier, now) else max(now - earlier, 0)


def log_lines(path: Path, offset: int = 0) -> list[str]:
    """The last lines from byte `offset` on; of a progress bar's line only its last state."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(offset, size - LINE_BYTES * LOG_LINES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line.strip()][-LOG_LINES:]
