"""Reading a run while it is written: only what is new since the last look, from any thread."""

from __future__ import annotations

import re
import threading
from collections import deque
from pathlib import Path

from gemma_tune.runs.events import read_events
from gemma_tune.runs.folding import fold
from gemma_tune.runs.state import State

LOG_LINES_KEPT = 2000
LOG_BYTES_FIRST = 1_000_000  # of a long log only the end is read
LINE_CHARACTERS = 2000
ERROR_LINE = re.compile(
    r"^Traceback \(most recent|^\s*([\w.]*(Error|Exception|Interrupt))(:|$)|out of memory|\b(ERROR|CRITICAL|FATAL)\b"
)


class StateReader:
    """The state of one event file. A file that was replaced by a shorter one is read anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._offset = 0
        self._state = State()

    def read(self) -> State:
        with self._lock:
            if size_of(self._path) < self._offset:
                self._offset, self._state = 0, State()
            events, self._offset = read_events(self._path, self._offset)
            if events:
                self._state = fold(events, self._state)
            return self._state


class LogReader:
    """The last lines of a log, each with its number and whether it tells of an error. Not for several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset: int | None = None
        self._rest = b""  # a line still without its end
        self._lines: deque[tuple[str, str]] = deque(maxlen=LOG_LINES_KEPT)
        self.count = 0  # of all lines met, those dropped included

    def read(self) -> bool:
        """Take in what is new; whether there was something."""
        size = size_of(self._path)
        if self._offset is None:
            self._offset = max(0, size - LOG_BYTES_FIRST)
        if size < self._offset:  # rotated
            self._offset, self._rest = 0, b""
        if size == self._offset:
            return False
        with self._path.open("rb") as file:
            file.seek(self._offset)
            chunk = file.read(LOG_BYTES_FIRST)
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[-LOG_BYTES_FIRST:]
        self._lines.extend(_marked(line) for line in lines)
        self.count += len(lines)
        return bool(lines)

    def lines(self, after: int | None, limit: int) -> tuple[int, int, list[tuple[str, str]]]:
        """(number of the first, number after the last, [(text, "error" or "")]): the lines from number `after` on.

        None, or a number whose line is no longer kept: the last `limit` lines.
        """
        oldest = self.count - len(self._lines)
        if after is None or not oldest <= after <= self.count:
            after = max(oldest, self.count - limit)
        return after, self.count, list(self._lines)[after - oldest :]


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _marked(line: bytes) -> tuple[str, str]:
    """Of a progress bar, which returns to the start of its line, only the last state is shown."""
    text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")[:LINE_CHARACTERS]
    return text, "error" if ERROR_LINE.search(text) else ""
