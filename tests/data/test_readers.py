"""A file is read piece by piece: whatever the size of the pieces, the same rows come out, with the same numbers."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_tune.data import csv_rows, files, first_rows, json_array, open_source, read, readers
from gemma_tune.data.readers import open_path
from gemma_tune.data.store import values_of
from gemma_tune.errors import DataError

ROW = {"instruction": "Say hello", "input": "", "output": "Hello"}
SIZES = (1, 2, 3, 7, 64, 1 << 20)
HARD = [
    {"text": "a \"quote\", a \\ and a \n line", "n": [1, -2.5e-3, 1e20, 0], "deep": {"a": [[], {}, [{"b": None}]]}},
    {"text": "é 😀 \u2028 \x85", "yes": True, "no": False},
    {},
    {"brackets": "]}{[,:", "empty": ""},
]  # fmt: skip


@pytest.fixture(params=SIZES)
def in_pieces(request, monkeypatch):
    """Files come in blocks of so many bytes or characters, rows a few at a time."""
    small(monkeypatch, request.param)


def small(monkeypatch, size: int) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", size)
    monkeypatch.setattr(json_array, "READ_CHARACTERS", size)
    for module in (json_array, csv_rows, readers):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", min(size, 500))


def numbered(path: Path, whole: bool = True) -> list[tuple[int, object]]:
    return [one for records in open_path(path, whole=whole).records() for one in values_of(records)]


def fault_of(source: str, limit: int | None = None):
    with pytest.raises(DataError) as caught:
        read(source, limit=limit)
    (fault,) = caught.value.faults
    return fault


def test_an_array_is_read_like_json_does_it_however_its_rows_lie_in_the_blocks(write, in_pieces):
    for indent in (None, 1):
        for text in (json.dumps(HARD, indent=indent), json.dumps(HARD, indent=indent, ensure_ascii=False)):
            table = read(write("a.json", text))
            assert table.rows == list(enumerate(json.loads(text), 1)) and not table.rejected


def test_the_list_in_an_object_is_read_like_an_array(write, in_pieces):
    text = json.dumps({"n": 1.5, "about": {"x": [1, {}]}, "none": [], "rows": HARD, "after": ["x"]}, indent=2)
    assert read(write("a.json", text)).rows == list(enumerate(HARD, 1))


def test_numbers_that_stand_alone_are_not_cut_by_a_block(write, in_pieces):
    table = read(write("a.json", '[-1.5e-3, 12 , 1E+2, true, null, -Infinity, "x", {"a": 1}]'))
    met = [one.value for one in table.rejected]
    assert met == ["-0.0015", "12", "100.0", "true", "null", "-Infinity", "x"] and table.rows == [
        (8, {"a": 1})
    ]


@pytest.mark.parametrize(
    ("text", "where", "value", "rule"),
    [
        ('[{"a": 1},\n {"a": 2}\n {"a": 3}]', "line 3, column 2", '{"a": 3}]', "2 rows before it are whole"),
        ('[{"a": 1},\n\n  {"a": nothing}, {"a": 3}]', "line 3, column 9", 'nothing}, {"a": 3}]', "1 rows before"),
        ('[{"a": 1}, {"a": 2},\n]', "line 2, column 1", "]", "a comma too many"),
        ('{"x": 1,\n "rows": [{"a": 1}],\n "y" 2}', "line 3, column 6", "2}", "a colon is expected"),
        ('[{"a": 1}]\n\n [', "line 3, column 2", "[", "something follows after the end"),
        ('[{"a": 1},\n {"a": "é', "line 2, column 8", '"é', "breaks off: after 1 whole rows"),
        ('[{"a": 1},\n {"a": 2},', "line 2, column 11", ' {"a": 2},', "breaks off: after 2 whole rows"),
        ('{"rows": [{"a": 1}\n', "line 2, column 1", '{"rows": [{"a": 1}', "breaks off: after 1 whole rows"),
    ],
)  # fmt: skip
def test_the_place_of_a_mistake_is_right_in_small_blocks(write, in_pieces, text, where, value, rule):
    fault = fault_of(write("a.json", text))
    assert fault.where == f"a.json {where}"
    assert value.strip() in fault.value and rule in fault.rule


def test_lines_are_numbered_right_in_small_blocks(write, in_pieces):
    lines = [
        "\ufeff" + json.dumps(ROW),
        "{broken",
        "",
        "[1, 2]",
        json.dumps(ROW | {"output": "é😀"}, ensure_ascii=False),
        "3",
    ]
    for ends in ("", "\n", "\r\n\r\n"):
        table = read(write("a.jsonl", "\n".join(lines) + ends))
        assert [number for number, _ in table.rows] == [1, 5] and table.rows[1][1]["output"] == "é😀"
        assert [one.number for one in table.rejected] == [2, 4, 6]


@pytest.mark.parametrize("block", [1, 7, 30, 64])
def test_a_line_that_is_too_long_is_rejected_alone_with_right_numbers_after_it(write, monkeypatch, block):
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(files, "BLOCK_BYTES", block)
    long = json.dumps({"text": "x" * 500})
    table = read(
        write("a.jsonl", "\n".join(['{"a": 1}', long, '{"a": 3}', "", long, long, '{"a": 7}', long]))
    )
    assert table.rows == [(1, {"a": 1}), (3, {"a": 3}), (7, {"a": 7})]
    assert [one.number for one in table.rejected] == [2, 5, 6, 8]
    assert {one.rule.split(",")[0] for one in table.rejected} == {"The line is longer than 0 MB"}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_lines_of_any_encoding_give_the_same_rows(folder, in_pieces, encoding, whole):
    rows = [ROW | {"output": f"naïve café {number}"} for number in range(20)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    path = folder / "a.jsonl"
    path.write_bytes((b"\xff\xfe" if encoding == "utf-16-le" else b"") + text.encode(encoding))
    assert numbered(path, whole) == list(enumerate(rows, 1))


def test_a_csv_is_numbered_by_its_records_in_small_blocks(write, in_pieces):
    table = read(write("a.csv", 'a,b\n"two\nlines","a ""quote"""\n\n1,2,3\nlast,é\n'))
    assert table.rows == [(1, {"a": "two\nlines", "b": 'a "quote"'}), (3, {"a": "last", "b": "é"})]
    assert [(one.number, one.rule) for one in table.rejected] == [
        (2, "Line 5 has 3 cells where the header has 2.")
    ]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
ROWS = st.lists(st.dictionaries(st.text(max_size=6), JSON_VALUES, max_size=4), min_size=1, max_size=6)
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=12)
TABLES = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=6)
)


def read_in_pieces(name: str, content: bytes, size: int, whole: bool) -> list[tuple[int, object]]:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        small(patch, size)
        path = Path(folder) / name
        path.write_bytes(content)
        return numbered(path, whole)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.sampled_from(SIZES), st.booleans(), st.booleans(), st.sampled_from([None, 1]))
def test_whatever_rows_are_written_as_json_come_back_equal_and_in_order(rows, size, whole, ascii, indent):
    expected = list(enumerate(rows, 1))
    array = json.dumps(rows, ensure_ascii=ascii, indent=indent).encode()
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows).encode()
    assert read_in_pieces("a.json", array, size, whole) == expected
    assert read_in_pieces("a.json", b'{"n": 1, "rows":' + array + b"}", size, whole) == expected
    assert read_in_pieces("a.jsonl", lines, size, whole) == expected


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from(SIZES), st.booleans(), st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["\n", "\r\n"]))  # fmt: skip
def test_whatever_cells_are_written_as_csv_come_back_equal_and_in_order(cells, size, whole, delimiter, end):
    header = [f"column {number}" for number in range(len(cells[0]))]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(
        [header, *cells]
    )
    expected = [(number, dict(zip(header, row, strict=True))) for number, row in enumerate(cells, 1)]
    assert read_in_pieces("a.csv", text.getvalue().encode(), size, whole) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab é\n", min_size=1, max_size=30), min_size=1, max_size=20), st.integers(1, 60), st.sampled_from(SIZES))  # fmt: skip
def test_pieces_of_a_text_keep_every_line_in_order_and_say_where_they_begin(paragraphs, limit, size):
    text = "\n\n".join(paragraphs) + "\nend\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "TEXT_PIECE_CHARACTERS", limit)
        pieces = read_in_pieces("a.txt", text.encode(), size, True)
    visible = [line for line in text.split("\n") if line.strip()]
    assert [line for _, piece in pieces for line in piece["text"].split("\n") if line.strip()] == visible
    for number, piece in pieces:
        assert text.split("\n")[number - 1] == piece["text"].split("\n")[0]


def test_short_paragraphs_share_a_piece_and_a_long_one_is_broken_between_its_lines(write):
    short = "\n\n".join(f"Paragraph {number} of the book." for number in range(100))
    long = "\n".join(f"Line {number} of a long chapter." for number in range(200))
    table = read(write("a.txt", f"{short}\n\n{long}\n"))
    texts = [row["text"] for _, row in table.rows]
    assert all(len(text) <= readers.TEXT_PIECE_CHARACTERS + 40 for text in texts) and len(texts) < 8
    assert "Paragraph 0 of the book.\n\nParagraph 1 of the book." in texts[0]
    assert sum(text.count("Line") for text in texts) == 200 and table.rows[0][0] == 1


def test_several_files_are_numbered_each_by_itself_and_named(folder, in_pieces):
    (folder / "a.jsonl").write_text(json.dumps(ROW) + "\n{\n" + json.dumps(ROW))
    (folder / "b.csv").write_text("instruction,output\nx,y\nonly\n")
    (folder / "c.json").write_text(json.dumps([ROW]))
    with zipfile.ZipFile(folder / "d.zip", "w") as archive:
        archive.writestr("e.jsonl", json.dumps(ROW))
    found = [
        (records.file, number)
        for records in open_source(str(folder)).records()
        for number in (
            *[number for number, _ in values_of(records)],
            *[one.number for one in records.rejected],
        )
    ]
    assert sorted(found) == [
        ("a.jsonl", 1), ("a.jsonl", 2), ("a.jsonl", 3), ("b.csv", 1), ("b.csv", 2), ("c.json", 1), ("d.zip/e.jsonl", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("whole", [True, False])
def test_a_packed_file_is_read_in_pieces_like_the_plain_one(folder, in_pieces, whole):
    content = json.dumps(HARD, indent=1).encode()
    (folder / "a.json").write_bytes(content)
    (folder / "a.json.gz").write_bytes(gzip.compress(content))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", content)
    plain = numbered(folder / "a.json", whole)
    assert plain == numbered(folder / "a.json.gz", whole) == numbered(folder / "a.zip", whole)
    assert plain == list(enumerate(HARD, 1))


def test_parquet_gives_rows_in_order_with_lists_objects_and_nothing(folder, monkeypatch):
    monkeypatch.setattr(readers, "ROWS_AT_ONCE", 7)
    rows = [{"n": number, "turns": [{"role": "user", "content": "é"}], "none": None} for number in range(50)]
    path = folder / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20)
    assert numbered(path) == numbered(path, whole=False) == list(enumerate(rows, 1))
    (folder / "b.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert numbered(folder / "b.parquet.gz") == numbered(path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_what_is_read_adds_up_to_the_size_of_the_file(write, monkeypatch, name):
    small(monkeypatch, 64)
    text = {
        "a.json": json.dumps([ROW] * 20),
        "a.jsonl": (json.dumps(ROW) + "\n") * 20,
        "a.csv": "a,b\n" + "x,y\n" * 20,
        "a.txt": "some words\n\n" * 20,
    }[name]
    opened = open_source(write(name, text))
    pieces = [records.read_bytes for records in opened.records()]
    assert sum(pieces) == opened.total_bytes == len(text)


def test_a_source_can_be_read_again_from_its_beginning(write, in_pieces):
    opened = open_source(write("a.json", json.dumps(HARD)))
    assert first_rows(opened, 1).rows == [(1, HARD[0])]
    assert first_rows(opened).rows == first_rows(opened).rows == list(enumerate(HARD, 1))


# What stands in a file, by its name and its first bytes


def test_lines_of_jsonl_that_cannot_be_read_are_rejected_with_their_number(write):
    lines = [json.dumps(ROW), "{broken", "", "[1, 2]", json.dumps(ROW), '{"instruction": "cut o']
    table = read(write("a.jsonl", "\n".join(lines)))
    assert [number for number, _ in table.rows] == [1, 5]
    assert [(one.number, one.rule) for one in table.rejected] == [
        (2, "The line is not valid JSON: at column 2, a name in double quotes is expected here."),
        (4, "A row must be an object."),
        (6, "The line is not valid JSON: at column 17, a text begins here, and no quote ends it."),
    ]


def test_a_line_separator_inside_a_text_does_not_end_a_line(write):
    rows = [{"prompt": "a\u2028b", "completion": "c\x85d"}]
    assert read(write("a.jsonl", rows)).rows == [(1, rows[0])]
    assert read(write("a.csv", "prompt,completion\na\u2028b,c\x85d\n")).rows == [(1, rows[0])]


@pytest.mark.parametrize("name", ["b.json", "b.csv", "b.tsv", "b.txt", "b.md", "b", "b.data"])
def test_jsonl_and_json_are_recognised_whatever_the_name_says(write, name):
    table = read(write(name, f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n"))
    assert table.rows == [(1, ROW), (2, ROW)] and "JSONL" in table.notes[0]
    assert read(write(name, f"[{json.dumps(ROW)},\n {json.dumps(ROW)}]")).rows == [(1, ROW), (2, ROW)]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_in_a_file_that_is_named_jsonl_is_read_as_one(write, indent):
    assert read(write("b.jsonl", json.dumps([ROW, ROW], indent=indent))).rows == [(1, ROW), (2, ROW)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "[sic] words\nmore"),
        ("a.md", '{"not JSON\n'),
        ("a.txt", '[1]\n{"a": 1}'),
        ("a.md", "# Title"),
    ],
)
def test_a_text_that_only_begins_like_json_stays_a_text(write, name, text):
    assert read(write(name, text)).rows == [(1, {"text": text.strip("\n")})]


def test_a_csv_whose_first_column_begins_with_a_bracket_stays_a_csv(write):
    assert read(write("a.csv", "[id],{text}\n1,hi\n")).rows == [(1, {"[id]": "1", "{text}": "hi"})]


def test_ragged_rows_of_a_csv_are_rejected_with_their_line(write):
    table = read(write("a.csv", 'instruction,output\n"two\nlines",x\na,b,c\nonly\n\nlast,y\n'))
    assert [(number, row["output"]) for number, row in table.rows] == [(1, "x"), (4, "y")]
    assert [(one.number, one.rule) for one in table.rejected] == [
        (2, "Line 4 has 3 cells where the header has 2."),
        (3, "Line 5 has 1 cell where the header has 2."),
    ]


def test_a_quote_that_is_never_closed_is_rejected_with_its_line(write):
    table = read(write("a.csv", 'a,b\n1,2\n"open,3\n4,5\n'))
    assert len(table.rows) == 1
    (one,) = table.rejected
    assert one.number == 2 and "begins in line 3" in one.rule


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_delimiter_of_a_csv_is_found(write, delimiter, name):
    text = f"question{delimiter}answer\nOne, two; three?{delimiter}Four\nFive{delimiter}Six\n"
    if delimiter in ",;":
        text = text.replace("One, two; three?", '"One, two; three?"')
    table = read(write(name, text))
    assert table.columns == ["question", "answer"]
    assert table.rows[0][1] == {"question": "One, two; three?", "answer": "Four"}
    assert not table.rejected


@pytest.mark.parametrize("text", ["\n\na,b\nx,y\n", "a,b\r\nx,y\r\n", "a,b\rx,y\r", " a , b \nx,y"])
def test_blank_lines_before_the_header_and_any_line_end_are_read(write, text):
    table = read(write("a.csv", text))
    assert table.rows == [(1, {"a": "x", "b": "y"})] and table.columns == ["a", "b"] and not table.rejected


def test_a_csv_of_one_column_is_read(write):
    assert read(write("a.csv", 'text\nhello\n"a, b"\n')).rows == [
        (1, {"text": "hello"}),
        (2, {"text": "a, b"}),
    ]


def test_a_cell_may_be_longer_than_pythons_usual_limit(write):
    assert len(read(write("a.csv", f"a,b\n{'x' * 300_000},y\n")).rows[0][1]["a"]) == 300_000


def test_a_csv_may_have_very_many_columns(write):
    wide = ",".join(f"c{number}" for number in range(50_000))
    assert len(read(write("a.csv", f"{wide}\n{wide}\n")).columns) == 50_000


def test_a_line_that_is_nested_too_deeply_is_rejected_alone(write):
    table = read(write("a.jsonl", '{"a":' * 10_000 + "\n" + json.dumps(ROW)))
    assert table.rows == [(2, ROW)] and "nested too deeply" in table.rejected[0].rule


def test_nesting_up_to_the_limit_is_read(write):
    deep = json.loads('{"a":' * 98 + "[1]" + "}" * 98)
    for name in ("a.json", "a.jsonl"):
        assert read(write(name, [deep])).rows == [(1, deep)]


def test_whole_pairs_of_surrogates_and_escaped_backslashes_are_no_half_pairs(write):
    texts = [{"a": "\\ud83d is an escape"}, {"a": "😀"}, {"a": "C:\\udir"}, {"a": "\\uD800"}]
    for name, text in (("a.json", json.dumps(texts)), ("a.jsonl", "\n".join(map(json.dumps, texts)))):
        assert [row for _, row in read(write(name, text)).rows] == texts


def test_keys_are_counted_in_texts_that_look_like_keys(write):
    rows = [{"a": 'say "b": or "c" : twice "b":', "b": {"a": '{"a": 1, "a": 2}'}, 'k":': "v"}]
    for name in ("a.json", "a.jsonl"):
        assert read(write(name, rows)).rows == [(1, rows[0])]
