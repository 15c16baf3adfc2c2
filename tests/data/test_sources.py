import errno
import json
from pathlib import Path

import pytest

from gemma_tune import hub
from gemma_tune.data import example_names, first_rows, keep_uploads, open_source, read
from gemma_tune.data.files import safe_name
from gemma_tune.data.sources import open_each
from gemma_tune.errors import ConfigError, DataError

LINE = '{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def browser(tmp_path_factory):
    """The folder into which a browser uploads."""
    return tmp_path_factory.mktemp("browser")


def test_an_upload_is_kept_once_under_its_hash_and_a_safe_name(folder, browser):
    upload = browser / "my data (1)$(rm).JSONL"
    upload.write_text(LINE)
    kept = keep_uploads([upload])
    assert kept.parent == folder / "uploads"
    assert kept.name.endswith("-my-data-1-rm.JSONL") and len(kept.name.split("-")[0]) == 12
    assert keep_uploads([upload]) == kept and keep_uploads([kept]).read_bytes() == upload.read_bytes()
    assert [path.name for path in kept.parent.iterdir() if path.name.startswith(".")] == []
    assert len(read(str(kept)).rows) == 1


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("rows.v2.jsonl.gz", "rows.v2.jsonl.gz"),
        ("..", "upload"),
        (".json", "upload.json"),
        ("ü ö.csv", "upload.csv"),
        ("a.tar.j/s on", "s-on"),
        ("x" * 300 + ".json", "x" * 60 + ".json"),
    ],
)
def test_the_name_of_an_upload_keeps_what_tells_its_kind(name, safe):
    assert safe_name(Path(name).name) == safe


def test_several_uploads_are_kept_as_one_folder_whatever_their_order(folder, browser):
    for name, text in (("one.jsonl", LINE), ("two.csv", "prompt,completion\nc,d\n")):
        (browser / name).write_text(text)
    uploads = [browser / "two.csv", browser / "one.jsonl"]
    kept = keep_uploads(uploads)
    assert kept.parent == folder / "uploads" and kept.name.endswith("-2-files")
    assert sorted(path.name for path in kept.iterdir()) == ["one.jsonl", "two.csv"]
    assert keep_uploads(uploads[::-1]) == kept
    assert [row["completion"] for _, row in read(str(kept)).rows] == ["b", "d"]
    (browser / "one.jsonl").write_text(LINE * 2)
    assert keep_uploads(uploads) != kept


def test_uploads_of_the_same_name_are_kept_beside_each_other(folder, browser):
    uploads = []
    for place, answer in (("first", "b"), ("second", "d")):
        (browser / place).mkdir()
        uploads.append(browser / place / "rows.jsonl")
        uploads[-1].write_text(LINE.replace('"b"', f'"{answer}"'))
    kept = keep_uploads(uploads)
    assert len(list(kept.iterdir())) == 2
    assert {row["completion"] for _, row in read(str(kept)).rows} == {"b", "d"}


@pytest.mark.parametrize("count", [1, 2])
def test_a_full_disk_is_told_and_leaves_nothing_behind(folder, browser, monkeypatch, count):
    uploads = [browser / f"{number}.json" for number in range(count)]
    for upload in uploads:
        upload.write_text(f"[{upload.name}]")

    def fill(source, target):
        target.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("shutil.copyfile", fill)
    with pytest.raises(DataError, match="cannot be kept.*No space left.*GEMMA_TUNE_HOME"):
        keep_uploads(uploads)
    assert [path for path in (folder / "uploads").rglob("*") if path.is_file()] == []


def test_a_path_outside_the_allowed_roots_is_refused_with_the_way_out(folder):
    with pytest.raises(ConfigError, match="data.source.*outside.*GEMMA_TUNE_ROOTS"):
        read("/etc/passwd")
    link = folder / "link.json"
    link.symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="outside"):
        read(str(link))
    link.unlink()
    with pytest.raises(DataError, match="The folder holds no file of rows"):
        read(str(folder))


def test_a_look_at_a_source_tells_the_same_first_rows_as_the_whole(write):
    source = write("a.jsonl", "{broken\n" + LINE * 9)
    look = first_rows(open_source(source, whole=False), 5)
    assert [number for number, _ in look.rows] == [2, 3, 4, 5, 6]
    assert look.rows == read(source).rows[:5] and look.rejected == read(source).rejected
    assert look.source == "a.jsonl" and look.columns == ["prompt", "completion"]


def test_a_look_does_not_read_on_for_ever_where_no_row_can_be_read(write, monkeypatch):
    monkeypatch.setattr("gemma_tune.data.files.BLOCK_BYTES", 10)
    monkeypatch.setattr("gemma_tune.data.sources.REJECTED_IN_A_ROW", 50)
    opened = open_source(write("a.jsonl", "{\n" * 150), whole=False)
    table = first_rows(opened, 5)
    assert not table.rows and 50 < len(table.rejected) < 60
    assert len(first_rows(opened).rejected) == 150


def test_rows_of_several_files_are_rejected_with_the_name_of_their_file(folder):
    (folder / "a.jsonl").write_text(LINE + "{\n3\n")
    (folder / "b.jsonl").write_text("4\n" + LINE)
    table = read(str(folder))
    assert [(one.file, one.number) for one in table.rejected] == [
        ("a.jsonl", 2),
        ("a.jsonl", 3),
        ("b.jsonl", 1),
    ]
    assert [number for number, _ in table.rows] == [1, 2]


def test_the_columns_of_a_table_are_those_of_all_its_rows_in_order(write):
    table = read(write("a.jsonl", [{"b": 1}, {"a": 2, "b": 3}, {"c": 4}]))
    assert table.columns == ["b", "a", "c"]


def test_each_file_of_a_folder_or_a_zip_can_be_opened_by_itself(folder):
    (folder / "set").mkdir()
    (folder / "set" / "a.jsonl").write_text(LINE)
    (folder / "set" / "b.csv").write_text("text\nhi\n")
    (folder / "set" / "note.docx").write_text("x")
    one, other = open_each(str(folder / "set"))
    assert (one.name, other.name) == ("a.jsonl", "b.csv")
    assert one.notes == ["1 other files are passed over: note.docx."] and other.notes == []
    assert first_rows(other).rows == [(1, {"text": "hi"})]
    (alone,) = open_each(str(folder / "set" / "a.jsonl"))
    assert alone.fingerprint() == one.fingerprint()


def test_an_example_is_read_by_name_with_its_held_out_rows(tmp_path, monkeypatch):
    example = tmp_path / "examples" / "small"
    example.mkdir(parents=True)
    (example / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (example / "held_out.jsonl").write_text('{"prompt": "c", "completion": "d"}\n')
    monkeypatch.setattr(hub, "examples_folder", lambda: tmp_path / "examples")
    assert example_names() == ["small"]
    assert read("example:small").rows[0][1]["prompt"] == "a"
    assert read("example:small", split="held_out").rows[0][1]["prompt"] == "c"
    assert read(" example:small ").source == "example:small"
    with pytest.raises(DataError, match="no such split.*train and held_out"):
        read("example:small", split="test")
    with pytest.raises(DataError, match="no such built-in example.*There are: small"):
        read("example:large")
    with pytest.raises(DataError, match="no such built-in example"):
        read("example:../small")


def test_without_the_examples_folder_the_fault_says_where_it_should_be(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "examples_folder", lambda: tmp_path / "none")
    assert example_names() == []
    with pytest.raises(DataError, match="checkout of the repository"):
        read("example:pocket-json")


@pytest.mark.parametrize("name", example_names())
def test_every_built_in_example_can_be_read_whole(name):
    for split in ("train", "held_out"):
        table = read(f"example:{name}", split=split)
        assert table.rows and not table.rejected


def test_what_is_refused_is_shown_as_it_stands(write):
    (one,) = read(write("a.json", json.dumps(["words " * 90, {"a": 1}]))).rejected
    assert one.number == 1 and one.value.startswith("words words") and len(one.value) <= 80
