"""The rows of a run: prepared once, kept in the run folder, read from there ever after, so that resuming sees the same.

Torch-free: bad data ends a run before anything heavy is imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from gemma_tune import data
from gemma_tune.config import RunConfig
from gemma_tune.errors import DataError
from gemma_tune.runs.folder import RunFolder, write_json

SPLIT = "split.npz"
ROWS_AT_ONCE = 2_000
SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
NO_LIMIT = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Rows:
    """What a run learns from and is measured on, by index in the store of its folder."""

    store: data.Store
    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class Side:
    """One side as TRL takes it: an Arrow file of `input_ids` and `labels`, each row with at least one learned token."""

    name: str  # "training" or "validation"
    path: Path
    rows: int
    cut: int
    left_out: list[int]  # source numbers of rows without a learned token
    tokens: int


def rows_of(run: RunFolder, config: RunConfig, token: str | None, watch: data.Watch = data.unwatched) -> Rows:
    """The first call prepares them and writes them down."""
    if not (run.data_dir / SPLIT).is_file():
        prepared = data.prepare(config, token, watch)
        prepared.store.copy_to(run.data_dir)
        write_json(run.provenance_path, run.provenance() | {"data_fingerprint": prepared.fingerprint})
        draft = run.data_dir / f".{SPLIT}"  # last: it says that all is there
        with draft.open("wb") as file:
            np.savez(file, train=prepared.train, validation=prepared.validation)
        draft.replace(run.data_dir / SPLIT)
    with np.load(run.data_dir / SPLIT) as sides:
        return Rows(data.Store(run.data_dir), sides["train"], sides["validation"])


def tokens_of(
    rows: Rows, config: RunConfig, tokenizer_folder: Path, watch: data.Watch = data.unwatched
) -> data.Tokens:
    return data.tokens_of(rows.store, tokenizer_folder, config.train.assistant_only_loss, watch)


def encode(run: RunFolder, rows: Rows, config: RunConfig, tokens: data.Tokens) -> tuple[Side, Side]:
    """Training and validation side, cut. Packing does its own cutting."""
    limit = NO_LIMIT if config.train.packing else config.train.max_length
    learned = tokens.learned(limit)

    def side(name: str, indices: np.ndarray) -> Side:
        kept = indices[learned[indices] > 0]
        path = run.data_dir / f"{name}.arrow"
        _write_arrow(path, tokens, kept, limit)
        return Side(
            name,
            path,
            len(kept),
            int((tokens.lengths[indices] > config.train.max_length).sum()),
            rows.store.facts["number"][indices[learned[indices] == 0]].tolist(),
            int(np.minimum(tokens.lengths[kept], limit).sum()),
        )

    return side("training", rows.train), side("validation", rows.validation)


def _write_arrow(path: Path, tokens: data.Tokens, indices: np.ndarray, limit: int) -> None:
    """In batches, so that a large set is never held. Each rank writes the same bytes, and the last one stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(draft), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for start in range(0, len(indices), ROWS_AT_ONCE):
            ids, labels, lengths = tokens.batch(indices[start : start + ROWS_AT_ONCE], limit)
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            columns = [pa.ListArray.from_arrays(offsets, pa.array(one)) for one in (ids, labels)]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    draft.replace(path)


def refuse_nothing_to_learn(side: Side, config: RunConfig) -> None:
    if not side.rows:
        raise DataError.at(
            "train.max_length", config.train.max_length,
            "No training row has any token to learn from within this length.",
            "Raise the maximum length, or shorten the prompts.",
        )  # fmt: skip
