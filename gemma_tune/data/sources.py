"""Where rows come from: a file or folder, a built-in example, the Hugging Face Hub, TensorFlow Datasets.

A source is written `example:NAME`, `hub:OWNER/NAME`, `tfds:NAME` or a path. Opened, it is read piece by piece.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from gemma_tune import hub
from gemma_tune.data import files, readers
from gemma_tune.data.hub_sets import HUB, hub_choices, hub_size_bytes, open_hub
from gemma_tune.data.readers import open_path
from gemma_tune.data.rows import Opened, Rejected, Table, no_object
from gemma_tune.data.store import values_of
from gemma_tune.data.tfds_sets import TFDS, is_prepared, open_prepared, open_tfds, tfds_choices
from gemma_tune.errors import DataError

__all__ = [
    "choices_of",
    "example_names",
    "first_rows",
    "hub_size_bytes",
    "is_example",
    "keep_uploads",
    "open_each",
    "open_source",
    "read",
]

EXAMPLE = "example:"
HELD_OUT = "held_out"
_SUFFIXES = (".jsonl", ".csv")
REJECTED_IN_A_ROW = 5_000  # after so many a table without a row is believed to hold none


def open_source(
    source: str, subset: str = "", split: str = "train", token: str | None = None, *, whole: bool = True
) -> Opened:
    """A source that can be read. `whole`: false for a look at its first rows, without a download or a pass over it.

    `subset` is for the Hub; `split` too, for TFDS, and `held_out` for an example.
    """
    source = source.strip()
    if source.startswith(HUB):
        return open_hub(source.removeprefix(HUB), subset, split, token, streaming=not whole)
    if source.startswith(TFDS):
        return open_tfds(source.removeprefix(TFDS), split)
    if source.startswith(EXAMPLE):
        return open_path(_example_file(source.removeprefix(EXAMPLE), split), whole=whole).named(source)
    path = hub.check_path(source, "data.source")
    if path.is_dir() and is_prepared(path):
        return open_prepared(path, split)
    return open_path(path, whole=whole)


def open_each(source: str, subset: str = "", split: str = "train", token: str | None = None) -> list[Opened]:
    """As `open_source`, with the files of a folder or zip file one by one."""
    by_name = source.strip().startswith((HUB, TFDS, EXAMPLE))
    path = None if by_name else hub.check_path(source.strip(), "data.source")
    if path is None or (path.is_dir() and is_prepared(path)):
        return [open_source(source, subset, split, token)]
    return readers.open_each(path)


def first_rows(opened: Opened, limit: int | None = None) -> Table:
    """The first rows as a table; all of them without a limit."""
    rows: list[tuple[int, dict]] = []
    rejected: list[Rejected] = []
    columns = dict.fromkeys(opened.columns)
    origin = None
    for records in opened.records():
        refused, origin = list(records.rejected), origin or records.origin
        for number, value in values_of(records):
            if isinstance(value, dict):
                rows.append((number, value))
                columns.update(dict.fromkeys(value))
            else:
                refused.append(value if isinstance(value, Rejected) else no_object(value).rejected(number))
            if limit is not None and len(rows) >= limit:
                break
        refused.sort(key=lambda one: one.number)
        rejected += [replace(one, file=records.file) for one in refused]
        if limit is not None and (len(rows) >= limit or len(rejected) > REJECTED_IN_A_ROW):
            break
    return Table(list(columns), rows, rejected, opened.name, list(opened.notes), origin)


def read(
    source: str, subset: str = "", split: str = "train", token: str | None = None, limit: int | None = None
) -> Table:
    """The first rows of a source, or all of a small one."""
    return first_rows(open_source(source, subset, split, token, whole=limit is None), limit)


def choices_of(source: str, token: str | None = None) -> dict[str, list[str]]:
    """Subset → its splits, as a Hub or TFDS data set has them. Costs a few requests."""
    if source.startswith(TFDS):
        return tfds_choices(source.removeprefix(TFDS))
    return hub_choices(source.removeprefix(HUB), token)


def example_names() -> list[str]:
    """The built-in data sets, in order; none where the package is installed without the repository."""
    folder = hub.examples_folder()
    return sorted(path.name for path in folder.glob("*") if any(_files(path, "train")))


def is_example(source: str) -> bool:
    """Examples bring rows of their own for validation."""
    return source.strip().startswith(EXAMPLE)


def keep_uploads(paths: Iterable[str | Path]) -> Path:
    """Copies of uploaded files in the uploads folder that outlive the browser's; the same files give the same path.

    One file is kept as a file, several as a folder.
    """
    paths = [Path(path) for path in paths]
    digests = [_digest(path) for path in paths]
    if len(paths) == 1:
        return _keep(paths[0], hub.home() / "uploads" / f"{digests[0][:12]}-{files.safe_name(paths[0].name)}")
    joined = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:12]
    folder = hub.home() / "uploads" / f"{joined}-{len(paths)}-files"
    names = [files.safe_name(path.name) for path in paths]
    for path, name, digest in zip(paths, names, digests, strict=True):
        _keep(path, folder / (name if names.count(name) == 1 else f"{digest[:6]}-{name}"))
    return folder


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keep(path: Path, kept: Path) -> Path:
    if kept.exists():
        return kept
    partial = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(path, partial)
        partial.replace(kept)
    except OSError as error:
        raise DataError.at(
            str(kept), error.strerror or error, "The upload cannot be kept on this disk.",
            "Free some space there, or set GEMMA_TUNE_HOME to a folder that can be written.",
        ) from None  # fmt: skip
    finally:
        if partial.exists():
            partial.unlink()
    return kept


def _link_or_copy(path: Path, to: Path) -> None:
    """On one disk a second name costs nothing, however large the file is."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)


def _files(folder: Path, split: str) -> list[Path]:
    return [path for suffix in _SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]


def _example_file(name: str, split: str) -> Path:
    names = example_names()
    where = f"{EXAMPLE}{name}"
    if name not in names:
        there = f"There are: {', '.join(names)}." if names else (
            f"{hub.examples_folder()} holds none: run from a checkout of the repository, or upload a file."
        )  # fmt: skip
        raise DataError.at(where, name, "There is no such built-in example.", there)
    found = _files(hub.examples_folder() / name, split)
    if not found:
        raise DataError.at(
            where, split, "The example has no such split.", f"Its splits are train and {HELD_OUT}."
        )
    return found[0]
