import errno

import pytest

from gemma_tune import hub
from gemma_tune.data.sources import example_names, keep_upload, read
from gemma_tune.errors import ConfigError, DataError


def test_an_upload_is_kept_once_under_its_hash_and_a_safe_name(folder, tmp_path_factory):
    upload = tmp_path_factory.mktemp("browser") / "my data (1)$(rm).JSONL"
    upload.write_text('{"prompt": "a", "completion": "b"}\n')
    kept = keep_upload(upload)
    assert kept.parent == folder / "uploads"
    assert kept.name.endswith("-my-data-1-rm.JSONL") and len(kept.name.split("-")[0]) == 12
    assert keep_upload(upload) == kept and keep_upload(kept).read_bytes() == upload.read_bytes()
    assert [path.name for path in kept.parent.iterdir() if path.name.startswith(".")] == []
    assert len(read(str(kept)).rows) == 1


def test_a_full_disk_is_told_and_leaves_nothing_behind(folder, tmp_path_factory, monkeypatch):
    upload = tmp_path_factory.mktemp("browser") / "a.json"
    upload.write_text("[]")

    def fill(source, target):
        target.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fill)
    with pytest.raises(DataError, match="cannot be kept.*No space left.*GEMMA_TUNE_HOME"):
        keep_upload(upload)
    assert list((folder / "uploads").iterdir()) == []


def test_a_path_outside_the_allowed_roots_is_refused_with_the_way_out(folder, monkeypatch):
    with pytest.raises(ConfigError, match="data.source.*outside.*GEMMA_TUNE_ROOTS"):
        read("/etc/passwd")
    link = folder / "link.json"
    link.symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="outside"):
        read(str(link))
    with pytest.raises(DataError, match="is a folder"):
        read(str(folder))


def test_an_example_is_read_by_name_with_its_held_out_rows(tmp_path, monkeypatch):
    example = tmp_path / "examples" / "small"
    example.mkdir(parents=True)
    (example / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (example / "held_out.jsonl").write_text('{"prompt": "c", "completion": "d"}\n')
    monkeypatch.setattr(hub, "examples_folder", lambda: tmp_path / "examples")
    assert example_names() == ["small"]
    assert read("example:small").rows[0][1]["prompt"] == "a"
    assert read("example:small", split="held_out").rows[0][1]["prompt"] == "c"
    assert read("example:small").source == "example:small"
    with pytest.raises(DataError, match="no such split.*train and held_out"):
        read("example:small", split="test")
    with pytest.raises(DataError, match="no such built-in example.*There are: small"):
        read("example:large")


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
