"""JSON, a piece at a time: lines of it, or the rows of a file that may be larger than memory.

Those are the elements of its array, or of the one list in its object.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TextIO

import orjson

from gemma_tune.data import files
from gemma_tune.data.files import DataFile
from gemma_tune.data.rows import Records, Rejected
from gemma_tune.errors import DataError, shown

READ_CHARACTERS = 1 << 20
ROWS_AT_ONCE = 500
_BLANK = " \t\r\n"


def read_json_lines(file: DataFile, encoding: str) -> Iterator[Records]:
    """Whole lines as bytes in UTF-8, still to be parsed. A line beyond MAX_ROW_BYTES is rejected without being held."""
    number, held, start = 1, [], b""
    for block in _utf8_blocks(file, encoding):
        size = len(block)
        if start:  # within a line that is too long
            _, newline, block = block.partition(b"\n")
            if not newline:
                yield Records(number, read_bytes=size)
                continue
            yield Records(number, rejected=[_too_long(number, start)])
            number, start = number + 1, b""
        whole, newline, rest = block.rpartition(b"\n")
        lines = b"".join([*held, whole]) if newline else b""
        yield Records(number, lines=lines, read_bytes=size)
        number += lines.count(b"\n") + 1 if newline else 0
        held = [rest] if newline else [*held, rest]
        if sum(map(len, held)) > files.MAX_ROW_BYTES:
            held, start = [], held[0][:200]
    if start:
        yield Records(number, rejected=[_too_long(number, start)])
    elif rest := b"".join(held):
        yield Records(number, lines=rest)


def _utf8_blocks(file: DataFile, encoding: str) -> Iterator[bytes]:
    if encoding in ("utf-8", "utf-8-sig"):
        with file.open() as stream:
            for index, block in enumerate(files.blocks_of(stream, file.label)):
                yield block.removeprefix(b"\xef\xbb\xbf") if not index else block
        return
    with files.text_of_file(file, encoding) as text:
        while block := text.read(files.BLOCK_BYTES):
            yield block.encode("utf-8", "surrogatepass")


def _too_long(number: int, start: bytes) -> Rejected:
    return Rejected(
        number, "", shown(start.decode("utf-8", "replace")),
        f"The line is longer than {files.MAX_ROW_BYTES // 1_000_000} MB, more than any row to learn from.",
        "Write one row per line, or split it into several rows.",
    )  # fmt: skip


def parse_lines(records: Records) -> Iterator[tuple[int, object]]:
    """(number, value or Rejected) of every line that is not blank."""
    for number, line in enumerate(records.lines.split(b"\n"), records.first):
        if line.strip():
            yield number, parse_line(number, line)


def parse_line(number: int, line: bytes) -> object:
    """The value of a line of JSON, or why it has none. Duplicate keys are told, not overwritten."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = _parse_slowly(number, line)
    if isinstance(value, dict) and line.count(b'":') != _keys_in(value):
        return _twice(number, line) or value
    return value


def _parse_slowly(number: int, line: bytes) -> object:
    """By Python's own parser, which also reads NaN and halves of character pairs, and says what is wrong."""
    try:
        return json.loads(line.decode("utf-8", "replace"))
    except RecursionError:
        rule, way_out = "The line is nested too deeply.", "Write a flat object."
    except json.JSONDecodeError as error:
        rule = f"The line is not valid JSON: {error.msg} at column {error.colno}."
        way_out = "Write one whole object per line."
    except ValueError as error:  # a number of more digits than Python reads
        rule, way_out = f"The line cannot be read: {error}.", "Put the number in quotes."
    return Rejected(number, "", shown(line.decode("utf-8", "replace")), rule, way_out)


def _keys_in(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(_keys_in(one) for one in value.values() if type(one) in (dict, list))
    return sum(_keys_in(one) for one in value if type(one) in (dict, list))


def _twice(number: int, line: bytes) -> Rejected | None:
    """The row rejected where an object in it names a key twice."""
    found: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> dict:
        found.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        json.loads(line, object_pairs_hook=look)
    except (ValueError, RecursionError):
        return None
    if not found:
        return None
    return Rejected(
        number, found[0], shown(line.decode("utf-8", "replace")), f'The key "{found[0]}" stands twice in one object.',
        "Keep the one that is meant.",
    )  # fmt: skip


def read_json(file: DataFile, encoding: str) -> Iterator[Records]:
    """A JSON array of rows, or an object with one list of rows inside."""
    with files.text_of_file(file, encoding) as text:
        rows = JsonRows(text, file.label, files.MAX_ROW_BYTES)
        values, first, done = [], 1, 0
        for source, value in rows:
            whole = source.count('":') == (_keys_in(value) if isinstance(value, dict | list) else 0)
            values.append(
                value
                if whole
                else _twice(first + len(values), source.encode("utf-8", "surrogatepass")) or value
            )
            if len(values) == ROWS_AT_ONCE or rows.read_bytes - done > files.BLOCK_BYTES:
                yield Records(first, values=values, read_bytes=rows.read_bytes - done)
                values, first, done = [], first + len(values), rows.read_bytes
        if first == 1 and not values:
            raise files.no_row(file, rows.start)
        yield Records(first, values=values, read_bytes=rows.read_bytes - done)


class JsonRows:
    """Iterates over (text, value) of each element. Raises DataError that says where the file is broken."""

    def __init__(self, text: TextIO, label: str, max_row_characters: int) -> None:
        self._text, self._label, self._max = text, label, max_row_characters
        self._decoder = json.JSONDecoder()
        self._buffer, self._position, self._at_end = "", 0, False
        self._lines_gone, self._line_start = 0, 0  # what stood before the buffer; where its first line begins
        self._whole = 0  # elements so far
        self.read_bytes = 0
        self._fill()
        self._buffer = self._buffer.lstrip("\ufeff")
        self.start = shown(self._buffer[:200])

    def __iter__(self) -> Iterator[tuple[str, object]]:
        if self._next_character() == "[":
            yield from self._elements()
        else:
            yield from self._elements_of_object()
        if self._next_character():
            raise self._broken("Extra data", self._position)

    def _elements(self) -> Iterator[tuple[str, object]]:
        self._position += 1
        if self._next_character() == "]":
            self._position += 1
            return
        while True:
            yield self._value()
            self._whole += 1
            if (found := self._next_character()) == "]":
                self._position += 1
                return
            if found != ",":
                raise self._broken("Expecting ',' delimiter", self._position)
            self._position += 1

    def _elements_of_object(self) -> Iterator[tuple[str, object]]:
        """Those of its one list of objects. What else stands in it is passed over."""
        keys, lists = [], []
        self._position += 1
        while (found := self._next_character()) != "}":
            if keys:
                if found != ",":
                    raise self._broken("Expecting ',' delimiter", self._position)
                self._position += 1
                self._next_character()
            keys.append(self._key())
            if self._next_character() == "[" and self._opens_objects():
                lists.append(keys[-1])
                if len(lists) > 1:
                    raise self._which(lists)
                yield from self._elements()
            else:
                self._value()
        self._position += 1
        if not lists:
            raise DataError.at(
                self._label, f"an object with {', '.join(keys) or 'no keys'}",
                "The file holds a JSON object where an array of rows is expected.",
                "Put the rows into one list: [ {…}, {…} ].",
            )  # fmt: skip

    def _which(self, lists: list[str]) -> DataError:
        return DataError.at(
            self._label, ", ".join(lists), "The file holds an object with several lists of rows where one is expected.",
            "Save the list that is meant alone as the file: [ {…}, {…} ].",
        )  # fmt: skip

    def _key(self) -> str:
        _, key = self._value()
        if not isinstance(key, str):
            raise self._broken("Expecting property name enclosed in double quotes", self._position)
        if self._next_character() != ":":
            raise self._broken("Expecting ':' delimiter", self._position)
        self._position += 1
        return key

    def _opens_objects(self) -> bool:
        """Whether the list at the position begins with an object."""
        here = self._position
        while True:
            inside = self._buffer[here + 1 :].lstrip(_BLANK)[:1]
            if inside or self._at_end:
                return inside == "{"
            here -= self._fill()

    def _value(self) -> tuple[str, object]:
        """The next value whole; more is read until it is, up to the size that a row may have."""
        self._next_character()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except RecursionError:
                raise DataError.at(
                    self._label, shown(self._buffer[self._position : self._position + 200]),
                    "The JSON is nested too deeply.", "Write flat objects in one array.",
                ) from None  # fmt: skip
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._buffer) - 100 or error.msg.startswith("Unterminated string")
                if self._at_end or not cut:
                    raise self._broken(error.msg, error.pos) from None
            except ValueError as error:  # a number of more digits than Python reads
                raise DataError.at(
                    self._label, shown(self._buffer[self._position : self._position + 200]),
                    f"The JSON cannot be read: {error}.", "Put it in quotes.",
                ) from None  # fmt: skip
            else:
                if end < len(self._buffer) or self._at_end:
                    text, self._position = self._buffer[self._position : end], end
                    return text, value
            self._refuse_endless()
            self._fill()

    def _refuse_endless(self) -> None:
        if len(self._buffer) - self._position > self._max:
            raise DataError.at(
                f"{self._label} row {self._whole + 1}", shown(self._buffer[self._position : self._position + 200]),
                f"The row is longer than {self._max // 1_000_000} MB, or a bracket or quote in it is never closed.",
                "Write one object per row, or split it into several rows.",
            )  # fmt: skip

    def _next_character(self) -> str:
        """The next one that is not blank, with the position on it; empty at the end."""
        while True:
            rest = self._buffer
            while self._position < len(rest) and rest[self._position] in _BLANK:
                self._position += 1
            if self._position < len(rest):
                return rest[self._position]
            if self._at_end:
                return ""
            self._fill()

    def _fill(self) -> int:
        """Reads on, and forgets what lies behind the position; says how much."""
        gone = self._position
        behind = self._buffer[:gone]
        if newlines := behind.count("\n"):
            self._lines_gone += newlines
            self._line_start = behind.rindex("\n") + 1 - gone
        else:
            self._line_start -= gone
        try:
            more = self._text.read(READ_CHARACTERS)
        except UnicodeDecodeError as error:
            raise DataError.at(
                self._label, error.reason, "The file is not valid text in its encoding.", "Save it as UTF-8."
            ) from None
        self._at_end = not more
        self.read_bytes += len(more)
        self._buffer, self._position = self._buffer[gone:] + more, 0
        return gone

    def _broken(self, message: str, position: int) -> DataError:
        """Says whether the file breaks off or holds a mistake, and how many rows before it are whole."""
        before = self._buffer[:position]
        line = self._lines_gone + before.count("\n") + 1
        column = position - (before.rindex("\n") + 1 if "\n" in before else self._line_start) + 1
        spot = f"{self._label} line {line}, column {column}"
        if position >= len(self._buffer.rstrip()) or message.startswith("Unterminated string"):
            return DataError.at(
                spot, self._buffer.rstrip()[-40:],
                f"The JSON breaks off: after {self._whole} whole rows the file ends without its end.",
                "Export or upload the file again; it is not complete.",
            )  # fmt: skip
        return DataError.at(
            spot, self._buffer[position : position + 40],
            f"This is not valid JSON: {message}. {self._whole} rows before it are whole.",
            "Mend this place, or write the data as JSONL with one row per line.",
        )  # fmt: skip
