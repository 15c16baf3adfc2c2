"""The rows of a JSON file that may be larger than memory: the elements of its array, or of the one list in its object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TextIO

from gemma_tune.data import files
from gemma_tune.data.files import DataFile
from gemma_tune.data.json_rows import LONG_NUMBER, MAX_DEPTH, half_a_pair, not_a_row, plainly, read_text
from gemma_tune.data.rows import Records
from gemma_tune.errors import DataError, shown

READ_CHARACTERS = 1 << 20
ROWS_AT_ONCE = 500
_BLANK = " \t\r\n"
_SHOWN_CHARACTERS = 40  # of a place that is broken
_NUMBER_END = 3  # so many characters behind a number tell that it goes on: e-5


def read_json(file: DataFile, encoding: str) -> Iterator[Records]:
    """A JSON array of rows, or an object with one list of rows inside."""
    with files.text_of_file(file, encoding) as text:
        rows = JsonRows(text, file.label, files.MAX_ROW_BYTES)
        values, first, done = [], 1, 0
        for source, value in rows:
            number = first + len(values)
            values.append(not_a_row(number, value, source) or half_a_pair(number, value, source) or value)
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
                raise self._refused(*LONG_NUMBER) from None
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
        more = read_text(self._text, self._label, max(READ_CHARACTERS, pending // 4))
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
            spot, rest, f"This is not valid JSON: {plainly(message, rest)}. {self._whole} rows before it are whole.",
            "Mend this place, or write the data as JSONL with one row per line.",
        )  # fmt: skip
