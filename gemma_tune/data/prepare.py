"""From a configuration to the rows of both sides: open, recognise, store, split."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from gemma_tune import support
from gemma_tune.config import RunConfig
from gemma_tune.data.fitting import fitting, misfits
from gemma_tune.data.formats import REASONS_SHOWN, all_rejected, recognise
from gemma_tune.data.images import beside_digest, names_files
from gemma_tune.data.parallel import Watch, unwatched
from gemma_tune.data.rows import Opened, Rejected, Schema, Table
from gemma_tune.data.sources import (
    EXAMPLE,
    HELD_OUT,
    HUB,
    TFDS,
    first_rows,
    is_example,
    open_each,
    open_source,
)
from gemma_tune.data.split import split, weighted
from gemma_tune.data.store import Part, Store, stored
from gemma_tune.errors import DataError, Fault, GemmaTuneError, shown
from gemma_tune.schedule import rows_per_batch
from gemma_tune.sections import DataSection

SAMPLE_ROWS = 200  # from which the schema is recognised


@dataclass(frozen=True)
class Prepared:
    """A data set ready to tokenise. Rows are named by their index in the store."""

    store: Store
    parts: list[Part]
    train: np.ndarray  # each row as often as its weight says
    validation: np.ndarray
    unused: int = 0  # rows that the objective cannot learn from
    unused_bad: int = 0  # of them answers labelled as bad, which supervised training does not learn
    faults: list[Fault] = field(default_factory=list)  # of the set as a whole; `prepare` raises them
    warnings: list[Fault] = field(default_factory=list)

    @property
    def schema(self) -> Schema:
        """How the first source is read."""
        return self.parts[0].schema

    @property
    def source(self) -> str:
        return self.parts[0].opened.name

    @property
    def fingerprint(self) -> str:
        return self.store.key


def prepare(config: RunConfig, token: str | None = None, watch: Watch = unwatched) -> Prepared:
    """The rows of both sides. DataError with every fault of the set at once where it cannot be trained on."""
    prepared = gather(config, token, watch)
    if prepared.faults:
        raise DataError(*prepared.faults)
    return prepared


def gather(config: RunConfig, token: str | None = None, watch: Watch = unwatched) -> Prepared:
    """As `prepare`, with the faults of the set kept in the result; raises only where nothing can be read at all."""
    parts = parts_of(config.data, token, watch)
    store = stored(parts, watch)
    faults, warnings = [], [
        Fault(_shown_source(part), "", note, "") for part in parts for note in part.opened.notes
    ]  # fmt: skip
    train, validation = split(store.facts, config.data)
    fits = fitting(store.facts, config.objective.type)
    unfit, unused_kinds = misfits(store.facts, train, config)
    if store.has_images and config.objective.type != "sft":
        unfit = [found] if (found := support.fault_of(config, "", images=True)) else unfit
    left_out = np.concatenate([train, validation])[~fits[np.concatenate([train, validation])]]
    unused, unused_bad = len(left_out), int((store.facts["label"][left_out] == 0).sum())
    train, validation = train[fits[train]], validation[fits[validation]]
    if unfit:
        faults += unfit
    elif unused and not len(train):
        faults.append(
            Fault(_name_of(parts), f"{unused:,} rows", "Every answer is labelled as bad, so there is nothing to learn.",
                  "Check the label column, or map another one (data.columns.label).")
        )  # fmt: skip
    else:
        warnings += unused_kinds
        faults += _nothing_left(store, parts) or _all_held_back(train, store, config)
    if len(train):
        train = weighted(train, store.facts, [part.weight for part in parts], config.data.split_seed)
        faults += _too_few(len(train), _name_of(parts), config)
    return Prepared(store, parts, train, validation, unused, unused_bad, faults, warnings)


def parts_of(data: DataSection, token: str | None, watch: Watch = unwatched) -> list[Part]:
    """Every source of a run, open and recognised. DataError with all their faults at once."""
    watch("opening", 0, None)
    parts, errors = [], []
    wanted = [(data.source, data.subset, _train_split(data), data.format, data.columns, data.weight)]
    wanted += [(one.source, one.subset, one.split, one.format, one.columns, one.weight) for one in data.mix]
    for source, subset, split_name, form, columns, weight in wanted:
        try:
            opened = open_each(source, subset, split_name, token)
        except GemmaTuneError as error:
            errors.append(error)
            continue
        for one in opened:
            try:
                parts.append(_part(one, data, form, columns, weight))
            except GemmaTuneError as error:
                errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DataError(*(fault for error in errors for fault in error.faults))
    if data.validation_source or is_example(data.source):
        parts.append(_validation_part(data, parts[0].schema, token))
    return parts


def _part(opened: Opened, data: DataSection, form: str, columns: dict[str, str], weight: float) -> Part:
    table = first_rows(opened, SAMPLE_ROWS)
    schema = _schema(table, data, form, columns)
    _check_split_column(table, data.split_column)
    return Part(opened, schema, tuple(data.fixes), data.split_column, weight, beside=_beside(table, schema))


def _schema(table: Table, data: DataSection, form: str, columns: dict[str, str]) -> Schema:
    found = recognise(table, form, columns)
    if data.read_images or "images" not in found.columns:
        return found
    read = {ours: theirs for ours, theirs in found.columns.items() if ours != "images"}
    return replace(found, columns=read, why=f"{found.why} The images are left out, as asked.")


def _beside(table: Table, schema: Schema) -> str:
    return beside_digest(table.origin) if names_files(table, schema) else ""


def _check_split_column(table: Table, column: str) -> None:
    if column and column not in table.columns:
        raise DataError.at(
            "data.split_column", column, f"{table.source} has no such column.",
            f"There are: {shown(', '.join(table.columns))}.",
        )  # fmt: skip


def _validation_part(data: DataSection, schema: Schema, token: str | None) -> Part:
    """Rows of a source of their own, read as the training rows are where the columns allow it."""
    source, split_name = _validation_source(data)
    opened = open_source(source, data.subset, split_name, token)
    table = first_rows(opened, SAMPLE_ROWS)
    same = set(schema.columns.values()) <= set(table.columns)
    schema = schema if same else _schema(table, data, data.format, {})
    return Part(opened, schema, tuple(data.fixes), held_back=True, beside=_beside(table, schema))


def _validation_source(data: DataSection) -> tuple[str, str]:
    """Source and split. A Hub split is named after a hash sign: hub:OWNER/NAME#validation."""
    if not data.validation_source:
        return data.source, HELD_OUT
    source, split_name = data.validation_source, ""
    if source.startswith((HUB, EXAMPLE, TFDS)):  # the name of a file may hold a hash sign
        source, _, split_name = source.partition("#")
    if is_example(source):
        split_name = split_name or (HELD_OUT if source == data.source else "train")
    split_name = split_name or data.split
    if source == data.source and split_name == _train_split(data):
        raise DataError.at(
            "data.validation_source", data.validation_source, "These are the training rows themselves.",
            "Name another file, another split (hub:OWNER/NAME#validation), or leave it empty to split some off.",
        )  # fmt: skip
    return source, split_name


def _train_split(data: DataSection) -> str:
    """Examples have files of their own, so a Hub split chosen before does not matter to them."""
    return "train" if is_example(data.source) else data.split


def _nothing_left(store: Store, parts: list[Part]) -> list[Fault]:
    """Of every source without a usable row, with the first reasons."""
    faults: list[Fault] = []
    for part in [part for index, part in enumerate(parts) if not (store.facts["part"] == index).any()]:
        label = part.opened.name if len(parts) > 1 else ""
        own = (one for one in store.rejected() if _is_of(one, label, part.held_back))
        first = list(islice(own, REASONS_SHOWN))
        faults += all_rejected(_shown_source(part), len(first) + sum(1 for _ in own), first)
    return faults


def _is_of(rejected: Rejected, label: str, held_back: bool) -> bool:
    if (rejected.side == "validation") != held_back:
        return False
    return not label or rejected.file == label or rejected.file.startswith(f"{label} › ")


def _all_held_back(train: np.ndarray, store: Store, config: RunConfig) -> list[Fault]:
    if len(train) or not len(store):
        return []
    return [
        Fault(
            "data.split_column", config.data.split_column, "It puts every row among the validation rows, so there is nothing to learn.",
            "Say train in the rows that are to be learned, or empty the split column.",
        )
    ]  # fmt: skip


def _too_few(rows: int, where: str, config: RunConfig) -> list[Fault]:
    batch = rows_per_batch(config)
    if rows >= batch:
        return []
    if not rows:
        return [
            Fault("data.weight", "0 rows", "With this weight no row is left to learn.", "Raise the weight.")
        ]
    way_out = f"Add rows, or set train.per_device_train_batch_size to {rows} or less."
    if config.objective.type == "grpo":
        way_out = "Add rows, or lower the batch size or the accumulation."
    rule = f"The data set is smaller than one batch of {batch} rows."
    return [Fault(where, f"{rows} training rows", rule, way_out)]


def _name_of(parts: list[Part]) -> str:
    """Of all that is learned from."""
    first, *others = [part.opened.name for part in parts if not part.held_back]
    return f"{first} and {len(others)} other{'s' if len(others) > 1 else ''}" if others else first


def _shown_source(part: Part) -> str:
    return f"validation {part.opened.name}" if part.held_back else part.opened.name
