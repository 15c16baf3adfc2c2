"""JSON, a line at a time, and what a row of JSON may hold: no key twice, no endless depth, no half characters."""

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
from gemma_tune.errors import shown

MAX_DEPTH = 100  # of lists and objects within each other; what comes after reads them by functions that call themselves
HALF_PAIR = "The text holds half of a character pair (a lone surrogate).", "Write the text again as UTF-8."
LONG_NUMBER = "A number has more digits than can be read (4,300).", "Put it in quotes, as a text."
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
        while block := read_text(text, file.label, files.BLOCK_BYTES):
            yield block.encode()


def read_text(text: TextIO, label: str, characters: int) -> str:
    """The next characters; DataError where the disk or the encoding fails."""
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
    return not_a_row(number, value, line) or value


def _parse_slowly(number: int, line: bytes) -> object:
    """By Python's own parser, which also reads NaN and halves of character pairs, and says what is wrong."""
    text = _text(line)
    try:
        value = json.loads(text)
        return half_a_pair(number, value, text) or value
    except RecursionError:
        return _too_deep(number, line)
    except json.JSONDecodeError as error:
        rule = f"The line is not valid JSON: at column {error.colno}, {plainly(error.msg, error.doc[error.pos :])}."
        way_out = "Write one whole object per line."
    except ValueError:
        rule, way_out = LONG_NUMBER
    return Rejected(number, "", shown(text), rule, way_out)


def plainly(message: str, rest: str) -> str:
    """What Python's parser says of a place, in plain words. `rest`: the text from there on."""
    if message in ("Expecting value", "Expecting property name enclosed in double quotes") and rest[:1] in (
        "]",
        "}",
    ):
        return "a comma too many, or a value missing, before this bracket"
    return _PLAINLY.get(message, message)


def not_a_row(number: int, value: object, source: str | bytes) -> Rejected | None:
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


def half_a_pair(number: int, value: object, source: str) -> Rejected | None:
    """Why a value whose text no encoding can hold is no row; `source` is its JSON."""
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
