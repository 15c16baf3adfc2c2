"""One function over many pieces, on all cores, in order, with few pieces in memory at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from itertools import chain, islice

from gemma_tune.errors import DataError

PIECES_AHEAD = 2  # per core, besides the one in work
WORTH_IT_BYTES = 8_000_000  # below it the processes would take longer to start than the work

Watch = Callable[
    [str, int, int | None], object
]  # phase, done, total (None: unknown); raises Cancelled to stop


class Cancelled(Exception):
    """Raised by a watch: the work is no longer wanted."""


def unwatched(phase: str, done: int, total: int | None) -> None:
    """The watch of whoever waits for the end."""


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable, pieces: Iterable, size: Callable[[object], int]) -> Iterator:
    """`work` of each piece, in order. `size` tells the bytes of a piece: little work is done here, without processes."""
    pieces = iter(pieces)
    first, weight = [], 0
    for piece in pieces:
        first.append(piece)
        weight += size(piece)
        if weight >= WORTH_IT_BYTES:
            break
    if cores() == 1 or weight < WORTH_IT_BYTES:
        yield from map(work, chain(first, pieces))
        return
    yield from _on_all_cores(work, chain(first, pieces))


def _on_all_cores(work: Callable, pieces: Iterator) -> Iterator:
    """Processes are spawned: a fork of a server with threads may hang."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores(), mp_context=context, initializer=_begin) as pool:
        waiting = deque(pool.submit(work, piece) for piece in islice(pieces, cores() * (1 + PIECES_AHEAD)))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, piece) for piece in islice(pieces, 1))
                yield result
        except BrokenExecutor:
            raise DataError.at(
                "memory", None, "A process that read the data was ended by the system, most often for lack of memory.",
                "Close other programs, or read fewer rows.",
            ) from None  # fmt: skip
        finally:
            for one in waiting:
                one.cancel()


def _begin() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core is enough
