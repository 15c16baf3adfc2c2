"""Section 8 of the journey: each bad file names where, the value, the rule and the way out."""

import json
import time

import pytest

from gemma_tune.data.sources import read
from gemma_tune.errors import DataError

ROW = {"instruction": "Say hello", "input": "", "output": "Hello"}


def fault_of(source: str):
    with pytest.raises(DataError) as caught:
        read(source)
    (fault,) = caught.value.faults
    assert fault.where and fault.rule and fault.way_out
    return fault


@pytest.mark.parametrize(
    ("name", "content", "where", "value", "rule", "way_out"),
    [
        ("a.json", "", "a.json", "0 bytes", "is empty", "at least one row"),
        ("a.jsonl", " \n\n", "a.jsonl", "3 bytes", "is empty", "at least one row"),
        ("a.csv", "", "a.csv", "0 bytes", "is empty", "at least one row"),
        ("a.csv", "instruction,output\n", "a.csv", "instruction,output", "holds no row", "at least one row"),
        ("a.json", "[]", "a.json", "[]", "holds no row", "at least one row"),
        (
            "a.json", '[{"a": 1},\n {"a": 2},\n {"a":', "a.json line 3, column 7", '{"a":', "breaks off: after 2 whole rows",
            "again",
        ),
        ("a.json", '[{"a": "cut in the mid', "a.json line 1, column 8", "cut in the mid", "after 0 whole rows", "again"),
        ("a.json", '[{"a": 1}\n {"a": 2}]', "a.json line 2, column 2", '{"a": 2}]', "delimiter. 1 rows", "JSONL"),
        ("a.json", '{"data": [{"a": 1}], "n": 1}', "a.json", "data, n", "where an array", 'under "data"'),
        ("a.json", '{"a": [{"b": 1}], "c": [{"d": 1}]}', "a.json", "a, c", "where an array", "[ {…}, {…} ]"),
        ("a.json", json.dumps(ROW, indent=1), "a.json", "instruction", "where an array", "[ {…}, {…} ]"),
        ("a.json", '{"a": 1', "a.json line 1, column 8", '{"a": 1', "not valid JSON", "array"),
        ("a.json", "hello there", "a.json", "hello there", "is neither", "begins with ["),
        ("a.json", "[" * 10_000, "a.json", "[[[", "nested too deeply", "flat"),
        ("a.json", f'[{{"a": {"9" * 5000}}}]', "a.json", '[{"a": 99', "cannot be read: Exceeds", "quotes"),
        ("a.csv", b"PK\x03\x04rest", "a.csv", "PK", "Excel or zip", "UTF-8"),
        ("a.json", b"\x00\x01\x02", "a.json", "x00", "not text", "UTF-8"),
        ("a.csv", "a,a\n1,2\n", "a.csv line 1", "a, a", "twice: a", "Name the columns"),
        ("a.csv", "a,,b\n1,2,3\n", "a.csv line 1", "a, , b", "a name of its own", "Name the columns"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_why(write, name, content, where, value, rule, way_out):
    fault = fault_of(write(name, content))
    assert fault.where == where
    assert value in fault.value
    assert rule in fault.rule
    assert way_out in fault.way_out


def test_a_missing_file_says_so(folder):
    fault = fault_of(str(folder / "gone.json"))
    assert "gone.json" in fault.where and "no such file" in fault.rule


def test_lines_of_jsonl_that_cannot_be_read_are_rejected_with_their_number(write):
    lines = [json.dumps(ROW), "{broken", "", "[1, 2]", json.dumps(ROW), '{"instruction": "cut o']
    assert "cannot be read" in read(write("b.jsonl", f'{{"a": {"9" * 5000}}}')).rejected[0].rule
    table = read(write("a.jsonl", "\n".join(lines)))
    assert [number for number, _ in table.rows] == [1, 5]
    assert [(one.number, one.rule) for one in table.rejected] == [
        (2, "The line is not valid JSON: Expecting property name enclosed in double quotes at column 2."),
        (4, "A row must be an object."),
        (6, "The line is not valid JSON: Unterminated string starting at at column 17."),
    ]


def test_a_line_separator_inside_a_text_does_not_end_a_line(write):
    table = read(write("a.jsonl", [{"prompt": "a\u2028b", "completion": "c\x85d"}]))
    assert table.rows == [(1, {"prompt": "a\u2028b", "completion": "c\x85d"})]


def test_jsonl_is_recognised_whatever_the_name_says(write):
    table = read(write("a.json", f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n"))
    assert len(table.rows) == 2 and "JSONL" in table.notes[0]
    assert len(read(write("b.jsonl", f"[{json.dumps(ROW)}]")).rows) == 1


def test_ragged_rows_of_a_csv_are_rejected_with_their_line(write):
    table = read(write("a.csv", 'instruction,output\n"two\nlines",x\na,b,c\nonly\n\nlast,y\n'))
    assert [(number, row["output"]) for number, row in table.rows] == [(1, "x"), (4, "y")]
    assert [(one.number, one.rule) for one in table.rejected] == [
        (2, "Line 4 has 3 cells where the header has 2."),
        (3, "Line 5 has 1 cells where the header has 2."),
    ]


def test_a_quote_that_is_never_closed_is_rejected_with_its_line(write):
    table = read(write("a.csv", 'a,b\n1,2\n"open,3\n4,5\n'))
    assert len(table.rows) == 1
    (one,) = table.rejected
    assert one.number == 2 and "begins in line 3" in one.rule


def test_a_byte_order_mark_is_no_part_of_the_first_column(write):
    text = "instruction,output\nSag Grüß Gott,Grüß Gott\n"
    for data in (b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        table = read(write("a.csv", data))
        assert table.columns == ["instruction", "output"]
        assert table.rows[0][1]["output"] == "Grüß Gott"


@pytest.mark.parametrize(("encoding", "label"), [("cp1252", "Windows-1252"), ("latin-1", "Windows-1252")])
def test_a_csv_that_is_not_utf_8_is_read_with_a_note(write, encoding, label):
    table = read(write("a.csv", "instruction,output\nhi,x\nOlá,naïve café\n".encode(encoding)))
    assert table.rows[1][1] == {"instruction": "Olá", "output": "naïve café"}
    assert "Line 3" in table.notes[0] and label in table.notes[0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_csv_is_found(write, delimiter):
    text = f"question{delimiter}answer\nOne, two; three?{delimiter}Four\nFive{delimiter}Six\n"
    if delimiter in ",;":
        text = text.replace("One, two; three?", '"One, two; three?"')
    table = read(write("a.csv", text))
    assert table.columns == ["question", "answer"]
    assert table.rows[0][1] == {"question": "One, two; three?", "answer": "Four"}
    assert not table.rejected


def test_a_cell_may_be_longer_than_pythons_usual_limit(write):
    assert len(read(write("a.csv", f"a,b\n{'x' * 300_000},y\n")).rows[0][1]["a"]) == 300_000


def test_a_csv_may_have_very_many_columns(write):
    wide = ",".join(f"c{number}" for number in range(50_000))
    begun = time.monotonic()
    assert len(read(write("a.csv", f"{wide}\n{wide}\n")).columns) == 50_000
    assert time.monotonic() - begun < 10


def test_a_line_that_is_nested_too_deeply_is_rejected_alone(write):
    table = read(write("a.jsonl", '{"a":' * 10_000 + "\n" + json.dumps(ROW)))
    assert table.rows == [(2, ROW)] and "nested too deeply" in table.rejected[0].rule


def test_the_fingerprint_is_that_of_the_bytes_and_limit_reads_the_first_rows(write):
    rows = [ROW | {"output": str(number)} for number in range(9)]
    one, other = write("a.jsonl", rows), write("b.jsonl", rows)
    assert read(one).fingerprint == read(other).fingerprint != read(write("c.json", rows)).fingerprint
    assert [number for number, _ in read(one, limit=4).rows] == [1, 2, 3, 4]
