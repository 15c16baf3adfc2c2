"""Rows that say nearly the same, found by their sketches without comparing every two of them."""

from __future__ import annotations

import numpy as np

from gemma_tune.data.facts import EMPTY, SKETCH

SIMILAR = 0.85  # share of the 8-byte sequences of both that stand in both
KEYS = 2  # two such rows share one of their two smallest hashes with a chance of 98 in 100
PAIRS_AT_ONCE = 50_000


def exact_copies(identity: np.ndarray) -> np.ndarray:
    """(n,) → which rows repeat an earlier one."""
    _, first = np.unique(identity, return_index=True)
    repeats = np.ones(len(identity), bool)
    repeats[first] = False
    return repeats


def near_pairs(sketches: np.ndarray) -> np.ndarray:
    """(n, SKETCH) → (p, 2): indices of rows that are nearly the same, the earlier one first, each later row once."""
    candidates = _candidates(sketches)
    kept = [
        chunk[similarity(sketches[chunk[:, 0]], sketches[chunk[:, 1]]) >= SIMILAR]
        for chunk in np.array_split(candidates, len(candidates) // PAIRS_AT_ONCE + 1)
    ]
    pairs = np.concatenate(kept) if kept else candidates
    _, first = np.unique(pairs[:, 1], return_index=True)
    return pairs[first]


def _candidates(sketches: np.ndarray) -> np.ndarray:
    """Rows that share a small hash, each with the first and the nearest earlier row that has it."""
    found = []
    keys = np.concatenate([sketches[:, key] for key in range(KEYS)])
    rows = np.tile(np.arange(len(sketches)), KEYS)
    order = np.lexsort((rows, keys))
    keys, rows = keys[order], rows[order]
    same = np.flatnonzero((keys[1:] == keys[:-1]) & (keys[1:] != EMPTY)) + 1
    found.append(np.column_stack([rows[same - 1], rows[same]]))
    begins = np.maximum.accumulate(np.where(np.r_[True, keys[1:] != keys[:-1]], np.arange(len(keys)), 0)) if len(keys) else keys  # fmt: skip
    found.append(np.column_stack([rows[begins[same]], rows[same]]))
    pairs = np.concatenate(found)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


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
