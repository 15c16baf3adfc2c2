"""Bad input: each case gets a message with where, what was met, the rule and the way out, and good rows are kept.

Section 8 of the journey and "Bad input" of the data issue, for every kind of file where a case makes sense.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gemma_tune import config
from gemma_tune.data import prepare, read
from gemma_tune.data.prepare import gather
from gemma_tune.errors import Fault, GemmaTuneError

PAIR = {"prompt": "Say hello", "completion": "Hello"}
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
PREFERENCE = {"prompt": "Say hello", "chosen": "Hello", "rejected": "Bye"}
LABELLED = {"prompt": "Say hello", "completion": "Hello", "label": True}
PARTS = {"prompt": "Say hello", "completion": "Hello", "part": "train"}
CALL = {"messages": [*TALK["messages"]], "tools": [{"name": "weather"}]}

JSON_KINDS = ("json", "object", "jsonl", "gzip", "zip", "folder")
TEXT_KINDS = (*JSON_KINDS, "csv", "tsv")
ALL_KINDS = (*TEXT_KINDS, "parquet")
JARGON = re.compile(r"Error\b|Exception|codec|NoneType|sys\.|Errno|Expecting|Traceback|<class")

Content = str | bytes | dict | Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    name: str  # of the file or folder
    content: Content  # a dict: files of a folder; a function: makes what lies at a path
    where: str
    value: str
    rule: str
    way_out: str
    row: int = 0  # number of the row that is rejected; 0: the whole source is refused
    data: dict = field(default_factory=dict)  # settings beside the source
    limits: dict = field(default_factory=dict)  # made small: "containers.MAX_FILES"

    @property
    def id(self) -> str:
        return f"{self.name}: {self.rule}"[:70].replace("\n", " ")


# What the files are made of


def json_text(rows: object) -> str:
    return json.dumps(rows)  # writes NaN, and halves of character pairs as \ud800


def json_lines(rows: list) -> str:
    return "".join(f"{json_text(row)}\n" for row in rows)


def parquet(columns: dict | list) -> bytes:
    """Columns, or rows of equal keys."""
    table = pa.Table.from_pylist(columns) if isinstance(columns, list) else pa.table(columns)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def zipped(files: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_with_link() -> bytes:
    entry = zipfile.ZipInfo("passwords.txt")
    entry.external_attr = 0o120777 << 16
    return zipped_entries([(entry, "/etc/passwd")])


def zipped_entries(entries: list[tuple[zipfile.ZipInfo | str, str]]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        for entry, content in entries:
            archive.writestr(entry, content)
    return buffer.getvalue()


def locked_zip() -> bytes:
    """A zip whose entry is marked as encrypted, which zipfile cannot write."""
    packed = bytearray(zipped({"rows.jsonl": json_lines([PAIR])}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        packed[packed.index(signature) + offset] |= 1
    return bytes(packed)


def arrow_text_that_is_not_utf_8() -> pa.Array:
    raw = pa.array([b"\xff"], pa.binary())
    return pa.StringArray.from_buffers(1, *raw.buffers()[1:])


def parquet_with_a_column_twice() -> bytes:
    buffer = io.BytesIO()
    cells = [pa.array([cell]) for cell in ("q", "a", "b")]
    pq.write_table(pa.Table.from_arrays(cells, names=["prompt", "completion", "completion"]), buffer)
    return buffer.getvalue()


def cell_of_csv(value: object) -> str:
    text = "" if value is None else value if isinstance(value, str) else json_text(value)
    return '"' + text.replace('"', '""') + '"'


def csv_text(rows: list[dict], delimiter: str = ",") -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([row.get(name) for name in columns] for row in rows)]
    return "".join(delimiter.join(map(cell_of_csv, line)) + "\n" for line in lines)


def written(kind: str, rows: list) -> tuple[str, Content, str]:
    """(name, content, how a place in it begins) of rows in one kind of file."""
    lines = json_lines(rows)
    return {
        "json": lambda: ("a.json", json_text(rows), "a.json"),
        "object": lambda: ("a.json", json_text({"version": 1, "data": rows, "n": []}), "a.json"),
        "jsonl": lambda: ("a.jsonl", lines, "a.jsonl"),
        "csv": lambda: ("a.csv", csv_text(rows), "a.csv"),
        "tsv": lambda: ("a.tsv", csv_text(rows, "\t"), "a.tsv"),
        "parquet": lambda: ("a.parquet", parquet(rows), "a.parquet"),
        "gzip": lambda: ("a.jsonl.gz", gzip.compress(lines.encode()), "a.jsonl.gz"),
        "zip": lambda: ("a.zip", zipped({"b/rows.jsonl": lines}), "a.zip"),
        "folder": lambda: (
            "set",
            {"one.jsonl": json_lines(rows[:1]), "two.json": json_text(rows)},
            "two.json",
        ),
    }[kind]()


# The table


def bad_row(
    good: dict, bad: object, field: str, value: str, rule: str, way_out: str, kinds=JSON_KINDS, **data
):
    """The same row, the second of three, in each kind of file."""
    for kind in kinds:
        name, content, begin = written(kind, [good, bad, good])
        where = f"{begin} row 2" + (f", {field}" if field else "")
        yield Case(name, content, where, value, rule, way_out, row=2, data=data)


def bad_turns(turns: object, field: str, value: str, rule: str, way_out: str, kinds=TEXT_KINDS):
    return bad_row(TALK, {"messages": turns}, field, value, rule, way_out, kinds)


def in_kinds(content: Content, names: tuple[str, ...], where: str, *told: str) -> Iterator[Case]:
    for name in names:
        yield Case(name, content, where.format(name=name), *told)


USER, ANSWER = TALK["messages"]
SYSTEM = {"role": "system", "content": "Be kind"}
EMPTY_NAMES = ("a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.txt", "a.md", "no_suffix")
DEEP = "[" * 10_000
HALF_PARQUET = parquet([PAIR | {"completion": str(number)} for number in range(500)])[:2_000]
NO_OBJECT = "A row must be an object", '{"instruction"'

CASES: list[Case] = [
    # nothing there
    *in_kinds("", EMPTY_NAMES, "{name}", "0 bytes", "The file is empty", "at least one row"),
    *in_kinds(" \n\t\r\n", ("a.json", "a.jsonl", "a.csv", "a.txt"), "{name}", "5 bytes", "is empty", "at least one"),
    *in_kinds(b"\xef\xbb\xbf", ("a.json", "a.jsonl", "a.csv", "a.txt"), "{name}", "3 bytes", "is empty", "at least one"),
    *in_kinds(b"\xff\xfe", ("a.json", "a.csv"), "{name}", "2 bytes", "is empty", "at least one"),
    *in_kinds(gzip.compress(b""), ("a.jsonl.gz", "a.csv.gz", "a.gz"), "{name}", "0 bytes", "is empty", "at least one"),
    Case("a.json", "[ ]", "a.json", "[ ]", "holds no row", "at least one row"),
    Case("a.csv", "prompt,completion\n", "a.csv", "prompt,completion", "holds no row", "at least one row"),
    Case("a.tsv", "prompt\tcompletion", "a.tsv", "prompt completion", "holds no row", "at least one row"),
    Case("a.parquet", parquet({"prompt": pa.array([], pa.string())}), "a.parquet", "prompt", "holds no row", "at least one row"),
    Case("a.zip", zipped({}), "a.zip", "nothing", "The zip file holds no file of rows", ".jsonl"),
    Case("a.zip", zipped({"photo.png": "x", "b/notes.docx": "y"}), "a.zip", "photo.png, b/notes.docx", "holds no file of rows", ".csv"),
    Case("a.zip", zipped({"inner.zip": zipped({"a.jsonl": json_lines([PAIR])})}), "a.zip", "inner.zip", "holds no file of rows", "JSON"),
    Case("a.zip", zipped({"__MACOSX/a.json": "x", ".hidden.json": "x"}), "a.zip", "nothing", "holds no file of rows", "JSON"),
    Case("set", {}, "set", "nothing", "The folder holds no file of rows", ".parquet"),
    Case("set", {"photo.png": "x"}, "set", "photo.png", "The folder holds no file of rows", ".parquet"),
    Case("set", {"one.json": "", "two.jsonl": json_lines([PAIR])}, "one.json", "0 bytes", "is empty", "at least one row"),
    Case("gone.json", lambda path: None, "gone.json", "", "no such file", "correct the path"),
    # cut off, damaged
    Case("a.json", '[{"a": 1},\n {"a": 2},\n {"a":', "a.json line 3, column 7", '{"a":', "breaks off: after 2 whole rows", "not complete"),
    Case("a.json", '[{"a": "cut in the mid', "a.json line 1, column 8", "cut in the mid", "breaks off: after 0 whole rows", "not complete"),
    Case("a.json", '{"data": [{"a": 1}, {"a"', "a.json line 1, column 25", '[{"a": 1}, {"a"', "breaks off: after 1 whole rows", "not complete"),
    Case("a.json", '{"a": 1', "a.json line 1, column 8", '{"a": 1', "breaks off: after 0 whole rows", "not complete"),
    Case("a.jsonl", json_lines([PAIR]) + '{"prompt": "cut o', "a.jsonl row 2", '{"prompt": "cut o', "column 12, a text begins here, and no quote ends it", "one whole object per line", row=2),
    Case("a.json", json_lines([PAIR]) + '{"prompt": "cut o', "a.json row 2", '{"prompt": "cut o', "not valid JSON", "one whole object per line", row=2),
    Case("a.csv", csv_text([PAIR]) + '"cut o', "a.csv row 2", "", "begins in line 3 cannot be read: a quote in it is never closed", "Close every quote", row=2),
    Case("a.parquet", HALF_PARQUET, "a.parquet", "", "damaged or cut off", "Export or upload it again"),
    Case("a.parquet", "prompt,completion\n", "a.parquet", "", "damaged or cut off", "Export or upload it again"),
    Case("a.jsonl.gz", gzip.compress(random.Random(1).randbytes(9_000).hex().encode())[:5_000], "a.jsonl.gz", "ended before the end", "damaged or cut off", "again"),
    Case("a.csv.gz", csv_text([PAIR]), "a.csv.gz", "Not a gzipped file", "damaged or cut off", "again"),
    Case("a.zip", zipped({"a.jsonl": json_lines([PAIR] * 9)})[:90], "a.zip", "not a zip file", "damaged or cut off", "again"),
    Case("a.zip", "", "a.zip", "not a zip file", "damaged or cut off", "again"),
    Case("a.zip", zipped({"a.jsonl": json_lines([PAIR])}, zipfile.ZIP_STORED).replace(b"Say hello", b"Say_hello", 1), "a.zip/a.jsonl", "Bad CRC", "damaged or cut off", "again"),
    # not what the name says
    Case("a.csv", zipped({"[Content_Types].xml": "x"}), "a.csv", "PK", "This is an Excel file, or a zip file", "as CSV"),
    Case("a.xlsx", zipped({"[Content_Types].xml": "x"}), "a.xlsx", "PK", "This is an Excel file", "as CSV"),
    Case("a.zip", zipped({"[Content_Types].xml": "x", "xl/a.xml": "y"}), "a.zip", "[Content_Types].xml", "an Excel or Word file", "as CSV"),
    Case("a.xls", b"\xd0\xcf\x11\xe0" + b"x" * 99, "a.xls", "xd0", "an old Excel or Word file", "as CSV"),
    Case("a.json", gzip.compress(b"[]"), "a.json", "x1f", "a gzip file under another name", "ends in .gz"),
    Case("a.txt", "%PDF-1.7 …", "a.txt", "%PDF", "a PDF file", ".txt"),
    Case("a.jsonl", b"ARROW1\x00\x00", "a.jsonl", "ARROW1", "an Arrow file", "Parquet"),
    Case("a.json", b"\x89PNG\r\n\x1a\n\x00\x00", "a.json", "PNG", "This is an image", "together with a data file"),
    Case("a.json", "<html>Not found</html>", "a.json", "<html>", "is not JSON, JSONL, CSV", "begins with ["),
    Case("a.json", "prompt,completion\nq,a\n", "a.json", "prompt,completion", "is not JSON", "….csv"),
    Case("a.yaml", "- prompt: q", "a.yaml", "- prompt: q", "is not JSON", "begins with ["),
    # JSON that is none
    Case("a.json", json_text(PAIR), "a.json", "an object with prompt, completion", "object where an array of rows is expected", "[ {…}, {…} ]"),
    Case("a.json", "{}", "a.json", "no keys", "object where an array of rows", "[ {…}, {…} ]"),
    Case("a.json", json_text({"a": [1, 2], "b": {"c": [PAIR]}}), "a.json", "an object with a, b", "object where an array of rows", "[ {…}, {…} ]"),
    Case("a.json", json_text({"train": [PAIR], "n": 1, "test": [PAIR]}), "a.json", "train, test", "several lists of rows where one is expected", "list that is meant alone"),
    Case("a.json", '[{"a": 1}\n {"a": 2}]', "a.json line 2, column 2", '{"a": 2}]', "a comma, or a bracket that closes, is expected here. 1 rows before it are whole", "JSONL"),
    Case("a.json", '[{"a": 1},\n]', "a.json line 2, column 1", "]", "a comma too many", "Mend this place"),
    Case("a.json", "[{'a': 1}]", "a.json line 1, column 3", "'a': 1", "a name in double quotes is expected", "Mend this place"),
    Case("a.json", '[{"a": undefined}]', "a.json line 1, column 8", "undefined", "a value is expected here", "Mend this place"),
    Case("a.json", '[{"a" 1}]', "a.json line 1, column 7", "1}]", "a colon is expected here", "Mend this place"),
    Case("a.json", '[{"a": "two\nlines"}]', "a.json line 1, column 12", "lines", "a line break or another control character", "Mend this place"),
    Case("a.json", r'[{"a": "C:\Users"}]', "a.json line 1, column 11", "Users", "a backslash stands before", "Mend this place"),
    Case("a.json", '[{"a": 1}] [{"a": 2}]', "a.json line 1, column 12", '[{"a": 2}]', "something follows after the end. 1 rows", "Mend this place"),
    Case("a.jsonl", json_lines([PAIR]) + '{"prompt": "q",}\n' + json_lines([PAIR]), "a.jsonl row 2", '"q",}', "at column 16, a comma too many", "one whole object", row=2),
    Case("a.jsonl", json_lines([PAIR]) + "plain words\n", "a.jsonl row 2", "plain words", "not valid JSON", "one whole object", row=2),
    # nested too deeply
    *in_kinds(DEEP, ("a.json", "a.jsonl"), "{name} row 1", "[[[[", "nested too deeply", "flat"),
    Case("a.json", '{"a":' * 10_000, "a.json row 1", '{"a":{"a"', "nested too deeply", "flat"),
    Case("a.json", f'[{{"a": 1}}, {{"a": {DEEP}{"]" * 10_000}}}]', "a.json row 2", '{"a": [[', "nested too deeply", "flat"),
    Case("a.jsonl", f'{json_lines([PAIR])}{{"a": {DEEP}{"]" * 10_000}}}\n', "a.jsonl row 2", '{"a": [[', "nested too deeply", "flat", row=2),
    Case("a.csv", csv_text([TALK, {"messages": DEEP + "]" * 10_000}, TALK]), "a.csv row 2, messages", "[[[[", "not valid JSON|nested too deeply", "Write it", row=2),
    Case("a.csv", csv_text([TALK, {"messages": "[" * 500 + "]" * 500}, TALK]), "a.csv row 2, messages", "[[[[", "nested too deeply", "flat", row=2),
    *bad_row(PAIR, PAIR | {"note": json.loads("[" * 300 + "]" * 300)}, "", '{"prompt": "Say hello"', "at most 100 lists and objects", "flat"),
    *bad_row(PAIR, PAIR | {"note": json.loads('{"a":' * 300 + "1" + "}" * 300)}, "", '{"prompt": "Say hello"', "at most 100 lists and objects", "flat"),
    # numbers, texts and names that JSON allows and nobody can use
    Case("a.json", f'[{json_text(PAIR)}, {{"a": {"9" * 5000}}}]', "a.json row 2", '{"a": 99', "more digits than can be read", "quotes"),
    Case("a.jsonl", f'{json_lines([PAIR])}{{"a": {"9" * 5000}}}\n', "a.jsonl row 2", '{"a": 99', "more digits than can be read", "quotes", row=2),
    *bad_row(PAIR, PAIR | {"completion": float("nan")}, "completion", "NaN", "The answer is missing", "Fill in completion"),
    *bad_row(PAIR, PAIR | {"completion": float("inf")}, "completion", "inf", "must be text, not a number", "quotes"),
    *bad_row(PAIR, PAIR | {"completion": "half \ud83d"}, "completion", "\\ud83d", "half of a character pair", "UTF-8"),
    *bad_row(PAIR, PAIR | {"\udc00": 1}, "the names of columns", "\\udc00", "half of a character pair", "UTF-8"),
    *bad_turns([{"role": "\ud800", "content": "x"}], "messages[0].role", "\\ud800", "half of a character pair", "UTF-8"),
    *bad_row(CALL, CALL | {"tools": [{"name": "f", "description": "\ud800"}]}, "tools[0].description", "", "half of a character pair", "UTF-8", TEXT_KINDS),
    *bad_row(CALL, CALL | {"tools": [{"name": "f", "x": float("nan")}]}, "tools", "nan", "what JSON cannot hold, such as NaN", "as text", TEXT_KINDS),
    *(Case(f"a.{end}", begin + '{"prompt": "q", "completion": "a", "completion": "b"}' + close, f"a.{end} row 2, completion", '"b"}', 'key "completion" stands twice', "Keep the one", row=2)
      for end, begin, close in (("jsonl", json_lines([PAIR]), "\n"), ("json", f"[{json_text(PAIR)},", "]"), ("json", f'{{"data": [{json_text(PAIR)},', "]}"))),
    *(Case(f"a.{end}", begin + '{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}' + close, f"a.{end} row 2, role", '"assistant"', 'key "role" stands twice', "Keep the one", row=2)
      for end, begin, close in (("jsonl", json_lines([TALK]), "\n"), ("json", f"[{json_text(TALK)},", "]"))),
    Case("a.jsonl", json_lines([PAIR]) + '{"prompt" :"q","completion":"a","completion":"b"}\n', "a.jsonl row 2, completion", '"b"}', "stands twice", "Keep the one", row=2),
    # a NUL
    Case("a.jsonl", b'{"prompt": "q\x00", "completion": "a"}', "a.jsonl line 1", "{", "bytes that are not text (a NUL)", "UTF-8"),
    Case("a.csv", b"prompt,completion\nq,a\nq\x00,a\n", "a.csv line 3", "prompt", "bytes that are not text (a NUL)", "UTF-8"),
    Case("a.txt", b"\x00" * 99, "a.txt line 1", "x00", "bytes that are not text (a NUL)", "UTF-8"),
    Case("a.jsonl", json_lines([PAIR] * 99).encode() + b'{"prompt": "q\x00"}\n', "a.jsonl row 100", '"q', "control character", "one whole object", row=100),
    Case("a.json", json_text([PAIR] * 99)[:-1].encode() + b', {"prompt": "q\x00"}]', "a.json line 1, column", '"}]', "control character", "Mend this place"),
    # encodings
    *in_kinds('[{"prompt": "é"}]'.encode("utf-16-le"), ("a.json", "a.csv", "a.txt"), "{name} line 1", "x00", "bytes that are not text", "UTF-8"),
    *in_kinds('[{"prompt": "é"}]'.encode("utf-32"), ("a.json", "a.txt"), "{name} line 1", "xff", "bytes that are not text", "UTF-8"),
    *in_kinds(b"\xff\xfe" + '{"a":1}\n'.encode("utf-16-le") + b"!", ("a.json", "a.jsonl", "a.csv", "a.txt"), "{name}", "!", "no text in its encoding, utf-16", "UTF-8"),
    Case("a.txt", b"\xff\xfea\x00\x00\xd8b\x00", "a.txt", "xd8", "no text in its encoding, utf-16", "UTF-8"),
    # tables
    Case("a.csv", csv_text([PAIR]) + "a,b,c\n", "a.csv row 2", "a | b | c", "Line 3 has 3 cells where the header has 2", "in quotes", row=2),
    Case("a.csv", csv_text([PAIR]) + "only\n", "a.csv row 2", "only", "Line 3 has 1 cell where the header has 2", "in quotes", row=2),
    Case("a.tsv", csv_text([PAIR], "\t") + "\na\tb\tc\n", "a.tsv row 2", "a | b | c", "Line 4 has 3 cells", "in quotes", row=2),
    Case("a.csv", csv_text([PAIR]) + '"open, x\nq,a\nq,"b"\n', "a.csv row 2", "", "text follows a quote that closes", 'as ""', row=2),
    Case("a.csv", "a,a\n1,2\n", "a.csv line 1", "a, a", "a name of its own; twice: a", "Name the columns"),
    Case("a.csv", "a,,b\n1,2,3\n", "a.csv line 1", "a, , b", "a name of its own", "Name the columns"),
    Case("a.csv", 'prompt,"completion\nq,a\n', "a.csv line 1", 'prompt,"completion', "a quote in it is never closed", "Close every quote"),
    Case("a.csv", "instruction,input\nSay hello,\n", "a.csv", "instruction, input", "The column output is missing for the schema alpaca", "data.columns.output"),
    Case("a.csv", "colour,shape,taste\nred,round,sweet\n", "a.csv", "colour, shape, taste", "No known schema fits", "data.columns"),
    Case("a.csv", lambda path: path.write_text(",".join(f"column_{n}" for n in range(1_000_000)) + "\n"), "a.csv line 1", "more than", "at most 100,000 are read", "one row per line"),
    Case("a.csv", csv_text([dict.fromkeys("abcdef", "x")]), "a.csv line 1", "6 columns", "at most 5 are read", "only the columns", limits={"csv_rows.MAX_COLUMNS": 5}),
    Case("a.parquet", parquet({"a": [1, 2], "b": [1.5, 2.5]}), "a.parquet", "a, b", "No known schema fits", "data.columns"),
    Case("a.parquet", parquet({"prompt": [1, 2], "completion": [3, 4]}), "a.parquet", "", "None of the 2 rows can be used", "Mend the rows"),
    Case("a.parquet", parquet({"prompt": ["q"], "completion": [datetime(2024, 5, 6)]}), "a.parquet row 1, completion", "2024-05-06", "must be text, not a date", "as text"),
    Case("a.parquet", parquet({"prompt": ["q"], "completion": [b"a"]}), "a.parquet row 1, completion", "b'a'", "must be text, not bytes", "as text"),
    Case("a.parquet", parquet({"prompt": arrow_text_that_is_not_utf_8(), "completion": ["a"]}), "a.parquet rows 1 to 500", "", "its text is not UTF-8", "leave out that column"),
    Case("a.parquet", parquet({**{k: [v] for k, v in PAIR.items()}, "at": pa.array([2**62], pa.timestamp("us"))}), "a.parquet rows 1 to", "out of range", "beyond the year 9999", "leave out that column"),
    Case("a.parquet", parquet({"prompt": ["q"], "zzz": ["a"]}).replace(b"zzz", b"\xff\xff\xff"), "a.parquet rows 1 to", "", "its text is not UTF-8", "leave out that column"),
    Case("a.parquet", parquet_with_a_column_twice(), "a.parquet", "prompt, completion, completion", "Two columns have the same name: completion", "its own"),
    # too large
    *(Case(f"a.{end}", begin + "x" * 2_000, f"a.{end} {place}", "xxx", "longer than 0 MB", "one row per line|one object per row", row=row,
           limits={"files.MAX_ROW_BYTES": 500, "files.BLOCK_BYTES": 100, "json_array.READ_CHARACTERS": 100})
      for end, begin, place, row in (
          ("json", f'[{json_text(PAIR)}, {{"a": "', "row 2", 0), ("json", f'{{"data": [{json_text(PAIR)}, {{"a": "', "row 2", 0),
          ("jsonl", json_lines([PAIR]) + '{"a": "', "row 2", 2), ("csv", csv_text([PAIR]), "line 3", 0), ("txt", "words\n\n", "line 3", 0))),
    Case("a.jsonl.gz", gzip.compress(b"a" * 50_000), "a.jsonl.gz", "bytes unpack to more than", "as a decompression bomb does", "Unpack it yourself", limits={"files.RATIO_COUNTS_FROM_BYTES": 20_000}),
    Case("a.zip", zipped({"a.txt": b"a" * 50_000}), "a.zip/a.txt", "bytes unpack to more than", "as a decompression bomb does", "Unpack it yourself", limits={"files.RATIO_COUNTS_FROM_BYTES": 20_000}),
    Case("a.txt.gz", gzip.compress(random.Random(1).randbytes(30_000).hex().encode()), "a.txt.gz", "unpack to more than", "far more than it should", "Unpack it yourself", limits={"files.MAX_UNPACKED_BYTES": 40_000}),
    Case("set", {f"{n}.jsonl": json_lines([PAIR]) for n in range(4)}, "set", "4 files", "At most 3 files are read together", "Join them", limits={"containers.MAX_FILES": 3}),
    Case("a.zip", zipped({f"{n}.jsonl": json_lines([PAIR]) for n in range(4)}), "a.zip", "4 files", "At most 3 files are read together", "Join them", limits={"containers.MAX_FILES": 3}),
    # out of its place
    *(Case("a.zip", zipped({name: json_lines([PAIR])}), "a.zip", name, "climbs out of its folder", "Pack the file again")
      for name in ("../a.jsonl", "b/../../a.jsonl", "/etc/a.jsonl", "..\\a.jsonl", "C:\\a.jsonl", "C:/a.jsonl", "\\\\host\\share\\a.jsonl")),
    Case("a.zip", zip_with_link(), "a.zip", "passwords.txt", "a link to another place", "Pack the file again"),
    Case("a.zip", locked_zip(), "a.zip", "rows.jsonl", "locked with a password", "without one"),
    Case("a.zip", zipped_entries([("a.jsonl", json_lines([PAIR]))] * 2), "a.zip", "a.jsonl", "Two files in the zip have the same name", "a name for each"),
    Case("/etc/passwd", lambda path: None, "data.source", "/etc/passwd", "outside the folders that may be read", "GEMMA_TUNE_ROOTS"),
    Case("../up.json", lambda path: None, "data.source", "up.json", "outside the folders that may be read", "Upload the file"),
    Case("a.json", lambda path: path.symlink_to("/etc/passwd"), "data.source", "/etc/passwd", "outside the folders that may be read", "Upload the file"),
    Case("set", lambda path: (path.mkdir(), (path / "a.txt").symlink_to("/etc/passwd")), "set/a.txt", "/etc/passwd", "outside the folders that may be read", "Upload the file"),
    Case("a.json", os.mkfifo, "a.json", "", "neither a file nor a folder", "Name a file"),
    # rows
    *(case for bad in ([1, 2], [["q", "a"]], "words", 3, None, True) for case in bad_row(PAIR, bad, "", json_text(bad).strip('"')[:5], *NO_OBJECT)),
    *bad_row(PAIR, {}, "prompt", "nothing", "The prompt is missing", "take the row out"),
    *bad_row(PAIR, PAIR | {"completion": ""}, "completion", "", "The answer is empty", "Fill in completion", ALL_KINDS),
    *bad_row(PAIR, PAIR | {"prompt": " \n "}, "prompt", "", "The prompt is empty", "Fill in prompt", ALL_KINDS),
    *bad_row(PAIR, PAIR | {"completion": None}, "completion", "nothing", "The answer is missing", "take the row out", (*JSON_KINDS, "parquet")),
    *bad_row(PAIR, PAIR | {"completion": 3}, "completion", "3", "must be text, not a number", 'quotes: "3"'),
    *bad_row(PAIR, PAIR | {"completion": ["Hello"]}, "completion[0]", "Hello", "A turn must be an object", '"role"'),
    *bad_row(PAIR, PAIR | {"completion": {"text": "Hello"}}, "completion", "Hello", "The turn has no role", '"role"'),
    *bad_turns([USER, ANSWER, ANSWER], "messages[2].role", "Hello", "Two assistant turns in a row", "Merge them", ALL_KINDS),
    *bad_turns([USER, USER, ANSWER], "messages[1].role", "Hi", "Two user turns in a row", "Merge them", ALL_KINDS),
    *bad_turns([SYSTEM], "messages", "Be kind", "only a system turn", "Add a user turn", ALL_KINDS),
    *bad_turns([USER, SYSTEM, ANSWER], "messages[1].role", "system", "can only stand first", "beginning", ALL_KINDS),
    *bad_turns([ANSWER, USER, ANSWER], "messages[0].role", "assistant", "first turn must be the user's", "Begin", ALL_KINDS),
    *bad_turns([USER, ANSWER, USER], "messages[2].role", "user", "does not end with an assistant turn", "Add the answer", ALL_KINDS),
    *bad_turns([USER, {"role": "assistant", "content": " "}], "messages[1].content", "", "The answer is empty", "Fill in", ALL_KINDS),
    *bad_turns([{"role": "king", "content": "x"}, ANSWER], "messages[0].role", "king", "The role is not known", "user, assistant", ALL_KINDS),
    *bad_turns([], "messages", "[]", "has no turn", "Add a user turn", ALL_KINDS),
    *bad_turns([USER, {"content": "Hello"}], "messages[1]", "Hello", "The turn has no role", '"role"'),
    *bad_turns("Hi", "messages", "Hi", "The turns must be a list", '[{"role"'),
    *bad_turns("[{broken", "messages", "[{broken", "is not valid JSON", "double quotes"),
    *bad_turns([USER, "Hello"], "messages[1]", "Hello", "A turn must be an object", '"role"'),
    *bad_turns([USER, {"role": "assistant", "content": 5}], "messages[1].content", "5", "must be text, not a number", "quotes"),
    *bad_turns([{"role": "user", "content": [{"type": "audio", "url": "x"}]}, ANSWER], "messages[0].content[0]", "audio", "Only parts of text", "Take the other parts out"),
    *bad_turns([{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER], "messages[0].content[0]", "x", "no such image", "Upload it together"),
    *bad_turns([USER, ANSWER, {"role": "tool", "content": "7"}, ANSWER], "messages[2].role", "7", "must follow the assistant turn that calls it", "tool_calls"),
    *bad_turns([USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}], "messages[1].tool_calls[0]", "arguments", "needs the name of its function", '"name"'),
    *bad_turns([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{city"}]}], "messages[1].tool_calls[0].arguments", "{city", "is not valid JSON", "double quotes"),
    *bad_turns([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "Rome"}]}], "messages[1].tool_calls[0].arguments", "Rome", "must be a JSON object", '{"city": "Rome"}'),
    *bad_row(CALL, CALL | {"tools": [{"description": "x"}]}, "tools[0]", "description", "A tool needs a name", '"name"', TEXT_KINDS),
    *bad_row(CALL, CALL | {"tools": "[{name"}, "tools", "[{name", "is not valid JSON", "double quotes", TEXT_KINDS),
    *bad_row(PREFERENCE, PREFERENCE | {"rejected": "Hello"}, "rejected", "Hello", "Both answers are the same", "Take the row out", ALL_KINDS),
    *bad_row(PREFERENCE, PREFERENCE | {"chosen": ""}, "chosen", "", "The chosen answer is empty", "Fill in chosen", ALL_KINDS),
    *bad_row(LABELLED, LABELLED | {"label": "perhaps"}, "label", "perhaps", "must say whether the answer is good", "true or false", JSON_KINDS, columns={"label": "label"}),
    *bad_row(LABELLED, LABELLED | {"label": None}, "label", "nothing", "must say whether the answer is good", "true or false", (*JSON_KINDS, "parquet"), columns={"label": "label"}),
    *bad_row(PARTS, PARTS | {"part": "middle"}, "part", "middle", "on which side the row is", "train or validation", ALL_KINDS, split_column="part"),
    Case("a.jsonl", json_lines([PAIR] * 300 + [PAIR | {"completion": 3}]), "a.jsonl row 301, completion", "3", "must be text, not a number", "quotes", row=301),
    Case("a.json", json_text([PAIR] * 300 + [{"prompt": ["x"], "completion": "y"}]), "a.json row 301, prompt[0]", "x", "A turn must be an object", '"role"', row=301),
    Case("a.jsonl", json_lines([PAIR] * 300 + [{"question": "q", "answer": "a"}]), "a.jsonl row 301, prompt", "nothing", "The prompt is missing", "take the row out", row=301),
    # nothing left, too little left, mapped wrongly
    *(Case(name, content, begin if kind != "folder" else "one.jsonl", "", "None of the ", "Mend the rows, or map other columns")
      for kind in ALL_KINDS for name, content, begin in [written(kind, [PAIR | {"completion": " "}] * 2)]),
    Case("a.jsonl", "{\n{\n", "a.jsonl", "", "None of the 2 rows can be used", "Mend the rows"),
    Case("a.json", "[1, 2, 3]", "a.json", "", "None of the 3 rows can be used", "Mend the rows"),
    Case("a.csv", "prompt,completion\na,b,c\n", "a.csv", "", "None of the 1 rows can be used", "Mend the rows"),
    *(Case(name, content, begin if kind != "folder" else "one.jsonl and 1 other", "rows", "smaller than one batch of 9 rows", "per_device_train_batch_size", data={"batch": 9, "validation_fraction": 0})
      for kind in ("json", "csv", "folder") for name, content, begin in [written(kind, [PAIR] * 3)]),
    Case("a.jsonl", json_lines([PAIR]), "data.columns.prompt", "promt", "no such column", "Did you mean prompt?", data={"columns": {"prompt": "promt"}}),
    Case("a.csv", csv_text([PAIR]), "data.columns.question", "prompt", "no such field", "Fields are", data={"columns": {"question": "prompt"}}),
    Case("a.jsonl", json_lines([PAIR | {"n": 1}] * 2), "a.jsonl", "", "None of the 2 rows can be used", "map other columns", data={"columns": {"completion": "n"}}),
    Case("a.jsonl", json_lines([PAIR]), "a.jsonl", "prompt, completion", "missing for the schema preference", "data.columns", data={"format": "preference"}),
    Case("a.jsonl", json_lines([PARTS]), "data.split_column", "side", "a.jsonl has no such column", "There are: prompt, completion, part", data={"split_column": "side"}),
    Case("a.jsonl", json_lines([PARTS | {"part": "dev"}] * 2), "data.split_column", "part", "every row among the validation rows", "Say train", data={"split_column": "part"}),
    Case("a.jsonl", json_lines([LABELLED | {"label": False}] * 2), "a.jsonl", "rows", "labelled as bad", "label column"),
    Case("a.jsonl", json_lines([PAIR]), "data.weight", "0 rows", "no row is left to learn", "Raise the weight", data={"weight": 0.1}),
]  # fmt: skip


def make(case: Case, folder: Path) -> str:
    """What a case stands for, on disk; its path as a source."""
    path = folder / case.name
    if callable(case.content):
        case.content(path)
    elif isinstance(case.content, dict):
        path.mkdir()
        for name, content in case.content.items():
            (path / name).write_text(content)
    else:
        content = case.content
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def configured(source: str, batch: int = 1, **data) -> config.RunConfig:
    return config.parse({"data": {"source": source, **data}, "train": {"per_device_train_batch_size": batch}})


def assert_told(fault, case: Case) -> None:
    assert fault.where.startswith(case.where), fault
    assert case.value in fault.value, fault
    assert any(rule in fault.rule for rule in case.rule.split("|")), fault
    assert any(way_out in fault.way_out for way_out in case.way_out.split("|")), fault
    assert fault.rule.endswith(".") and fault.way_out.endswith((".", "}", "]", "?", ")", '"')), fault
    assert not JARGON.search(fault.rule + fault.way_out), fault
    assert len(fault.value) <= 80 and str(fault).encode(), fault


def faults_of(work: Callable[[], object]) -> tuple[Fault, ...]:
    try:
        work()
    except GemmaTuneError as error:
        return error.faults
    return ()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input_is_told_with_place_value_rule_and_way_out(case, folder, monkeypatch):
    for name, limit in case.limits.items():
        monkeypatch.setattr(f"gemma_tune.data.{name}", limit)
    source = make(case, folder)
    if case.row:
        store = gather(configured(source, **case.data)).store
        (rejected,) = [one for one in store.rejected() if one.number == case.row]
        assert_told(rejected.as_fault(case.name), case)
        assert len(store) and case.row not in [row.number for row in store.rows(range(len(store)))]
        return
    faults = faults_of(lambda: prepare(configured(source, **case.data)))
    told = [fault for fault in faults if fault.where.startswith(case.where)]
    assert told, faults
    assert_told(told[0], case)
    if at_a_look := faults_of(lambda: read(source, limit=200)):
        assert_told(at_a_look[0], case)


def test_the_table_holds_many_rules_for_every_kind_of_file():
    assert len({case.rule for case in CASES}) > 100
    for end in (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zip", "set"):
        assert len({case.rule for case in CASES if case.name.endswith(end)}) >= 5, end


@pytest.mark.parametrize(
    ("name", "begin", "rejected"),
    [("a.json", '[{"prompt": "', 0), ("a.jsonl", '{"prompt": "', 1), ("a.csv", "prompt,completion\n", 0), ("a.txt", "", 0)],
)  # fmt: skip
def test_a_single_line_larger_than_memory_is_refused_without_being_held(folder, name, begin, rejected):
    path = folder / name
    with path.open("w") as file:
        file.write(begin)
        for _ in range(150):
            file.write("long line " * 100_000)
    tracemalloc.start()
    try:
        if rejected:
            found = read(str(path)).rejected
            assert len(found) == rejected
            told = found[0].as_fault(name)
        else:
            (told,) = faults_of(lambda: read(str(path)))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "longer than 32 MB" in told.rule and told.where.startswith(name)
    assert peak_bytes < 110_000_000 < path.stat().st_size


DAMAGED = {
    "a.json": json_text([{"prompt": "é\ud83d\ude00", "completion": ["x", 1.5e3, None, {"a": -1}]}] * 3).encode(),
    "b.json": json.dumps({"rows": [{"prompt": "é", "completion": "y"}] * 3, "n": 1}, indent=1, ensure_ascii=False).encode(),
    "a.jsonl": json_lines([CALL] * 3).encode(),
    "b.jsonl": json_lines([PAIR] * 3).encode("utf-16"),
    "a.csv": csv_text([TALK, TALK]).encode(),
    "b.csv": csv_text([PAIR] * 2, ";").encode("utf-16"),
    "a.txt": "hällo\n\nworld\n".encode(),
    "a.parquet": parquet([{"prompt": "q", "completion": "a", "n": [{"a": 1}]}] * 9),
    "a.jsonl.gz": gzip.compress(json_lines([PAIR] * 9).encode()),
    "a.zip": zipped({"a.jsonl": json_lines([PAIR] * 9), "ü.csv": csv_text([PAIR])}),
    "b.zip": zipped({"a.jsonl": json_lines([PAIR] * 9)}, zipfile.ZIP_LZMA),
    "c.zip": zipped({"a.jsonl": json_lines([PAIR] * 9)}, zipfile.ZIP_BZIP2),
}  # fmt: skip
ODD_BYTES = (b"\x00", b"\xff", b'"', b"\\ud800", b"\\u0000", b"\r", b"\n", b"[", b"{", b",", b"NaN")


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Some bytes overwritten, put in, taken out, or the end cut off."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        until = min(len(content), at + chance.choice((0, 1, 8, len(content))))
        content = (
            content[:at]
            + chance.choice((b"", chance.choice(ODD_BYTES), chance.randbytes(1)))
            + content[until:]
        )
    return content


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_read_or_refused_in_words_but_never_ends_in_an_error_of_python(folder, name):
    chance = random.Random(name)
    path = folder / name
    for _ in range(40):
        path.write_bytes(damaged(DAMAGED[name], chance))
        faults = [
            *faults_of(lambda: read(str(path), limit=200)),
            *faults_of(lambda: gather(configured(str(path)))),
        ]
        assert all(fault.where and fault.rule for fault in faults)
