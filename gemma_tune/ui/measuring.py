"""Measures two real steps in a process of its own, at most one for the app, and remembers what each setting took."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path

from gemma_tune.config import RunConfig
from gemma_tune.errors import RunError
from gemma_tune.runs.launch import worker_environment
from gemma_tune.runs.verdict import SIGKILL_CODES

KEPT = 16
LOG_LINES = 12
GRACE_SECONDS = 3.0
FAULT_EXIT = 3  # of the worker: what it printed says what to mend

_measured: OrderedDict[str, dict] = OrderedDict()


def known(config: RunConfig) -> dict | None:
    """What was measured with these very settings."""
    return _measured.get(_key(config))


def keep(config: RunConfig, result: dict) -> None:
    _measured[_key(config)] = result
    while len(_measured) > KEPT:
        _measured.popitem(last=False)


def _key(config: RunConfig) -> str:
    """Equal where memory and time of a step are: names, report and saving do not matter."""
    unset = RunConfig()
    return config.model_copy(update={"output": unset.output}).digest()


def command(config_path: Path) -> list[str]:
    return [sys.executable, "-m", "gemma_tune.workers.measure", str(config_path)]


class _Process:
    """The one measuring process of the app. Guards it and its configuration file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self.stopped = False

    def start(self, config: RunConfig, token: str | None, folder: Path) -> subprocess.Popen[str]:
        """Raises RunError while another one is under way."""
        path = folder / "config.yaml"
        path.write_text(config.to_yaml(complete=True), encoding="utf-8")
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                raise RunError.at(
                    "measure", "", "Something is being measured already.", "Wait for it, or stop it."
                )
            self.stopped = False
            self._process = subprocess.Popen(
                command(path),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                encoding="utf-8", errors="replace", env=_environment(config, folder, token), start_new_session=True,
            )  # fmt: skip
            return self._process

    def stop(self) -> None:
        """Ends it, and all that it started."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        self.stopped = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # its own group, made by start_new_session
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


_one = _Process()
stop = _one.stop


def _environment(config: RunConfig, folder: Path, token: str | None) -> dict[str, str]:
    """The training worker's, with one device."""
    alone = config.model_copy(update={"devices": RunConfig().devices})
    environment = worker_environment(folder, alone.model_dump())
    return environment | ({"HF_TOKEN": token} if token else {})


def measure(config: RunConfig, token: str | None) -> Iterator[str]:
    """What it is at, each time that changes; the result is then `known`. Closing the generator ends the process.

    Raises RunError where it was stopped, or ended without a result.
    """
    if config.devices.num_processes > 1 and config.devices.distributed_type != "ddp":
        raise RunError.at(
            "measure", config.devices.distributed_type, "One process is measured, and this model is shared out to several.",
            "Take the estimate.",
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="gemma-tune-measure-") as folder:
        process = _one.start(config, token, Path(folder))
        log: deque[str] = deque(maxlen=LOG_LINES)
        reader = threading.Thread(target=lambda: log.extend(map(str.rstrip, process.stderr)), daemon=True)
        reader.start()
        result = None
        try:
            yield "starting"
            for line in process.stdout:
                told = json.loads(line)
                if told["kind"] == "measured":
                    result = told
                elif told["kind"] == "phase":
                    yield told["name"]
        except GeneratorExit:  # nobody waits for it any more
            _one.stop()
            raise
        finally:
            process.wait()
            reader.join(GRACE_SECONDS)
    if result is None:
        raise _ended(process.returncode, list(log))
    keep(config, result)


def _ended(code: int, log: list[str]) -> RunError:
    if _one.stopped:
        return RunError.at("measure", "", "It was stopped.", "The estimate stands.")
    if code == FAULT_EXIT:
        return RunError.at("measure", "", " ".join(log), "")
    if code in SIGKILL_CODES:
        return RunError.at(
            "measure", "", "It was ended by the system, most likely because the memory was not enough.",
            "Take one of the ways to make it fit.",
        )  # fmt: skip
    return RunError.at("measure", "\n".join(log[-3:]), "It ended without a result.", "The estimate stands.")
