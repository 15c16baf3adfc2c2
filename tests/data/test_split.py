import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_tune import config, hub
from gemma_tune.data.rows import Row
from gemma_tune.data.split import gather, prepare, split
from gemma_tune.errors import DataError


def rows_of(*answers: str) -> list[Row]:
    return [
        Row(number, [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}])
        for number, answer in enumerate(answers, 1)
    ]


def configured(source: str, **data):
    batch = data.pop("batch", 1)
    return config.parse({"data": {"source": source, **data}, "train": {"per_device_train_batch_size": batch}})


def test_the_split_is_the_same_on_every_machine():
    _, held = split(rows_of(*map(str, range(20))), 0.2, 42)
    assert [row.number for row in held] == [2, 10, 11, 19]


def test_another_seed_splits_otherwise_and_the_order_of_rows_does_not_matter():
    rows = rows_of(*map(str, range(50)))
    _, held = split(rows, 0.2, 1)
    assert {row.number for row in held} != {row.number for row in split(rows, 0.2, 2)[1]}
    assert {row.number for row in split(rows[::-1], 0.2, 1)[1]} == {row.number for row in held}


def test_no_fraction_or_a_single_row_holds_nothing_back():
    assert split(rows_of("a", "b", "c"), 0, 42)[1] == []
    assert split(rows_of("a"), 0.5, 42)[1] == []
    assert split(rows_of("a", "a", "a"), 0.5, 42)[1] == []
    assert len(split(rows_of("a", "b"), 0.01, 42)[1]) == 1


@given(st.lists(st.sampled_from("abcdefghij"), max_size=40), st.floats(0, 0.5), st.integers(0, 2**31 - 1))
def test_every_row_is_on_one_side_in_order_and_copies_are_together(answers, fraction, seed):
    rows = rows_of(*answers)
    train, held = split(rows, fraction, seed)
    for side in (train, held):
        assert [row.number for row in side] == sorted(row.number for row in side)
    assert sorted(row.number for row in train + held) == [row.number for row in rows]
    assert not {row.identity() for row in train} & {row.identity() for row in held}
    assert len(held) <= max(1, round(fraction * len(rows)))
    assert train or not rows


PAIRS = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(20)]


def test_prepare_gives_both_sides_and_every_reason(write):
    rows = [*PAIRS, {"prompt": "no answer", "completion": ""}]
    prepared = prepare(configured(write("a.jsonl", rows)))
    assert (len(prepared.train), len(prepared.validation), len(prepared.rejected)) == (18, 2, 1)
    assert prepared.rejected[0].number == 21 and prepared.schema.format == "prompt_completion"
    assert prepared.fingerprint == prepared.table.fingerprint and not prepared.faults


def test_a_set_without_a_usable_row_shows_the_first_reasons(write):
    source = write("a.jsonl", [{"prompt": "x", "completion": ""} for _ in range(9)])
    with pytest.raises(DataError) as caught:
        prepare(configured(source))
    faults = caught.value.faults
    assert "None of the 9 rows can be used" in faults[0].rule and len(faults) == 4
    assert faults[1].where == "a.jsonl row 1, completion" and "The answer is empty" in faults[1].rule
    assert len(gather(configured(source)).rejected) == 9


def test_a_set_of_unreadable_lines_shows_the_first_reasons(write):
    with pytest.raises(DataError, match="None of the 2 rows can be used"):
        prepare(configured(write("a.jsonl", "{\n{\n")))


def test_a_set_smaller_than_one_batch_is_refused(write):
    with pytest.raises(DataError) as caught:
        prepare(configured(write("a.jsonl", PAIRS), batch=19))
    (fault,) = caught.value.faults
    assert fault.value == "18 training rows" and "smaller than one batch of 19" in fault.rule
    assert "per_device_train_batch_size to 18" in fault.way_out


def test_validation_rows_may_come_from_a_source_of_their_own(write):
    other = [{"prompt": "v", "completion": "w"}, {"prompt": "v", "completion": ""}]
    source, held = write("a.jsonl", PAIRS), write("held.json", other)
    prepared = prepare(configured(source, validation_source=held))
    assert len(prepared.train) == 20 and len(prepared.validation) == 1
    assert [(one.number, one.side) for one in prepared.rejected] == [(2, "validation")]
    assert list(prepared.rejected[0].as_dict()) == ["number", "field", "value", "rule", "way_out"]
    assert prepared.rejected[0].as_dict()["field"] == "validation completion"
    with pytest.raises(DataError, match="the training rows themselves"):
        prepare(configured(source, validation_source=source))
    bad = write("bad.json", [{"prompt": "v", "completion": ""}])
    with pytest.raises(DataError, match="None of the 1 rows"):
        prepare(configured(source, validation_source=bad))


def test_an_example_is_validated_on_its_held_out_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "examples_folder", lambda: tmp_path)
    (tmp_path / "small").mkdir()
    for name, rows in (("train", PAIRS[:15]), ("held_out", PAIRS[15:])):
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / "small" / f"{name}.jsonl").write_text(lines)
    prepared = prepare(configured("example:small", split="a Hub split chosen before"))
    assert (len(prepared.train), len(prepared.validation)) == (15, 5)


def test_the_note_on_an_encoding_becomes_a_warning(write):
    source = write("a.csv", "prompt,completion\nOlá,café\nb,c\nd,e\n".encode("cp1252"))
    (warning,) = prepare(configured(source)).warnings
    assert "Windows-1252" in warning.rule


def test_a_csv_with_a_missing_column_is_refused_before_any_row_is(write):
    source = write("a.csv", "instruction,input\nSay hello,\nSay bye,\n")
    with pytest.raises(
        DataError, match="a.csv: The column output is missing.*instruction, input.*data.columns.output"
    ):
        prepare(configured(source))
