"""The rows of a run: prepared once, kept in the run folder, read from there ever after, so that resuming sees the same.

Torch-free: bad data ends a run before anything heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from gemma_tune import data
from gemma_tune.config import RunConfig
from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.errors import DataError
from gemma_tune.runs.folder import RunFolder, write_json
from gemma_tune.workers import preference

SPLIT = "split.npz"
ROWS_AT_ONCE = 2_000
SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
IMAGE_FILES = pa.field("image_files", pa.list_(pa.string()))  # of the store, for rows with images
NO_LIMIT = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Rows:
    """What a run learns from and is measured on, by index in the store of its folder."""

    store: data.Store
    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class Side:
    """One side as TRL takes it: an Arrow file of the objective's columns, each row with something to learn."""

    name: str  # "training" or "validation"
    path: Path
    rows: int
    cut: int
    left_out: list[int]  # source numbers of the rows that hold nothing to learn
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
    return data.tokens_of(rows.store, tokenizer_folder, data.learns_answers_only(config), watch)


def encode(
    run: RunFolder, rows: Rows, config: RunConfig, tokens: data.Tokens, chat: ChatTokenizer
) -> tuple[Side, Side]:
    """Training and validation side, cut. Packing and TRL's other trainers do their own cutting."""
    packed = config.train.packing and config.objective.type == "sft"
    lengths = data.lengths_of(tokens, config)
    usable = tokens.learned(NO_LIMIT) > 0 if packed else lengths.usable

    def side(name: str, indices: np.ndarray) -> Side:
        kept = preference.in_training_order(indices[usable[indices]], config)
        path = run.data_dir / f"{name}.arrow"
        if config.objective.type == "sft":
            schema = SCHEMA.append(IMAGE_FILES) if rows.store.has_images else SCHEMA
            limit = NO_LIMIT if packed else config.train.max_length
            _write_arrow(path, schema, _supervised(rows.store, tokens, kept, limit, schema))
        else:
            columns, schema = preference.COLUMNS[config.objective.type]
            _write_arrow(path, schema, _in_batches(columns(rows.store, tokens, kept, config, chat), schema))
        return Side(
            name,
            path,
            len(kept),
            int(lengths.cut[indices].sum()),
            rows.store.facts["number"][indices[~usable[indices]]].tolist(),
            int((tokens.lengths if packed else lengths.used)[kept].sum()),
        )

    return side("training", rows.train), side("validation", rows.validation)


def _supervised(
    store: data.Store, tokens: data.Tokens, indices: np.ndarray, limit: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(indices), ROWS_AT_ONCE):
        some = indices[start : start + ROWS_AT_ONCE]
        ids, labels, lengths = tokens.batch(some, limit)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        columns = [pa.ListArray.from_arrays(offsets, pa.array(one)) for one in (ids, labels)]
        if IMAGE_FILES.name in schema.names:
            files = [[image["file"] for image in row.images] for row in store.rows(some)]
            columns.append(pa.array(files, IMAGE_FILES.type))
        yield pa.record_batch(columns, schema=schema)


def _in_batches(rows: Iterator[dict], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        yield pa.RecordBatch.from_pylist(batch, schema=schema)


def _write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """In batches, so that a large set is never held. Each rank writes the same bytes, and the last one stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(draft), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    draft.replace(path)


def refuse_nothing_to_learn(side: Side, config: RunConfig) -> None:
    if not side.rows:
        raise DataError.at(
            "train.max_length", config.train.max_length,
            "No training row has any token to learn from within this length.",
            "Raise the maximum length, or shorten the prompts.",
        )  # fmt: skip
