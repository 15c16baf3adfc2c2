"""The event file of a run: appended to by several processes at once, read by any number, whoever is killed.

Each event is one `os.write` on an O_APPEND descriptor, so that lines of several writers never mix. It is b"\\n" + JSON +
b"\\n": the newline in front closes the torn line that a killed writer (or a full disk) left, so that it never swallows
the next event. Readers skip empty lines, wait for the end of a last line, and report a torn one as an event of the
kind "unreadable". Numbers that JSON lacks (NaN, infinity) are written as null.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS_FILE = "events.jsonl"
WRITE_ATTEMPTS = 2

_sequences: Counter[tuple[str, str]] = (
    Counter()
)  # (file, by) -> last number: several writer objects, one count
_sequences_lock = threading.Lock()


class EventWriter:
    """Appends the events of one process to one run. Guards the descriptor; safe between threads.

    `by` names the writer: f"worker-{os.getpid()}", f"supervisor-{os.getpid()}" or f"app-{os.getpid()}".
    """

    def __init__(self, run_path: str | Path, by: str, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(run_path) / EVENTS_FILE
        self.by = by
        self._clock = clock
        self._key = (str(self.path.absolute()), by)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event; about 10 µs. Raises OSError where the whole line could not be written (full disk)."""
        with _sequences_lock:
            seq = _sequences[self._key] + 1
            envelope = {"seq": seq, "by": self.by, "time": round(self._clock(), 4), "kind": kind}
            line = b"\n" + _encode(envelope | fields) + b"\n"
            for _ in range(WRITE_ATTEMPTS):
                if os.write(self._descriptor, line) == len(line):
                    _sequences[self._key] = seq
                    return
            raise OSError(28, "No space left on device", str(self.path))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_events(path: str | Path, offset: int = 0) -> tuple[list[dict], int]:
    """The whole events of the file from byte `offset` on, and the offset to read on from. No file: no events."""
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            chunk = file.read()
    except FileNotFoundError:
        return [], offset
    end = chunk.rfind(b"\n") + 1  # what follows is a line still being written, or torn: it waits
    return [_decode(line) for line in chunk[:end].split(b"\n") if line.strip()], offset + end


def _decode(line: bytes) -> dict:
    try:
        event = json.loads(line)
    except ValueError:  # torn JSON and torn UTF-8 alike
        event = None
    if isinstance(event, dict) and isinstance(event.get("kind"), str):
        return event
    return {"kind": "unreadable", "bytes": len(line)}


def _encode(event: dict) -> bytes:
    try:
        text = json.dumps(event, allow_nan=False, separators=(",", ":"), default=_plain)
    except ValueError:
        text = json.dumps(_finite(event), separators=(",", ":"), default=_plain)
    return text.encode("ascii")


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy and torch numbers, paths."""
    return _finite(value.item()) if hasattr(value, "item") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
