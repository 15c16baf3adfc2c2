"""The bytes of a file → rows: JSON array, JSONL, CSV and TSV, with encoding and delimiter found.

What is wrong with the file as a whole is a DataError; what is wrong with one row is a `Rejected`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from gemma_tune.data.rows import Rejected, Table
from gemma_tune.errors import DataError, shown

csv.field_size_limit(2**31 - 1)  # the default of 128 KiB per cell refuses long answers

KNOWN = "JSON (an array), JSONL, CSV or TSV"
_BINARY = {
    b"PK\x03\x04": "an Excel or zip file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
    b"%PDF": "a PDF file",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
}


@dataclass
class _Parsed:
    rows: list[tuple[int, dict]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)  # an ordered set

    def add(self, number: int, value: object) -> None:
        if not isinstance(value, dict):
            self.reject(
                number, value, "A row must be an object.", 'Write it as {"instruction": "…", "output": "…"}.'
            )
            return
        self.rows.append((number, value))
        self.columns.update(dict.fromkeys(value))

    def reject(self, number: int, value: object, rule: str, way_out: str) -> None:
        self.rejected.append(Rejected(number, "", shown(value), rule, way_out))

    def full(self, limit: int | None) -> bool:
        return limit is not None and len(self.rows) >= limit


def read_file(path: Path, limit: int | None = None) -> Table:
    """At most `limit` rows. Raises DataError where the file as a whole cannot be read."""
    where = path.name
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError.at(
            str(path), None, "There is no such file.", "Upload it, or correct the path."
        ) from None
    except OSError as error:
        raise DataError.at(
            str(path), error.strerror or error, "The file cannot be read.", "Check the path and its rights."
        ) from None
    text, notes = decode(data, where)
    if not text.strip():
        raise DataError.at(
            where, f"{len(data)} bytes", "The file is empty.", "Choose a file with at least one row."
        )
    parsed = _parse(text, path.suffix.lower(), where, limit, notes)
    if not parsed.rows and not parsed.rejected:
        raise DataError.at(
            where, shown(text), "The file holds no row.", "Choose a file with at least one row."
        )
    fingerprint = hashlib.sha256(data).hexdigest()
    return Table(list(parsed.columns), parsed.rows, parsed.rejected, fingerprint, where, notes)


def decode(data: bytes, where: str) -> tuple[str, list[str]]:
    """The text, and a note where the encoding had to be guessed."""
    for magic, kind in _BINARY.items():
        if data.startswith(magic):
            raise DataError.at(where, data[:8], f"This is {kind}, not text.", f"Save it as {KNOWN} in UTF-8.")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16"), ["Read as UTF-16, by its byte order mark."]
        except UnicodeDecodeError as error:
            raise DataError.at(
                where, error.reason, "The file is not valid UTF-16.", "Save it as UTF-8."
            ) from None
    if b"\x00" in data[:4096]:
        raise DataError.at(
            where, data[:8], "The file holds bytes that are not text.", f"Save it as {KNOWN} in UTF-8."
        )
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    for encoding, label in (("cp1252", "Windows-1252 (Western European)"), ("latin-1", "Latin-1")):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        return text, [
            f"Line {line} is not UTF-8, so the file was read as {label}. If accents look wrong, save it as UTF-8."
        ]
    raise AssertionError("Latin-1 decodes every byte")


def _parse(text: str, suffix: str, where: str, limit: int | None, notes: list[str]) -> _Parsed:
    first = text.lstrip()[:1]
    if suffix in (".csv", ".tsv"):
        return _csv(text, suffix, where, limit, notes)
    if first == "[":
        return _json_array(text, where, limit)
    if first == "{":
        return _json_object_or_lines(text, suffix, where, limit, notes)
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(text, limit)
    raise DataError.at(
        where, shown(text), f"The file is neither {KNOWN}.",
        'A JSON file begins with [ or {; name a table of comma-separated values "….csv".',
    )  # fmt: skip


def _json_array(text: str, where: str, limit: int | None) -> _Parsed:
    try:
        values = json.loads(text)
    except RecursionError:
        raise DataError.at(
            where, shown(text), "The JSON is nested too deeply.", "Write flat objects in one array."
        ) from None
    except json.JSONDecodeError as error:
        raise _broken_json(text, where, error) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise DataError.at(
            where, shown(text), f"The JSON cannot be read: {error}.", "Put it in quotes."
        ) from None
    parsed = _Parsed()
    for number, value in enumerate(values, 1):
        parsed.add(number, value)
        if parsed.full(limit):
            break
    return parsed


def _broken_json(text: str, where: str, error: json.JSONDecodeError) -> DataError:
    """Says whether the file breaks off or holds a mistake, and how many rows before it are whole."""
    whole, decoder = 0, json.JSONDecoder()
    position = text.index("[") + 1
    while True:
        try:
            _, position = decoder.raw_decode(text, _skip(text, position))
        except (ValueError, RecursionError):
            break
        whole += 1
        position = _skip(text, position)
        if text[position : position + 1] != ",":
            break
        position += 1
    spot = f"{where} line {error.lineno}, column {error.colno}"
    breaks_off = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    if breaks_off:
        return DataError.at(
            spot, text.rstrip()[-40:], f"The JSON breaks off: after {whole} whole rows the file ends without its ].",
            "Export or upload the file again; it is not complete.",
        )  # fmt: skip
    return DataError.at(
        spot, text[error.pos : error.pos + 40], f"This is not valid JSON: {error.msg}. {whole} rows before it are whole.",
        "Mend this place, or write the data as JSONL with one row per line.",
    )  # fmt: skip


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _json_object_or_lines(text: str, suffix: str, where: str, limit: int | None, notes: list[str]) -> _Parsed:
    """A file that begins with {: JSONL whatever its name, or a single object, which is refused."""
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(text, limit)
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError.at(
            where, shown(text), "The JSON is nested too deeply.", "Write one flat object per line."
        ) from None
    except json.JSONDecodeError as error:
        if not _is_object(text.lstrip().split("\n", 1)[0]):
            raise _broken_object(where, text, error) from None
        notes.append("Read as JSONL, one row per line, whatever its name says.")
        return _json_lines(text, limit)
    except ValueError:  # a number of more digits than Python reads; the line of it is told
        return _json_lines(text, limit)
    inside = [
        key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)
    ]
    if len(inside) == 1:
        way_out = f'The rows seem to be under "{inside[0]}": save that list alone as the file.'
    else:
        way_out = "Put the rows into one list: [ {…}, {…} ]."
    raise DataError.at(
        where, f"an object with {', '.join(map(str, value)) or 'no keys'}",
        "The file holds a JSON object where an array of rows is expected.", way_out,
    )  # fmt: skip


def _broken_object(where: str, text: str, error: json.JSONDecodeError) -> DataError:
    return DataError.at(
        f"{where} line {error.lineno}, column {error.colno}", text[error.pos : error.pos + 40] or text[-40:],
        f"This is not valid JSON: {error.msg}.", "Write an array [ {…}, {…} ], or JSONL with one row per line.",
    )  # fmt: skip


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(text: str, limit: int | None) -> _Parsed:
    parsed = _Parsed()
    for number, line in enumerate(text.split("\n"), 1):  # never splitlines(): U+2028 may stand inside a text
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except RecursionError:
            parsed.reject(number, line, "The line is nested too deeply.", "Write a flat object.")
        except json.JSONDecodeError as error:
            rule = f"The line is not valid JSON: {error.msg} at column {error.colno}."
            parsed.reject(number, line, rule, "Write one whole object per line.")
        except ValueError as error:  # a number of more digits than Python reads
            parsed.reject(number, line, f"The line cannot be read: {error}.", "Put the number in quotes.")
        else:
            parsed.add(number, value)
        if parsed.full(limit):
            break
    return parsed


def _csv(text: str, suffix: str, where: str, limit: int | None, notes: list[str]) -> _Parsed:
    delimiter = _delimiter(text, "\t" if suffix == ".tsv" else ",")
    if delimiter != ("\t" if suffix == ".tsv" else ","):
        notes.append(f"The columns are separated by {delimiter!r}.")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError.at(
            f"{where} line 1", shown(text), f"The header cannot be read: {error}.", "Close every quote in it."
        ) from None
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice or "" in header:
        raise DataError.at(
            f"{where} line 1", ", ".join(header),
            f"Each column needs a name of its own{'; twice: ' + ', '.join(filter(None, twice)) if any(twice) else ''}.",
            "Name the columns in the first line.",
        )  # fmt: skip
    parsed = _Parsed(columns=dict.fromkeys(header))
    _csv_records(reader, header, parsed, limit)
    return parsed


def _csv_records(reader, header: list[str], parsed: _Parsed, limit: int | None) -> None:
    """Records below the header; a ragged or unreadable one is rejected with its line."""
    number, line = 0, reader.line_num + 1
    while not parsed.full(limit):
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            rule = f"The record that begins in line {line} cannot be read: {error}."
            parsed.reject(number, "", rule, 'Close every quote, and write a quote inside a text as "".')
        else:
            if cells:  # a blank line is no record
                number += 1
                if len(cells) == len(header):
                    parsed.add(number, dict(zip(header, cells, strict=True)))
                else:
                    rule = f"Line {line} has {len(cells)} cells where the header has {len(header)}."
                    parsed.reject(number, " | ".join(cells), rule, "Put texts with separators in quotes.")
        line = reader.line_num + 1


def _delimiter(text: str, usual: str) -> str:
    """The separator that gives the most even table over the first records; the usual one where nothing is better."""

    def score(delimiter: str) -> tuple[float, int]:
        reader = csv.reader(io.StringIO(text[:1_000_000], newline=""), delimiter=delimiter)
        widths = [len(cells) for cells in islice(reader, 50) if cells]
        if not widths or widths[0] < 2:
            return 0.0, 0
        return sum(width == widths[0] for width in widths) / len(widths), delimiter == usual

    return max((usual, ",", ";", "\t", "|"), key=score)
