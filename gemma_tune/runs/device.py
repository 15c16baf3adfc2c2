"""The queue for the device: one training at a time per home, in the order of asking.

Each waiting supervisor has a ticket in `queue/` (time, run id; inside: its identity, so that tickets of the dead do not
count). The device itself is the lock `device.lock`, whose descriptor the launcher inherits: it stays taken while
the launcher lives, also when the supervisor was killed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from gemma_tune.runs.folder import read_json, write_json
from gemma_tune.runs.locks import try_lock
from gemma_tune.runs.processes import is_alive


class Turn:
    """The place of one run in the queue. Guards its ticket."""

    def __init__(self, home: Path, run_id: str, holder: dict[str, Any]) -> None:
        self._lock_path = home / "device.lock"
        self._run_id = run_id
        self._ticket = home / "queue" / f"{time.time_ns():020d}_{run_id}"
        self._lock_path.touch()
        self._ticket.parent.mkdir(exist_ok=True)
        write_json(self._ticket, holder)

    def take(self) -> int | None:
        """The descriptor that holds the device, once it is this run's turn; else None. The ticket is then used up."""
        if self._ahead():
            return None
        descriptor = try_lock(self._lock_path)
        if descriptor is not None:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, self._run_id.encode(), 0)
            self.leave()
        return descriptor

    def behind(self) -> str:
        """The run directly ahead: the last one waiting before this, or the one that holds the device."""
        ahead = self._ahead()
        return ahead[-1].name.partition("_")[2] if ahead else self._lock_path.read_text()

    def leave(self) -> None:
        self._ticket.unlink(missing_ok=True)

    def _ahead(self) -> list[Path]:
        tickets = sorted(
            path for path in self._ticket.parent.glob("[0-9]*_*") if path.name < self._ticket.name
        )
        ahead = [ticket for ticket in tickets if is_alive(read_json(ticket))]
        for ticket in set(tickets) - set(ahead):
            ticket.unlink(missing_ok=True)
        return ahead
