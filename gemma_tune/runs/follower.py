"""What the app knows of the runs: one thread per live run reads what is new, whether or not a page is open.

A thread also minds its run's supervisor, which it replaces when it was killed. Runs that are over are read when they
are asked for, and the latest of them kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

from gemma_tune.errors import GemmaTuneError
from gemma_tune.runs import engine
from gemma_tune.runs.folder import RunFolder, find_run, list_runs
from gemma_tune.runs.reader import LogReader, StateReader
from gemma_tune.runs.state import State

READ_SECONDS = 0.2
RECONCILE_SECONDS = 3.0
OVER_KEPT = 16

logger = logging.getLogger(__name__)


class Follower:
    """Follows one run. Guards its readers; safe between threads."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.trouble: str | None = None  # why the run could not be read or minded the last time
        self._lock = threading.Lock()
        self._events = StateReader(folder.events_path)
        self._log = LogReader(folder.log_path)
        self._state = State()
        self._version = 0
        self._thread: threading.Thread | None = None

    def snapshot(self) -> tuple[State, int]:
        """The state, and a number that grows with every change of it or of the log."""
        with self._lock:
            if self._thread is None:
                self._read()
                self._follow_if_live()
            return self._state, self._version

    def log_lines(self, after: int | None = None, limit: int = 300) -> tuple[int, int, list[tuple[str, str]]]:
        """Lines of the log from number `after` on, or the last `limit`; see LogReader.lines."""
        with self._lock:
            return self._log.lines(after, limit)

    def _follow_if_live(self) -> None:
        if self._state.is_live:
            name = f"follower-{self.folder.id}"
            self._thread = threading.Thread(target=self._follow, name=name, daemon=True)
            self._thread.start()

    def _follow(self) -> None:
        next_reconcile = 0.0
        while True:
            with self._lock:
                self._read()
                if self._state.is_over or not self.folder.path.exists():
                    self._thread = None
                    return
            if time.monotonic() >= next_reconcile:
                self._reconcile()
                next_reconcile = time.monotonic() + RECONCILE_SECONDS
            time.sleep(READ_SECONDS)

    def _read(self) -> None:
        try:
            state = self._events.read()
            grown = self._log.read()
        except OSError as error:  # the disk may come back
            self._say(error)
            return
        if grown or state is not self._state:
            self._state = state
            self._version += 1

    def _reconcile(self) -> None:
        try:
            engine.reconcile(self.folder.id)
            self.trouble = None
        except (GemmaTuneError, OSError) as error:
            self._say(error)

    def _say(self, error: Exception) -> None:
        if str(error) != self.trouble:
            logger.warning("%s: %s", self.folder.id, error)
        self.trouble = str(error)


_followers: OrderedDict[str, Follower] = OrderedDict()
_followers_lock = threading.Lock()


def follower(run_id: str) -> Follower:
    """The one follower of a run in this process. Raises RunError where there is no such run."""
    folder = find_run(run_id)
    key = str(folder.path)
    with _followers_lock:
        following = _followers.setdefault(key, Follower(folder))
        _followers.move_to_end(key)
        over = [key for key, other in _followers.items() if other._thread is None]
        for old in over[:-OVER_KEPT]:
            del _followers[old]
    return following


def resume_following() -> threading.Thread:
    """At the start of the app: find every run that is not over and follow it. In a thread; returns it."""
    thread = threading.Thread(target=_follow_unfinished, name="resume-following", daemon=True)
    thread.start()
    return thread


def _follow_unfinished() -> None:
    for folder in list_runs():
        try:
            if engine.read_state(folder.id).is_live:
                follower(folder.id).snapshot()
        except (GemmaTuneError, OSError) as error:
            logger.warning("%s: %s", folder.id, error)
