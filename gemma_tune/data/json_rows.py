"""JSON, a piece at a time: lines of it, or the rows of a file that may be larger than memory.

Those are the elements of its array, or of the one list in its object.
"""

from __future__ import annotations

import codecs
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
MAX_DEPTH = 100  # of lists and objects within each other; what comes after reads them by functions that call themselves
_BLANK = " \t\r\n"
_SHOWN_CHARACTERS = 40  # of a place that is broken
_NUMBER_END = 3  # so many characters behind a number tell that it goes on: e-5
HALF_PAIR = "The text holds half of a character pair (a lone surrogate).", "Write the text again as UTF-8."
_LONG_NUMBER = "A number has more digits than can be read (4,300).", "Put it in quotes, as a text."
_COLONS = {str: ('":', '" :'), bytes: (b'":', b'" :')}  # behind the name of a key
_PLAINLY = {  # what Python's parser says -> what it means
    "Unterminated string starting at": "a text begins here, and no quote ends it",
    "Expecting property name enclosed in double quotes": "a name in double quotes is expected here",
    "Expecting ',' delimiter": "a comma, or a bracket that closes, is expected here",
    "Expecting ':' delimiter": "a colon is expected here",
    "Expecting value": "a value is expected here: a text in double quotes, a number, true, false, null, […] or {…}",
    "Extra data": "something follows after the end",
    "Invalid control character at": "a line break or another control character stands inside a text; close the quote before it, or write \\n",
    "Invalid \\escape": "a backslash stands before a character that needs none; write a backslash as \\\\",
    "Invalid \\uXXXX escape": "\\u needs four digits or letters a to f behind it",
}


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
            if encoding == "utf-8-sig":
                stream.read(len(codecs.BOM_UTF8))
            yield from files.blocks_of(stream, file.label)
        return
    with files.text_of_file(file, encoding) as text:
        while block := _read(text, file.label, files.BLOCK_BYTES):
            yield block.encode()


def _read(text: TextIO, label: str, characters: int) -> str:
    with files.told(label):
        return text.read(characters)


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
    """The value of a line of JSON, or why it has none."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = _parse_slowly(number, line)
    return _not_a_row(number, value, line) or value


def _parse_slowly(number: int, line: bytes) -> object:
    """By Python's own parser, which also reads NaN and halves of character pairs, and says what is wrong."""
    text = _text(line)
    try:
        value = json.loads(text)
        return _half_a_pair(number, value, text) or value
    except RecursionError:
        return _too_deep(number, line)
    except json.JSONDecodeError as error:
        rule = f"The line is not valid JSON: at column {error.colno}, {_plainly(error.msg, error.doc[error.pos :])}."
        way_out = "Write one whole object per line."
    except ValueError:
        rule, way_out = _LONG_NUMBER
    return Rejected(number, "", shown(text), rule, way_out)


def _plainly(message: str, rest: str) -> str:
    if message in ("Expecting value", "Expecting property name enclosed in double quotes") and rest[:1] in (
        "]",
        "}",
    ):
        return "a comma too many, or a value missing, before this bracket"
    return _PLAINLY.get(message, message)


def _not_a_row(number: int, value: object, source: str | bytes) -> Rejected | None:
    """Why a value that could be parsed is no row all the same. Duplicate keys are told, not overwritten."""
    if type(value) not in (dict, list):
        return None
    try:
        keys = keys_in(value)
    except RecursionError:
        return _too_deep(number, source)
    colon, spaced = _COLONS[type(source)]
    if (keys != source.count(colon) or spaced in source) and (twice := _key_twice(source)):
        rule = f'The key "{twice}" stands twice in one object.'
        return Rejected(number, twice, shown(_text(source)), rule, "Keep the one that is meant.")
    return None


def _half_a_pair(number: int, value: object, source: str) -> Rejected | None:
    if ("\\ud" in source or "\\uD" in source) and (where := half_pair_in(value)):
        return Rejected(number, where, shown(source), *HALF_PAIR)
    return None


def _too_deep(number: int, source: str | bytes) -> Rejected:
    rule = f"The row is nested too deeply: at most {MAX_DEPTH} lists and objects within each other are read."
    return Rejected(number, "", shown(_text(source)), rule, "Write a flat object.")


def _text(source: str | bytes) -> str:
    return source if isinstance(source, str) else source.decode("utf-8", "replace")


def keys_in(value: object, depth: int = MAX_DEPTH) -> int:
    """Those of all objects in it. RecursionError where they are nested deeper than `depth`."""
    if not depth:
        raise RecursionError
    if isinstance(value, dict):
        inner = [keys_in(one, depth - 1) for one in value.values() if type(one) in (dict, list)]
        return len(value) + sum(inner)
    return sum([keys_in(one, depth - 1) for one in value if type(one) in (dict, list)])


def _key_twice(source: str | bytes) -> str:
    """A key that an object names twice; empty where none does."""
    found: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> dict:
        found.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    json.loads(_text(source), object_pairs_hook=look)
    return found[0].encode("utf-8", "backslashreplace").decode() if found else ""


def half_pair_in(value: object, field: str = "") -> str:
    """The field whose text or name no encoding can hold; empty where there is none."""
    if isinstance(value, str):
        return "" if value.isascii() or value == value.encode("utf-8", "replace").decode() else field
    if isinstance(value, dict):
        if any(half_pair_in(name, "name") for name in value):
            return f"the names in {field}" if field else "the names of columns"
        inner = ((one, f"{field}.{name}" if field else name) for name, one in value.items())
    elif isinstance(value, list):
        inner = ((one, f"{field}[{index}]") for index, one in enumerate(value))
    else:
        return ""
    return next(filter(None, (half_pair_in(one, where) for one, where in inner)), "")


def read_json(file: DataFile, encoding: str) -> Iterator[Records]:
    """A JSON array of rows, or an object with one list of rows inside."""
    with files.text_of_file(file, encoding) as text:
        rows = JsonRows(text, file.label, files.MAX_ROW_BYTES)
        values, first, done = [], 1, 0
        for source, value in rows:
            number = first + len(values)
            values.append(_not_a_row(number, value, source) or _half_a_pair(number, value, source) or value)
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
                raise self._refused(
                    f"It is nested too deeply: at most {MAX_DEPTH} lists and objects within each other are read.",
                    "Write flat objects in one array.",
                ) from None
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._buffer) - 100 or error.msg.startswith("Unterminated string")
                if self._at_end or not cut:
                    raise self._broken(error.msg, error.pos) from None
            except ValueError:
                raise self._refused(*_LONG_NUMBER) from None
            else:
                if end + _NUMBER_END <= len(self._buffer) or self._at_end:
                    text, self._position = self._buffer[self._position : end], end
                    return text, value
            if len(self._buffer) - self._position > self._max:
                raise self._refused(
                    f"The row is longer than {self._max // 1_000_000} MB, or a bracket or quote in it is never closed.",
                    "Write one object per row, or split it into several rows.",
                )
            self._fill()

    def _refused(self, rule: str, way_out: str) -> DataError:
        """About the value at the position, whose end cannot be found."""
        begin = self._buffer[self._position : self._position + 200]
        return DataError.at(f"{self._label} row {self._whole + 1}", begin, rule, way_out)

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
        """Reads on, and forgets what lies far behind the position; says how much."""
        gone = max(0, self._position - _SHOWN_CHARACTERS)
        behind = self._buffer[:gone]
        if newlines := behind.count("\n"):
            self._lines_gone += newlines
            self._line_start = behind.rindex("\n") + 1 - gone
        else:
            self._line_start -= gone
        pending = (
            len(self._buffer) - self._position
        )  # a long row is parsed again each time: read more of it at once
        more = _read(self._text, self._label, max(READ_CHARACTERS, pending // 4))
        self._at_end = not more
        self.read_bytes += len(more)
        self._buffer, self._position = self._buffer[gone:] + more, self._position - gone
        return gone

    def _broken(self, message: str, position: int) -> DataError:
        """Says whether the file breaks off or holds a mistake, and how many rows before it are whole."""
        while not self._at_end and position + _SHOWN_CHARACTERS > len(self._buffer):
            position -= self._fill()
        before = self._buffer[:position]
        line = self._lines_gone + before.count("\n") + 1
        column = position - (before.rindex("\n") + 1 if "\n" in before else self._line_start) + 1
        spot = f"{self._label} line {line}, column {column}"
        if position >= len(self._buffer.rstrip()) or message.startswith("Unterminated string"):
            return DataError.at(
                spot, self._buffer.rstrip()[-_SHOWN_CHARACTERS:],
                f"The JSON breaks off: after {self._whole} whole rows the file ends without its end.",
                "Export or upload the file again; it is not complete.",
            )  # fmt: skip
        rest = self._buffer[position : position + _SHOWN_CHARACTERS]
        return DataError.at(
            spot, rest, f"This is not valid JSON: {_plainly(message, rest)}. {self._whole} rows before it are whole.",
            "Mend this place, or write the data as JSONL with one row per line.",
        )  # fmt: skip
