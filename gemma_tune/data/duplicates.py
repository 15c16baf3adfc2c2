"""Rows that say nearly the same, found by their sketches without comparing every two of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gemma_tune.data.facts import EMPTY, SKETCH
from gemma_tune.data.store import let_go

SIMILAR = 0.85  # share of the 8-byte sequences of both that stand in both
KEYS = 2  # two such rows share one of their two smallest hashes with a chance of 98 in 100
PAIRS_AT_ONCE = 10_000
ROWS_AT_ONCE = 65_536


def exact_copies(identity: np.ndarray) -> np.ndarray:
    """(n,) → which rows repeat an earlier one."""
    _, first = np.unique(identity, return_index=True)
    repeats = np.ones(len(identity), bool)
    repeats[first] = False
    return repeats


def near_pairs(sketches: np.ndarray) -> np.ndarray:
    """(n, SKETCH) → (p, 2): indices of rows that are nearly the same, the earlier one first, each later row once."""
    kept = [pairs[_are_similar(sketches, pairs)] for pairs in _candidates(sketches)]
    pairs = np.concatenate([np.empty((0, 2), np.int64), *kept])
    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    _, first = np.unique(pairs[:, 1], return_index=True)
    return pairs[first]


def _are_similar(sketches: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    found = similarity(sketches[pairs[:, 0]], sketches[pairs[:, 1]]) >= SIMILAR
    let_go(sketches)
    return found


def _candidates(sketches: np.ndarray) -> Iterator[np.ndarray]:
    """(p, 2), some at a time: rows that share a small hash, each with the first and the nearest earlier row that has it."""
    keys, rows = _smallest(sketches)
    repeats = np.zeros(len(keys), bool)
    repeats[1:] = (keys[1:] == keys[:-1]) & (keys[1:] != EMPTY)
    begins = np.maximum.accumulate(np.where(repeats, np.uint32(0), np.arange(len(keys), dtype=np.uint32)))
    for start in range(0, len(keys), PAIRS_AT_ONCE):
        same = np.flatnonzero(repeats[start : start + PAIRS_AT_ONCE]) + start
        earlier = np.concatenate([rows[same - 1], rows[begins[same]]])
        yield np.column_stack([earlier, np.tile(rows[same], 2)]).astype(np.int64)


def _smallest(sketches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The KEYS smallest hashes of every row, sorted, and the row of each. Both (KEYS · n,) of uint32."""
    rows = len(sketches)
    packed = np.empty((KEYS, rows), np.uint64)  # hash and row in one number sort four times faster, in place
    for start in range(0, rows, ROWS_AT_ONCE):
        some = slice(start, min(start + ROWS_AT_ONCE, rows))
        packed[:, some] = sketches[some, :KEYS].T
        let_go(sketches)
    packed <<= np.uint64(32)
    packed |= np.arange(rows, dtype=np.uint64)
    packed = packed.reshape(-1)
    packed.sort()
    return (packed >> np.uint64(32)).astype(np.uint32), packed.astype(np.uint32)


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(p, SKETCH) twice → (p,): the estimated share of sequences that both have."""
    both = np.sort(np.concatenate([one, other], axis=1), axis=1)
    repeated = np.zeros(both.shape, bool)
    repeated[:, 1:] = both[:, 1:] == both[:, :-1]
    real = both != EMPTY
    rank = np.cumsum(~repeated & real, axis=1)
    within = real & (rank <= SKETCH)
    shared = (repeated & within).sum(axis=1)
    return shared / np.maximum(1, (~repeated & within).sum(axis=1))
