"""CSV and TSV, a record at a time: the delimiter found, the header checked, ragged records rejected."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from gemma_tune.data import files
from gemma_tune.data.files import DataFile, Lines
from gemma_tune.data.rows import Records, Rejected
from gemma_tune.errors import DataError, shown

MAX_COLUMNS = 100_000
ROWS_AT_ONCE = 500

_PLAINLY = {  # how what Python's reader says begins -> what it means
    "unexpected end of data": "a quote in it is never closed",
    "'": "text follows a quote that closes",
    "field larger": "a cell in it is longer than any text to learn from, or a quote in it is never closed",
}

csv.field_size_limit(files.MAX_ROW_BYTES)  # the default of 128 KiB per cell refuses long answers


def read_csv(file: DataFile, encoding: str) -> Iterator[Records]:
    header, delimiter = csv_header(file, encoding)
    with files.text_of_file(file, encoding) as text:
        lines = Lines(text, file.label)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        _header(reader)
        first, values, rejected, any_row = 1, [], [], False
        for number, found in enumerate(_records(reader, header), 1):
            any_row = True
            (rejected if isinstance(found, Rejected) else values).append(found)
            if len(values) + len(rejected) == ROWS_AT_ONCE:
                yield _batch(number, values, rejected, lines.taken())
                values, rejected, first = [], [], number + 1
        if not any_row:
            raise files.no_row(file, delimiter.join(header))
        yield _batch(first, values, rejected, lines.taken())


def _batch(number: int, values: list, rejected: list[Rejected], read_bytes: int) -> Records:
    numbers, cells = [one for one, _ in values], [one for _, one in values]
    return Records(number, values=cells, numbers=numbers, rejected=rejected, read_bytes=read_bytes)


def csv_header(file: DataFile, encoding: str) -> tuple[list[str], str]:
    """The names of the columns and what separates them."""
    usual = "\t" if file.suffix == ".tsv" else ","
    start = files.head(file).decode(encoding, errors="replace").lstrip("\ufeff")
    delimiter = _delimiter(start, usual)
    try:
        reader = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in _header(reader)]
    except csv.Error as error:
        raise DataError.at(
            f"{file.label} line 1", start,
            f"The header cannot be read: {_plainly(error)}.", "Close every quote in it.",
        ) from None  # fmt: skip
    cut = len(start) >= files.HEAD_BYTES and len(start.splitlines()) == 1
    if len(header) > MAX_COLUMNS or cut:
        raise DataError.at(
            f"{file.label} line 1", f"{'more than ' if cut else ''}{len(header):,} columns",
            f"The first line has more columns than a table of rows to learn from: at most {MAX_COLUMNS:,} are read.",
            "Write one row per line, and only the columns that hold its texts.",
        )  # fmt: skip
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice or "" in header:
        raise DataError.at(
            f"{file.label} line 1", ", ".join(header),
            f"Each column needs a name of its own{'; twice: ' + ', '.join(filter(None, twice)) if any(twice) else ''}.",
            "Name the columns in the first line.",
        )  # fmt: skip
    return header, delimiter


def _header(reader) -> list[str]:
    """The first record that is not blank."""
    return next(filter(None, reader), [])


def _plainly(error: csv.Error) -> str:
    said = str(error)
    return next((words for begin, words in _PLAINLY.items() if said.startswith(begin)), said)


def _records(reader, header: list[str]) -> Iterator[tuple[int, dict] | Rejected]:
    """Records below the header; a ragged or unreadable one is rejected with its line."""
    number, line = 0, reader.line_num + 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            rule = f"The record that begins in line {line} cannot be read: {_plainly(error)}."
            yield Rejected(number, "", "", rule, 'Close every quote, and write a quote inside a text as "".')
        else:
            if cells:  # a blank line is no record
                number += 1
                yield _row(number, line, cells, header)
        line = reader.line_num + 1


def _row(number: int, line: int, cells: list[str], header: list[str]) -> tuple[int, dict] | Rejected:
    if len(cells) == len(header):
        return number, dict(zip(header, cells, strict=True))
    count = f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
    rule = f"Line {line} has {count} where the header has {len(header)}."
    return Rejected(number, "", shown(" | ".join(cells)), rule, "Put texts with separators in quotes.")


def _delimiter(text: str, usual: str) -> str:
    """The separator that gives the most even table over the first records; the usual one where nothing is better."""

    def score(delimiter: str) -> tuple[float, int]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        widths = [len(cells) for cells in islice(reader, 50) if cells]
        if not widths or widths[0] < 2:
            return 0.0, 0
        return sum(width == widths[0] for width in widths) / len(widths), delimiter == usual

    return max((usual, ",", ";", "\t", "|"), key=score)
