"""From a configuration to the two sides of a data set: read, recognise, convert, split.

The split orders the distinct conversations by a hash of seed and content, and takes the first ones for validation: the
same on every platform, independent of the order of rows, and copies of a conversation never straddle it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace

from gemma_tune.config import RunConfig
from gemma_tune.data.formats import all_rejected, convert, recognise
from gemma_tune.data.rows import Prepared, Rejected, Row, Schema
from gemma_tune.data.sources import EXAMPLE, HELD_OUT, HUB, is_example, read
from gemma_tune.errors import DataError, Fault


def prepare(config: RunConfig, token: str | None = None) -> Prepared:
    """The rows of both sides. DataError with every fault of the set at once where it cannot be trained on."""
    prepared = gather(config, token)
    if prepared.faults:
        raise DataError(*prepared.faults)
    return prepared


def gather(config: RunConfig, token: str | None = None) -> Prepared:
    """As `prepare`, with the faults of the set kept in the result; raises only where nothing can be read at all."""
    data = config.data
    table = read(data.source, data.subset, _train_split(config), token)
    schema = recognise(table, data.format, data.columns)
    rows, rejected = convert(table, schema)
    rejected = _in_order([*table.rejected, *rejected])
    faults, warnings = [], [Fault(table.source, "", note, "") for note in table.notes]
    if not rows:
        faults += all_rejected(table, rejected)
        validation: list[Row] = []
    elif data.validation_source or is_example(data.source):
        validation, refused, notes = _validation_rows(config, schema, token)
        rejected += refused
        warnings += notes
    else:
        rows, validation = split(rows, data.validation_fraction, data.split_seed)
    batch = config.train.per_device_train_batch_size
    if 0 < len(rows) < batch:
        faults.append(
            Fault(
                table.source, f"{len(rows)} training rows", f"The data set is smaller than one batch of {batch} rows.",
                f"Add rows, or set train.per_device_train_batch_size to {len(rows)} or less.",
            )
        )  # fmt: skip
    return Prepared(rows, validation, rejected, schema, table, table.fingerprint, faults, warnings)


def split(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, validation), each in the order of the source; at least one row in each where fraction > 0."""
    wanted = max(1, round(fraction * len(rows))) if fraction > 0 and len(rows) > 1 else 0
    groups: dict[bytes, list[int]] = defaultdict(list)  # copies of one conversation
    for index, row in enumerate(rows):
        groups[hashlib.sha256(f"{seed}\0{row.identity()}".encode()).digest()].append(index)
    held: set[int] = set()
    for digest in sorted(groups):
        if len(groups) > 1 and len(held) + len(groups[digest]) <= wanted:
            held.update(groups[digest])
        if len(held) == wanted:
            break
    train = [row for index, row in enumerate(rows) if index not in held]
    return train, [rows[index] for index in sorted(held)]


def _validation_rows(
    config: RunConfig, schema: Schema, token: str | None
) -> tuple[list[Row], list[Rejected], list[Fault]]:
    """Rows of a source of their own, read as the training rows are where the columns allow it."""
    data = config.data
    source, split_name = _validation_source(config)
    table = read(source, data.subset, split_name, token)
    same = set(schema.columns.values()) <= set(table.columns)
    rows, rejected = convert(table, schema if same else recognise(table, data.format))
    rejected = [replace(one, side="validation") for one in _in_order([*table.rejected, *rejected])]
    if not rows:
        raise DataError(*all_rejected(table, rejected))
    return rows, rejected, [Fault(f"validation {table.source}", "", note, "") for note in table.notes]


def _validation_source(config: RunConfig) -> tuple[str, str]:
    """Source and split. A Hub split is named after a hash sign: hub:OWNER/NAME#validation."""
    data = config.data
    if not data.validation_source:
        return data.source, HELD_OUT
    source, split_name = data.validation_source, ""
    if source.startswith((HUB, EXAMPLE)):  # the name of a file may hold a hash sign
        source, _, split_name = source.partition("#")
    if is_example(source):
        split_name = split_name or (HELD_OUT if source == data.source else "train")
    split_name = split_name or data.split
    if source == data.source and split_name == _train_split(config):
        raise DataError.at(
            "data.validation_source", data.validation_source, "These are the training rows themselves.",
            "Name another file, another split (hub:OWNER/NAME#validation), or leave it empty to split some off.",
        )  # fmt: skip
    return source, split_name


def _train_split(config: RunConfig) -> str:
    """Examples have files of their own, so a Hub split chosen before does not matter to them."""
    return "train" if is_example(config.data.source) else config.data.split


def _in_order(rejected: list[Rejected]) -> list[Rejected]:
    return sorted(rejected, key=lambda one: one.number)
