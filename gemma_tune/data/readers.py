"""What stands in a file → `Records`, a piece at a time: JSON, JSONL, CSV and TSV, Parquet, plain text.

What is wrong with the file as a whole is a DataError; what is wrong with one row is a `Rejected`. Nothing larger than
one row is ever held.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gemma_tune.data import files
from gemma_tune.data.containers import files_of
from gemma_tune.data.csv_rows import csv_header, read_csv
from gemma_tune.data.files import KNOWN, DataFile, Lines
from gemma_tune.data.json_array import read_json
from gemma_tune.data.json_rows import read_json_lines
from gemma_tune.data.rows import Opened, Records
from gemma_tune.errors import DataError, shown

TEXT_PIECE_CHARACTERS = 2_000
ROWS_AT_ONCE = 500
PIECE_BYTES = 16_000_000  # rows with images are heavy


def open_path(path: Path, *, whole: bool = True) -> Opened:
    """All files that a path means, one after the other. `whole`: false for a look at the first rows alone.

    Then the encoding is guessed from the beginning, and a fingerprint still reads everything.
    """
    found, notes = files_of(path)
    return _opened(found, _kinds(found, notes), files.shown_name(path), notes, whole)


def open_each(path: Path) -> list[Opened]:
    """Every file that a path means by itself, since each may have its own schema."""
    found, notes = files_of(path)
    kinds = _kinds(found, notes)
    if len(found) == 1:
        return [_opened(found, kinds, files.shown_name(path), notes, True)]
    alone = [_opened([file], {file: kinds[file]}, file.label, [], True) for file in found]
    return [replace(alone[0], notes=notes + alone[0].notes), *alone[1:]]


def _opened(
    found: list[DataFile], kinds: dict[DataFile, str], name: str, notes: list[str], whole: bool
) -> Opened:
    several = len(found) > 1

    def records() -> Iterator[Records]:
        for file, kind in kinds.items():
            for one in _read(file, kind, whole):
                yield replace(one, file=file.label if several else "", origin=file)

    total = sum(files.probe(file).bytes for file in found) if whole else None
    if whole:
        notes += [files.probe(file).note for file in found if files.probe(file).note]
    columns = (
        csv_header(found[0], _encoding(found[0], whole))[0]
        if not several and kinds[found[0]] == "csv"
        else []
    )
    return Opened(name, records, lambda: _fingerprint(found), total, notes, columns)


def _kinds(found: list[DataFile], notes: list[str]) -> dict[DataFile, str]:
    """DataError with the faults of all files that are of no kind."""
    kinds: dict[DataFile, str] = {}
    faults = []
    for file in found:
        try:
            kinds[file] = _kind(file, notes if len(found) == 1 else [])
        except DataError as error:
            faults += error.faults
    if faults:
        raise DataError(*faults)
    return kinds


def _fingerprint(found: list[DataFile]) -> str:
    """SHA-256 of the bytes of the one file; of the names and digests of several."""
    if len(found) == 1:
        return files.probe(found[0]).sha256
    listed = "\n".join(f"{file.label} {files.probe(file).sha256}" for file in found)
    return hashlib.sha256(listed.encode()).hexdigest()


def _read(file: DataFile, kind: str, whole: bool) -> Iterator[Records]:
    encoding = _encoding(file, whole)
    if kind == "parquet":
        return _parquet(file)
    if kind == "csv":
        return read_csv(file, encoding)
    if kind == "text":
        return _plain(file, encoding)
    return read_json_lines(file, encoding) if kind == "jsonl" else read_json(file, encoding)


def _encoding(file: DataFile, whole: bool) -> str:
    return files.probe(file).encoding if whole else files.guessed_encoding(files.head(file))


def _kind(file: DataFile, notes: list[str]) -> str:
    """json, jsonl, csv, parquet or text, by the name and the first bytes. DataError where it is none of them."""
    start = files.head(file)
    text = start.decode(files.guessed_encoding(start), errors="replace").lstrip("\ufeff").lstrip()
    if not text:
        raise DataError.at(
            file.label, f"{len(start)} bytes", "The file is empty.", "Choose a file with at least one row."
        )
    if start.startswith(b"PAR1") or file.suffix == ".parquet":
        return "parquet"
    named = {".csv": "csv", ".tsv": "csv", ".txt": "text", ".md": "text"}.get(file.suffix)
    if named and not _holds_json(text):
        return named
    first = text[:1]
    if file.suffix in (".jsonl", ".ndjson"):
        return "json" if first == "[" and not _is_list_of_rows(text) else "jsonl"
    if first == "{" and _is_lines(text):
        notes.append("Read as JSONL, one row per line, whatever its name says.")
        return "jsonl"
    if named:
        notes.append("Read as JSON, whatever its name says.")
    if first in ("[", "{"):
        return "json"
    raise DataError.at(
        file.label, shown(text), f"The file is not {KNOWN}.",
        'A JSON file begins with [ or {; name a table of comma-separated values "….csv" and a plain text "….txt".',
    )  # fmt: skip


def _holds_json(text: str) -> bool:
    """Whether it begins with a line that is an object, or with an array of objects."""
    if not text.startswith("["):
        return _is_json_row(text.split("\n", 1)[0])
    try:
        return isinstance(json.JSONDecoder().raw_decode(text[1:].lstrip())[0], dict)
    except (ValueError, RecursionError):
        return False


def _is_json_row(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_list_of_rows(text: str) -> bool:
    """Whether lines that begin with [ are one row each, as lists that are refused one by one."""
    lines = [line for line in text.split("\n", 3)[:3] if line.strip()]
    return len(lines) > 1 and all(
        line.lstrip().startswith("[") and line.rstrip().endswith("]") for line in lines[:2]
    )


def _is_lines(text: str) -> bool:
    first, _, rest = text.partition("\n")
    return _is_json_row(first) and rest.lstrip()[:1] == "{"


def _parquet(file: DataFile) -> Iterator[Records]:
    import pyarrow
    import pyarrow.parquet

    first = 1
    try:
        with file.open() as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            names = table.schema_arrow.names
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise DataError.at(
                    file.label,
                    ", ".join(names),
                    f"Two columns have the same name: {twice[0]}.",
                    "Give each its own.",
                )
            weight = file.path.stat().st_size / max(1, table.metadata.num_rows)
            for batch in table.iter_batches(max(1, min(ROWS_AT_ONCE, int(PIECE_BYTES / weight)))):
                values = batch.to_pylist()
                yield Records(first, values=values, read_bytes=round(weight * len(values)))
                first += len(values)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError.at(
            file.label, str(error).split("\n")[0], "The Parquet file is damaged or cut off.",
            "Export or upload it again.",
        ) from None  # fmt: skip
    except (UnicodeDecodeError, OverflowError) as error:
        raise DataError.at(
            f"{file.label} rows {first:,} to {first + ROWS_AT_ONCE - 1:,}", str(error),
            "A name or cell of the Parquet file cannot be read: its text is not UTF-8, or its date lies beyond the year 9999.",
            "Mend or leave out that column.",
        ) from None  # fmt: skip
    if first == 1:
        raise files.no_row(file, ", ".join(names))


def _plain(file: DataFile, encoding: str) -> Iterator[Records]:
    """Whole paragraphs, joined up to TEXT_PIECE_CHARACTERS: one row each, numbered by the line where it begins."""
    with files.text_of_file(file, encoding) as text:
        lines = Lines(text, file.label)
        values, numbers = [], []
        for number, piece in _pieces(_paragraphs(lines)):
            values.append({"text": piece})
            numbers.append(number)
            if len(values) == ROWS_AT_ONCE:
                yield Records(numbers[0], values=values, numbers=numbers, read_bytes=lines.taken())
                values, numbers = [], []
        yield Records(1, values=values, numbers=numbers, read_bytes=lines.taken())


def _paragraphs(lines: Lines) -> Iterator[tuple[int, str]]:
    """(line, text) of what stands between blank lines; a longer one is broken between its lines."""
    held: list[str] = []
    size, begin = 0, 1
    for number, line in enumerate(lines, 1):
        if held and (not line.strip() or size > TEXT_PIECE_CHARACTERS):
            yield begin, "".join(held).strip("\r\n")
            held, size = [], 0
        if line.strip():
            begin = begin if held else number
            held.append(line)
            size += len(line)
    if held:
        yield begin, "".join(held).strip("\r\n")


def _pieces(paragraphs: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    held: list[str] = []
    size, begin = 0, 1
    for number, paragraph in paragraphs:
        if held and size + len(paragraph) > TEXT_PIECE_CHARACTERS:
            yield begin, "\n\n".join(held)
            held, size = [], 0
        begin = begin if held else number
        held.append(paragraph)
        size += len(paragraph) + len("\n\n")
    if held:
        yield begin, "\n\n".join(held)
