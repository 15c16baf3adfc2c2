"""Where rows come from: a file, a built-in example, the Hugging Face Hub. Everything becomes a `Table`.

A source is written `example:NAME`, `hub:OWNER/NAME` or the path of a file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

from gemma_tune import hub
from gemma_tune.data.files import read_file
from gemma_tune.data.hub_sets import hub_choices, read_hub
from gemma_tune.data.rows import Table
from gemma_tune.errors import DataError

__all__ = ["example_names", "hub_choices", "is_example", "keep_upload", "read"]

EXAMPLE, HUB = "example:", "hub:"
HELD_OUT = "held_out"
_SUFFIXES = (".jsonl", ".csv")


def read(
    source: str, subset: str = "", split: str = "train", token: str | None = None, limit: int | None = None
) -> Table:
    """At most `limit` rows of a source. `subset` is for the Hub; `split` too, and `held_out` for an example."""
    source = source.strip()
    if source.startswith(HUB):
        return read_hub(source.removeprefix(HUB), subset, split, token, limit)
    if source.startswith(EXAMPLE):
        path = _example_file(source.removeprefix(EXAMPLE), split)
        return replace(read_file(path, limit), source=source)
    path = hub.check_path(source, "data.source")
    if path.is_dir():
        raise DataError.at("data.source", source, "This is a folder, not a file.", "Name one file in it.")
    return read_file(path, limit)


def example_names() -> list[str]:
    """The built-in data sets, in order; none where the package is installed without the repository."""
    folder = hub.examples_folder()
    return sorted(path.name for path in folder.glob("*") if any(_files(path, "train")))


def is_example(source: str) -> bool:
    """Examples bring rows of their own for validation."""
    return source.strip().startswith(EXAMPLE)


def keep_upload(path: str | Path) -> Path:
    """A copy of an uploaded file in the uploads folder that outlives the browser's; the same file gives the same path."""
    path = Path(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip(".-")[:60] or "upload"
    suffix = re.sub(r"[^A-Za-z0-9.]+", "", path.suffix)[:10]
    kept = hub.home() / "uploads" / f"{digest[:12]}-{stem}{suffix}"
    if kept.exists():
        return kept
    partial = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial)
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
