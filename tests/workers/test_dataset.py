import json

import numpy as np
import pytest
from datasets import Dataset

from gemma_tune import data, hub
from gemma_tune.errors import DataError
from gemma_tune.runs.folder import read_json
from gemma_tune.workers import dataset

from . import tiny

LONG = [{"role": "user", "content": "boat " * 200}, {"role": "assistant", "content": "red"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def encoded(run):
    """(rows, tokens, both sides) of a run, as its worker has them."""
    settings = run.config()
    rows = dataset.rows_of(run, settings, None)
    folder = hub.tokenizer_folder(settings.model.id)
    tokens = dataset.tokens_of(rows, settings, folder)
    chat = data.ChatTokenizer.from_folder(folder)
    return rows, tokens, dataset.encode(run, rows, settings, tokens, chat)


@pytest.fixture
def source(tmp_path):
    def write(*records: dict) -> str:
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return f"data.source={path}"

    return write


def talk_records(count: int) -> list[dict]:
    return [{"messages": talk} for talk in tiny.conversations()[:count]]


def test_rows_are_prepared_once_and_written_down(make_run, monkeypatch):
    run = make_run()
    rows = dataset.rows_of(run, run.config(), None)
    assert (len(rows.train), len(rows.validation), len(rows.store)) == (58, 6, 64)
    assert rows.store.folder == run.data_dir
    assert read_json(run.provenance_path)["data_fingerprint"] == rows.store.key
    monkeypatch.setattr(data, "prepare", pytest.fail)
    again = dataset.rows_of(run, run.config(), None)
    assert np.array_equal(again.train, rows.train) and np.array_equal(again.validation, rows.validation)


def test_what_was_half_written_is_prepared_again(make_run):
    run = make_run()
    first = dataset.rows_of(run, run.config(), None)
    (run.data_dir / dataset.SPLIT).unlink()
    again = dataset.rows_of(run, run.config(), None)
    assert np.array_equal(again.train, first.train) and len(again.store) == 64
    assert not [path for path in run.data_dir.iterdir() if path.name.startswith(".")]


def test_a_stop_while_rows_are_read_leaves_no_split(make_run):
    run = make_run()

    def stop(phase: str, done: int, total: int | None) -> None:
        if phase == "reading":
            raise data.Cancelled

    with pytest.raises(data.Cancelled):
        dataset.rows_of(run, run.config(), None, stop)
    assert not (run.data_dir / dataset.SPLIT).exists()
    assert len(dataset.rows_of(run, run.config(), None).train) == 58


def test_each_side_is_an_arrow_file_of_the_tokens_cut(make_run, monkeypatch):
    monkeypatch.setattr(dataset, "ROWS_AT_ONCE", 7)  # several batches
    run = make_run("train.max_length=30")
    rows, tokens, sides = encoded(run)
    for side, indices in zip(sides, (rows.train, rows.validation), strict=True):
        written = Dataset.from_file(str(side.path))
        assert [(row["input_ids"], row["labels"]) for row in written] == [
            tokens.row(index, 30) for index in indices
        ]
        assert (side.rows, side.left_out) == (len(indices), [])
        assert side.cut == int((tokens.lengths[indices] > 30).sum()) > 0
        assert side.tokens == sum(len(row["input_ids"]) for row in written)
    assert [side.name for side in sides] == ["training", "validation"]


def test_rows_with_nothing_to_learn_are_left_out_by_their_number(make_run, source):
    talks = talk_records(12)
    talks[3] = {"messages": LONG}
    talks[7] |= {"tools": TOOLS}  # the template has no place for them
    run = make_run(source(*talks), "data.validation_fraction=0", "train.max_length=64")
    _, _, (train, validation) = encoded(run)
    assert (train.rows, train.left_out, train.cut) == (10, [4, 8], 1)
    assert (validation.rows, validation.left_out, validation.tokens) == (0, [], 0)


def test_packing_cuts_for_itself(make_run, source):
    run = make_run(source(*talk_records(9), {"messages": LONG}), "data.validation_fraction=0", "train.max_length=64",
                   "train.packing=true")  # fmt: skip
    rows, tokens, (train, _) = encoded(run)
    written = Dataset.from_file(str(train.path))
    assert max(len(row["input_ids"]) for row in written) == tokens.lengths.max() > 64
    assert (train.rows, train.cut, train.left_out) == (10, 1, [])


def test_a_row_of_a_weight_stands_as_often_as_it_is_learned(make_run):
    run = make_run("data.weight=2", "data.validation_fraction=0")
    _, _, (train, _) = encoded(run)
    written = [row["input_ids"] for row in Dataset.from_file(str(train.path))]
    assert train.rows == 128 and written[::2] == written[1::2]


@pytest.mark.parametrize(
    ("record", "answers"),
    [
        ({"text": "The boat is red."}, "<bos>The boat is red.<eos>"),
        ({"prompt": "What?", "completion": "Red."}, "Red.<end_of_turn>\n"),
        ({"prompt": "What?", "chosen": "Red.", "rejected": "Blue."}, "Red.<end_of_turn>\n"),
        ({"prompt": "What?", "completion": "Red.", "label": True}, "Red.<end_of_turn>\n"),
    ],
)
def test_of_every_schema_the_answer_is_learned(make_run, source, gemma3, record, answers):
    run = make_run(source(*[record] * 9), "data.validation_fraction=0")
    _, _, (train, _) = encoded(run)
    labels = [label for label in Dataset.from_file(str(train.path))[0]["labels"] if label != -100]
    chat = data.ChatTokenizer.from_folder(gemma3)
    assert chat.decode(labels, skip_special_tokens=False) == answers


def test_every_rank_writes_the_same_bytes_and_leaves_no_draft(make_run):
    run = make_run()
    _, _, (first, _) = encoded(run)
    before = first.path.read_bytes()
    _, _, (second, _) = encoded(run)
    assert second.path.read_bytes() == before
    assert not [path for path in run.data_dir.iterdir() if path.name.startswith(".")]


def test_a_length_that_leaves_nothing_to_learn_is_refused(make_run, source):
    run = make_run(source(*[{"messages": LONG}] * 9), "train.max_length=16")
    _, _, (train, _) = encoded(run)
    with pytest.raises(
        DataError, match="train.max_length: No training row has any token to learn from.*found: 16"
    ):
        dataset.refuse_nothing_to_learn(train, run.config())
