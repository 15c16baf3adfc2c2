import json

import pytest

from gemma_tune.runs.checkpoints import complete_checkpoints, remove_partial_checkpoints, write_marker


@pytest.fixture
def make(tmp_path):
    def make(step, *, complete=True):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        (folder / "inner").mkdir(parents=True)
        (folder / "optimizer.pt").write_bytes(b"12345")
        (folder / "inner" / "x.json").write_text("{}")
        if complete:
            assert write_marker(folder) == 7
        return folder

    return make


def test_whole_checkpoints_come_in_the_order_of_their_steps(tmp_path, make):
    for step in (100, 20, 3):
        make(step)
    assert [step for step, _ in complete_checkpoints(tmp_path)] == [3, 20, 100]


def test_a_checkpoint_without_marker_is_partial(tmp_path, make):
    make(1)
    make(2, complete=False)
    assert [step for step, _ in complete_checkpoints(tmp_path)] == [1]


@pytest.mark.parametrize("damage", ["cut", "missing", "garbled", "empty marker", "odd marker"])
def test_a_checkpoint_that_differs_from_its_marker_is_partial(tmp_path, make, damage):
    folder = make(1)
    if damage == "cut":
        (folder / "optimizer.pt").write_bytes(b"123")
    elif damage == "missing":
        (folder / "inner" / "x.json").unlink()
    elif damage == "garbled":
        (folder / "COMPLETE.json").write_text('{"files": {"opt')
    else:
        (folder / "COMPLETE.json").write_text(json.dumps({"files": {}} if damage == "empty marker" else [1]))
    assert complete_checkpoints(tmp_path) == []


def test_partial_checkpoints_are_removed_and_nothing_else(tmp_path, make):
    make(1)
    half = make(2, complete=False)
    other = tmp_path / "checkpoints" / "mine"
    other.mkdir()
    assert remove_partial_checkpoints(tmp_path) == [half]
    assert other.exists()
    assert [step for step, _ in complete_checkpoints(tmp_path)] == [1]


def test_a_link_is_no_checkpoint(tmp_path, make):
    outside = make(1)
    outside.rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoints" / "checkpoint-9").symlink_to(tmp_path / "elsewhere")
    assert complete_checkpoints(tmp_path) == []
    assert remove_partial_checkpoints(tmp_path) == []


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert complete_checkpoints(tmp_path) == []
    assert remove_partial_checkpoints(tmp_path) == []
