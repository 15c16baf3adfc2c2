"""Which rows are learned and which are held back, from the facts of a store alone.

The split orders the distinct rows by a hash of seed and identity and takes the first ones: the same on every platform,
independent of the order of rows, and copies of a row never straddle it.
"""

from __future__ import annotations

import numpy as np

from gemma_tune.sections import DataSection


def split(facts: np.ndarray, data: DataSection) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation): indices in the order of the store, each once.

    A split column or a source of its own decides where there is one; else the number or the share that is asked for, at
    least one row on each side.
    """
    all_rows = np.arange(len(facts))
    if facts["held_back"].any() or data.split_column:
        return all_rows[~facts["held_back"]], all_rows[facts["held_back"]]
    held = held_back(facts["identity"], wanted_rows(len(facts), data), data.split_seed)
    return all_rows[~held], all_rows[held]


def wanted_rows(rows: int, data: DataSection) -> int:
    if rows < 2 or not (data.validation_rows or data.validation_fraction):
        return 0
    wanted = data.validation_rows or round(data.validation_fraction * rows)
    return min(max(1, wanted), rows - 1)


def held_back(identity: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """(n,) → which rows to hold back: whole groups of copies, as many as fit into `wanted` rows."""
    distinct, group, sizes = np.unique(identity, return_inverse=True, return_counts=True)
    chosen = np.zeros(len(distinct), bool)
    left = wanted if len(distinct) > 1 else 0
    for index in np.argsort(mixed(distinct, seed), kind="stable"):
        if left <= 0:
            break
        if sizes[index] <= left:
            chosen[index] = True
            left -= sizes[index]
    return chosen[group]


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """(n,) of uint64 in an order that the seed decides: the finaliser of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        mixed = values.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def weighted(indices: np.ndarray, facts: np.ndarray, weights: list[float], seed: int) -> np.ndarray:
    """The rows of an epoch: those of each part as often as its weight says, a share of them for what is left over."""
    if all(weight == 1 for weight in weights):
        return indices
    taken = []
    for part, weight in enumerate(weights):
        own = indices[facts["part"][indices] == part]
        rest = round((weight - int(weight)) * len(own))
        order = np.argsort(mixed(facts["identity"][own] ^ own.astype(np.uint64), seed), kind="stable")
        taken += [own] * int(weight) + [np.sort(own[order[:rest]])]
    return np.sort(np.concatenate(taken))
