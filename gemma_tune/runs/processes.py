"""Which processes belong to a run, and how they are ended. Nothing is found or killed by its name.

A process is known by its pid, its start time and the boot that it lives in. All processes of a run, grandchildren in
sessions of their own included, carry the run's folder in the variable RUN_VARIABLE of their environment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

RUN_VARIABLE = "GEMMA_TUNE_RUN"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CREATED_TOLERANCE_SECONDS = 2.0  # psutil adds the boot time, which shifts when the clock is set
KILL_SECONDS = 30.0  # a killed process can hang in the kernel (a driver, a network disk)
POLL_SECONDS = 0.05

logger = logging.getLogger(__name__)


def identity(pid: int) -> dict[str, Any]:
    """What to write down in order to know this process, or a child that has just ended, again."""
    process = psutil.Process(pid)
    try:
        command = process.cmdline()
    except psutil.ZombieProcess:
        command = []
    return {"pid": pid, "created": process.create_time(), "boot": _boot_id(), "cmdline": command}


def is_alive(known: dict[str, Any] | None) -> bool:
    """Whether the very process that was written down still runs; a zombie does not."""
    if not known or known.get("boot") != _boot_id():
        return False
    try:
        process = psutil.Process(known["pid"])
        same = abs(process.create_time() - known["created"]) < CREATED_TOLERANCE_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_processes(run_path: Path) -> list[psutil.Process]:
    """Every living process that the run's supervisor started, directly or not. A few ms per 100 processes."""
    return [process for process in psutil.process_iter() if _belongs(process, str(run_path))]


def descendants(pid: int) -> list[psutil.Process]:
    """The process and all below it; nothing when it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if _lives(process)]


def end_processes(find: Callable[[], list[psutil.Process]], term_seconds: float) -> None:
    """SIGTERM to all that `find` gives, SIGKILL to what is left after `term_seconds`, until nothing is left."""
    _signal(find(), psutil.Process.terminate)
    if _wait_until_none(find, term_seconds):
        return
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        _signal(find(), psutil.Process.kill)  # again and again: one may have forked meanwhile
        if _wait_until_none(find, 0.5):
            return
    logger.error("still there %.0f s after SIGKILL: %s", KILL_SECONDS, find())


def _wait_until_none(find: Callable[[], list[psutil.Process]], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while find():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _signal(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            send(process)  # psutil checks the start time first: a reused pid is never hit
        except psutil.NoSuchProcess:
            logger.info("%s had ended by itself", process.pid)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _belongs(process: psutil.Process, run_path: str) -> bool:
    try:
        return process.environ().get(RUN_VARIABLE) == run_path and _lives(process)
    except (psutil.Error, OSError):  # gone, a zombie, or another user's: not ours
        return False


def _boot_id() -> str:
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
