"""Which files a path means, how they are unpacked and decoded. What is refused stands in test_bad_input."""

import gzip
import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest

from gemma_tune.data import files, open_source, read
from gemma_tune.data.containers import files_of
from gemma_tune.data.files import probe
from gemma_tune.errors import DataError

ROW = {"instruction": "Say hello", "input": "", "output": "Hello"}
LINE = json.dumps(ROW) + "\n"


def zip_of(path: Path, **contents: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name.replace("_", "."), content)
    return path


def labels(path: Path) -> list[str]:
    return [file.label for file in files_of(path)[0]]


def test_a_folder_means_its_files_of_rows_in_the_order_of_their_names(folder):
    for name in (
        "b.jsonl",
        "a.csv",
        "c.parquet",
        "d.md",
        "e.jsonl.gz",
        "photo.tiff",
        ".hidden.json",
        "_draft.json",
    ):
        (folder / name).write_text("x")
    (folder / "sub").mkdir()
    (folder / "sub" / "z.json").write_text("x")
    zip_of(folder / "f.zip", two_json="x", one_txt="y")
    found, notes = files_of(folder)
    names = [file.label for file in found]
    assert names == ["a.csv", "b.jsonl", "c.parquet", "d.md", "e.jsonl.gz", "f.zip/one.txt", "f.zip/two.json"]
    assert [file.suffix for file in found][4:] == [".jsonl", ".txt", ".json"]
    assert notes == ["2 other files are passed over: photo.tiff, sub."]


def test_of_many_files_that_are_passed_over_the_first_are_named(folder):
    for name in ["a.json", *(f"{number}.doc" for number in range(7))]:
        (folder / name).write_text("x")
    assert files_of(folder)[1] == ["7 other files are passed over: 0.doc, 1.doc, 2.doc, 3.doc, 4.doc, …."]


def test_a_zip_means_its_files_of_rows_without_what_a_mac_adds(folder):
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (
            "b/two.jsonl",
            "b/one.csv",
            "__MACOSX/b/._two.jsonl",
            "b/.DS_Store",
            "./",
            "read me.docx",
        ):
            archive.writestr(name, LINE)
    assert labels(path) == ["a.zip/b/one.csv", "a.zip/b/two.jsonl"]
    assert files_of(path)[1] == ["1 other files are passed over: read me.docx."]


def test_a_zip_made_on_windows_names_its_folders_with_backslashes(folder):
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("data\\rows.jsonl"), LINE)
    assert read(str(path)).rows == [(1, ROW)]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.JSONL.GZ", "a.gz", "a.zip"])
def test_a_packed_file_gives_the_rows_of_the_plain_one(folder, write, name):
    plain = read(write("plain.jsonl", LINE * 30 + "{broken\n"))
    path = folder / name
    if name.endswith(".zip"):
        zip_of(path, a_jsonl=LINE * 30 + "{broken\n")
    else:
        path.write_bytes(gzip.compress((LINE * 30 + "{broken\n").encode()))
    packed = read(str(path))
    assert (packed.rows, packed.rejected) == (plain.rows, plain.rejected) and len(plain.rejected) == 1


def test_a_small_file_that_packs_well_is_no_bomb(folder):
    path = folder / "a.txt.gz"
    path.write_bytes(gzip.compress(b"the same words again\n\n" * 20_000))
    assert path.stat().st_size * files.MAX_RATIO < 440_000 < files.RATIO_COUNTS_FROM_BYTES
    assert sum(row["text"].count("again") for _, row in read(str(path)).rows) == 20_000


def test_a_link_within_the_allowed_folders_is_followed(folder):
    (folder / "set").mkdir()
    (folder / "a.jsonl").write_text(LINE)
    (folder / "set" / "b.jsonl").symlink_to(folder / "a.jsonl")
    assert read(str(folder / "set")).rows == [(1, ROW)]


def test_every_file_of_a_folder_that_cannot_be_read_is_told_at_once(folder):
    for name, content in (("a.json", ""), ("b.csv", ""), ("c.jsonl", LINE), ("d.json", "words")):
        (folder / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read(str(folder))
    assert [fault.where for fault in caught.value.faults] == ["a.json", "b.csv", "d.json"]


def test_a_name_that_is_no_text_can_be_shown_and_stored(folder):
    path = os.fsencode(folder / "set") + b"\xe9.jsonl"
    Path(os.fsdecode(path)).write_text(LINE + "{broken\n")
    (folder / "other.jsonl").write_text(LINE)
    table = read(str(folder))
    assert table.rejected[0].file.encode() == b"set?.jsonl" and len(table.rows) == 2


def test_a_byte_order_mark_is_no_part_of_the_first_column(write):
    text = "instruction,output\nSag Grüß Gott,Grüß Gott\n"
    for data in (b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        table = read(write("a.csv", data))
        assert table.columns == ["instruction", "output"]
        assert table.rows[0][1]["output"] == "Grüß Gott"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("limit", [None, 5])
def test_every_kind_of_text_is_read_in_its_encoding(write, name, encoding, limit):
    texts = {
        "a.json": json.dumps([{"text": "naïve café"}], ensure_ascii=False),
        "a.jsonl": json.dumps({"text": "naïve café"}, ensure_ascii=False),
        "a.csv": "text,other\nnaïve café,ü",
        "a.tsv": "text\tother\nnaïve café\tü",
        "a.txt": "naïve café",
    }
    assert read(write(name, texts[name].encode(encoding)), limit=limit).rows[0][1]["text"] == "naïve café"


@pytest.mark.parametrize(("encoding", "label"), [("cp1252", "Windows-1252"), ("latin-1", "Windows-1252")])
def test_a_csv_that_is_not_utf_8_is_read_with_a_note(write, encoding, label):
    table = read(write("a.csv", "instruction,output\nhi,x\nOlá,naïve café\n".encode(encoding)))
    assert table.rows[1][1] == {"instruction": "Olá", "output": "naïve café"}
    assert "Line 3" in table.notes[0] and label in table.notes[0]


def test_a_byte_that_windows_1252_lacks_is_read_as_latin_1_with_a_note(write):
    table = read(write("a.csv", b"a,b\n\x81\xe9,x\n"))
    assert table.rows[0][1]["a"] == "\x81é" and "Line 2" in table.notes[0] and "Latin-1" in table.notes[0]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_an_accent_that_is_the_last_byte_of_a_file_is_not_taken_for_utf_8(write, name):
    content = {"a.csv": b"text\nx\ncaf\xe9", "a.jsonl": b'{"text": "x"}\n\n\xe9', "a.txt": b"x\n\ncaf\xe9"}[
        name
    ]
    table = read(write(name, content))
    assert "Line 3 is not UTF-8" in table.notes[0]
    assert "é" in str(table.rows) + str(table.rejected)


def test_the_line_of_the_first_odd_byte_is_right_behind_the_first_block(write, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 7)
    assert not read(
        write("a.csv", "a,b\n" + "x,y\n" * 9 + "é,ü\n")
    ).notes  # two bytes each, across the blocks
    (note,) = read(write("b.csv", b"a,b\n" + b"x,y\n" * 9 + b"\xe9,y\n")).notes
    assert "Line 11 is not UTF-8" in note


def test_a_file_is_passed_over_once_until_it_changes(write, monkeypatch):
    source = write("a.jsonl", [ROW])
    (file,) = files_of(Path(source))[0]
    seen: list[int] = []
    first = probe(file, seen.append)
    assert first.sha256 == hashlib.sha256(Path(source).read_bytes()).hexdigest()
    assert sum(seen) == first.bytes == Path(source).stat().st_size
    assert probe(file, seen.append) is first and len(seen) == 1
    write("a.jsonl", [ROW, ROW])
    assert probe(file).bytes > first.bytes


def test_the_fingerprint_is_that_of_the_bytes_and_limit_reads_the_first_rows(write):
    rows = [ROW | {"output": str(number)} for number in range(9)]
    one, other = write("a.jsonl", rows), write("b.jsonl", rows)
    fingerprint = open_source(one).fingerprint()
    assert (
        fingerprint == open_source(other).fingerprint() == hashlib.sha256(Path(one).read_bytes()).hexdigest()
    )
    assert fingerprint != open_source(write("c.json", rows)).fingerprint()
    assert fingerprint == open_source(one, whole=False).fingerprint()
    assert [number for number, _ in read(one, limit=4).rows] == [1, 2, 3, 4]


def test_the_fingerprint_of_a_folder_changes_with_any_of_its_files(folder):
    (folder / "set").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / "set" / name).write_text(LINE)
    first = open_source(str(folder / "set")).fingerprint()
    assert first == open_source(str(folder / "set")).fingerprint()
    (folder / "set" / "b.jsonl").write_text(LINE * 2)
    second = open_source(str(folder / "set")).fingerprint()
    (folder / "set" / "b.jsonl").rename(folder / "set" / "c.jsonl")
    assert len({first, second, open_source(str(folder / "set")).fingerprint()}) == 3


def test_the_size_of_a_packed_file_is_that_of_what_is_in_it(folder):
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINE.encode() * 100))
    opened = open_source(str(path))
    assert opened.total_bytes == 100 * len(LINE)
    assert sum(records.read_bytes for records in opened.records()) == opened.total_bytes
    assert open_source(str(path), whole=False).total_bytes is None
