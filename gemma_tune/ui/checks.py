"""Checks of data that run in the background: one per page, told how far it is, replaced by the next, stopped at will."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Event, Lock, Thread

from gemma_tune import data
from gemma_tune.config import RunConfig
from gemma_tune.data.doctor import Report

REPORTS_KEPT = 4
PAGES_KEPT = 1_000

_reports: OrderedDict[str, tuple[RunConfig, Report]] = OrderedDict()
_running: dict[str, Check] = {}
_asked: OrderedDict[str, int] = OrderedDict()  # the newest check that each page has asked for
_lock = Lock()


class Check:
    """One check in a thread of its own. Guards its progress and its end."""

    def __init__(self, config: RunConfig, token: str | None) -> None:
        self._config, self._token = config, token
        self._stop = Event()
        self.ended = Event()
        self.progress: tuple[str, int, int | None] = ("opening", 0, None)
        self.report: Report | None = None
        self.error: Exception | None = None
        self.replaced = False  # by a later check of the same page, which will be shown instead
        Thread(target=self._work, daemon=True, name="data check").start()

    @property
    def stopped(self) -> bool:
        return isinstance(self.error, data.Cancelled)

    def stop(self) -> None:
        self._stop.set()

    def _work(self) -> None:
        try:
            self.report = report_for(self._config, self._token, self._watch)
        except Exception as error:  # noqa: BLE001  shown by whoever waits; a bug is raised there
            self.error = error
        finally:
            self.ended.set()

    def _watch(self, phase: str, done: int, total: int | None) -> None:
        self.progress = phase, done, total
        if self._stop.is_set():
            raise data.Cancelled


def is_newest(page: str, count: int | None) -> bool:
    """Whether a page has asked for no later check yet. `count`: the page's own count of its checks."""
    with _lock:
        if count is not None and count < _asked.get(page, 0):
            return False
        _asked[page] = count or 0
        _asked.move_to_end(page)
        while len(_asked) > PAGES_KEPT:
            _asked.popitem(last=False)
        return True


def begin(page: str, config: RunConfig, token: str | None) -> Check:
    """A check for a page; what it checked before is no longer wanted."""
    with _lock:
        _forget(page)
        _running[page] = Check(config, token)
        return _running[page]


def forget(page: str) -> None:
    """Ends the check of a page that nobody waits for any more."""
    with _lock:
        _forget(page)


def _forget(page: str) -> None:
    if page in _running:
        _running[page].replaced = True
        _running[page].stop()


def end(page: str, check: Check) -> None:
    """The page is gone or has seen the result."""
    check.stop()
    with _lock:
        if _running.get(page) is check:
            del _running[page]


def stop(page: str) -> None:
    with _lock:
        if page in _running:
            _running[page].stop()


def known(config: RunConfig) -> Report | None:
    """The report of an earlier check of the same data, model and settings."""
    with _lock:
        return _reports.get(_key(config), (None, None))[1]


def of_data(config: RunConfig) -> Report | None:
    """The latest report of the same data and model, whatever else was set."""
    with _lock:
        alike = (report for known, report in reversed(_reports.values()) if _same_data(known, config))
        return next(alike, None)


def _same_data(one: RunConfig, other: RunConfig) -> bool:
    return one.data == other.data and one.model.id == other.model.id


def report_for(config: RunConfig, token: str | None, watch: data.Watch = data.unwatched) -> Report:
    """The doctor's report; the last few are kept, so that paging through rows reads nothing again."""
    if found := known(config):
        return found
    report = data.check(config, token, watch)
    with _lock:
        _reports[_key(config)] = config, report
        while len(_reports) > REPORTS_KEPT:
            _reports.popitem(last=False)
    return report


def _key(config: RunConfig) -> str:
    """Equal where a report would be: names, adapters and evaluation do not matter to it."""
    unset = RunConfig()
    alike = config.model_copy(update={"output": unset.output, "method": unset.method, "eval": unset.eval})
    named = [config.data.source, config.data.validation_source, *(one.source for one in config.data.mix)]
    return alike.digest() + "".join(map(_stamp, named))


def _stamp(source: str) -> str:
    """Changes where a file or folder on this disk does."""
    path = Path(source)
    if not source or ":" in source or not path.exists():
        return ""
    inside = list(path.iterdir()) if path.is_dir() else []
    return str([(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in (path, *inside)])
