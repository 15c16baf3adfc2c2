import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_tune import config
from gemma_tune.data.facts import FACTS, noted
from gemma_tune.data.prepare import prepare
from gemma_tune.data.rows import Row
from gemma_tune.data.split import held_back, mixed, split, wanted_rows, weighted
from gemma_tune.sections import DataSection


def facts_of(answers, part: int = 0, held: tuple[int, ...] = ()) -> np.ndarray:
    """Facts of one-question rows; equal answers are copies."""
    rows = [
        Row(
            number,
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}],
            held_back=number in held,
        )
        for number, answer in enumerate(answers, 1)
    ]
    return np.array([noted(row, part)[0] for row in rows], FACTS)


def data(**values) -> DataSection:
    return DataSection(**values)


# ---- the split -------------------------------------------------------------------------------------------------------
def test_the_split_is_the_same_on_every_machine():
    train, held = split(facts_of(map(str, range(20))), data(validation_fraction=0.2))
    assert held.tolist() == [4, 5, 11, 16]
    assert train.tolist() == [n for n in range(20) if n not in held]
    by_number = split(facts_of(map(str, range(20))), data(validation_rows=3, split_seed=7))[1]
    assert by_number.tolist() == [2, 7, 14]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1))
def test_the_order_is_splitmix64_whatever_the_platform(value, seed):
    whole = 2**64 - 1
    state = (value + (seed + 1) * 0x9E3779B97F4A7C15) & whole
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & whole
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & whole
    assert mixed(np.array([value], np.uint64), seed).tolist() == [state ^ (state >> 31)]


def test_another_seed_splits_otherwise_and_the_order_of_rows_does_not_matter():
    answers = [f"answer {n}" for n in range(50)]
    held = {
        seed: split(facts_of(answers), data(validation_fraction=0.2, split_seed=seed))[1] for seed in (1, 2)
    }
    assert len(held[1]) == len(held[2]) == 10 and set(held[1]) != set(held[2])
    backwards = split(facts_of(answers[::-1]), data(validation_fraction=0.2, split_seed=1))[1]
    assert {answers[::-1][place] for place in backwards} == {answers[place] for place in held[1]}


def test_rows_that_are_added_move_few_others_to_the_other_side():
    answers = [f"answer {n}" for n in range(200)]
    before, after = (
        {rows[place] for place in split(facts_of(rows), data(validation_rows=20))[1]}
        for rows in (answers, [*answers, "one more"])
    )
    assert len(before - after) <= 1


@pytest.mark.parametrize(
    ("rows", "values", "wanted"),
    [
        (10, {}, 1), (100, {}, 10), (10, {"validation_fraction": 0.0}, 0), (1, {"validation_fraction": 0.5}, 0),
        (0, {}, 0), (2, {"validation_fraction": 0.01}, 1), (3, {"validation_rows": 2}, 2), (3, {"validation_rows": 9}, 2),
        (100, {"validation_rows": 7, "validation_fraction": 0.5}, 7), (100, {"validation_rows": 7, "validation_fraction": 0}, 7),
    ],
)  # fmt: skip
def test_a_share_or_a_number_is_held_back_and_a_row_is_left_on_each_side(rows, values, wanted):
    assert wanted_rows(rows, data(**values)) == wanted
    train, held = split(facts_of(f"answer {n}" for n in range(rows)), data(**values))
    assert (len(train), len(held)) == (rows - wanted, wanted)


def test_rows_that_are_all_copies_are_not_split():
    train, held = split(facts_of("aaa"), data(validation_fraction=0.5))
    assert (len(train), len(held)) == (3, 0)


def test_a_split_column_or_a_source_of_its_own_decides_where_there_is_one():
    train, held = split(facts_of("abcdef", held=(2, 5)), data(validation_fraction=0.5))
    assert (train.tolist(), held.tolist()) == ([0, 2, 3, 5], [1, 4])


@given(st.lists(st.sampled_from("abcdefghij"), max_size=40), st.floats(0, 0.5), st.integers(0, 2**31 - 1))
def test_every_row_is_on_one_side_in_order_and_copies_are_together(answers, fraction, seed):
    facts = facts_of(answers)
    train, held = split(facts, data(validation_fraction=fraction, split_seed=seed))
    assert sorted([*train, *held]) == list(range(len(answers)))
    assert train.tolist() == sorted(train) and held.tolist() == sorted(held)
    assert not set(facts["identity"][train]) & set(facts["identity"][held])
    assert len(held) <= max(1, round(fraction * len(answers)))
    assert len(train) or not answers


@given(st.lists(st.integers(0, 4)), st.integers(0, 20), st.integers(0, 99))
def test_never_more_is_held_back_than_wanted_and_as_much_as_whole_groups_allow(identity, wanted, seed):
    values = np.array(identity, np.uint64)
    found = held_back(values, wanted, seed)
    assert found.sum() <= wanted
    if len(set(identity)) > 1:
        left = [identity.count(value) for value in set(identity) if not found[identity.index(value)]]
        assert all(size > wanted - found.sum() for size in left)


# ---- weights ---------------------------------------------------------------------------------------------------------
def test_a_weight_says_how_often_a_row_of_a_source_is_learned_per_epoch():
    facts = np.concatenate([facts_of("abcd"), facts_of("efgh", part=1)])
    indices = np.arange(8)
    assert weighted(indices, facts, [1.0, 1.0], 42) is indices
    assert weighted(indices, facts, [1.0, 2.0], 42).tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    for weight, rows in ((0.5, 2), (0.25, 1), (1.5, 6), (3.75, 15)):
        found = weighted(indices, facts, [weight, 1.0], 42)
        assert found.tolist() == sorted(found) and (found < 4).sum() == rows and (found >= 4).sum() == 4
        counts = np.bincount(found[found < 4], minlength=4)
        assert counts.max() - counts.min() <= 1 and counts.min() == int(weight)
    assert weighted(indices[:0], facts, [2.0, 0.5], 42).tolist() == []


def test_the_rows_that_a_share_takes_are_the_same_on_every_machine():
    facts = facts_of(map(str, range(20)))
    assert weighted(np.arange(20), facts, [0.2], 42).tolist() == [3, 9, 11, 16]
    assert weighted(np.arange(20), facts, [0.2], 43).tolist() != [3, 9, 11, 16]


# ---- through a configuration -----------------------------------------------------------------------------------------
PAIRS = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(20)]


def prepared(source: str, **values):
    return prepare(
        config.parse({"data": {"source": source, **values}, "train": {"per_device_train_batch_size": 1}})
    )


def test_the_same_configuration_gives_the_same_split_anywhere(folder, write, monkeypatch):
    first = prepared(write("a.jsonl", PAIRS), validation_fraction=0.2)
    assert first.validation.tolist() == [5, 8, 9, 18]
    (folder / "elsewhere").mkdir()
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(folder / "elsewhere"))
    monkeypatch.setenv("GEMMA_TUNE_ROOTS", str(folder))
    second = prepared(write("b.jsonl", PAIRS), validation_fraction=0.2)
    assert second.validation.tolist() == first.validation.tolist() and second.fingerprint == first.fingerprint
    assert second.store.folder != first.store.folder


def test_a_column_says_on_which_side_a_row_is(write):
    rows = [pair | {"where": "dev" if n % 4 == 0 else "train"} for n, pair in enumerate(PAIRS)]
    found = prepared(write("a.jsonl", rows), split_column="where", validation_fraction=0.5)
    assert found.validation.tolist() == [0, 4, 8, 12, 16] and len(found.train) == 15


def test_a_source_of_its_own_is_held_back_whole(write):
    found = prepared(
        write("a.jsonl", PAIRS[:15]), validation_source=write("held.json", PAIRS[15:]), validation_rows=9
    )
    assert found.train.tolist() == list(range(15)) and found.validation.tolist() == list(range(15, 20))


def test_two_sources_are_mixed_with_weights_and_mappings_of_their_own(write):
    other = [{"frage": f"Frage {n}", "antwort": f"Antwort {n}"} for n in range(10)]
    mix = {
        "source": write("b.jsonl", other),
        "columns": {"prompt": "frage", "completion": "antwort"},
        "weight": 2,
    }
    found = prepared(write("a.jsonl", PAIRS), mix=[mix], weight=0.5, validation_fraction=0)
    facts = found.store.facts
    assert [part.schema.columns for part in found.parts] == [
        {"prompt": "prompt", "completion": "completion"},
        {"prompt": "frage", "completion": "antwort"},
    ]
    parts = facts["part"][found.train]
    assert ((parts == 0).sum(), (parts == 1).sum()) == (10, 20)
    assert np.unique(found.train[parts == 0], return_counts=True)[1].tolist() == [1] * 10
    assert np.unique(found.train[parts == 1], return_counts=True)[1].tolist() == [2] * 10
    assert [found.store.files[place] for place in np.unique(facts["file"])] == ["a.jsonl", "b.jsonl"]
    assert found.store.row(20).messages[0]["content"] == "Frage 0"


def test_copies_in_two_sources_do_not_straddle_the_split(write):
    mix = [{"source": write("b.jsonl", PAIRS)}]
    found = prepared(write("a.jsonl", PAIRS), mix=mix, validation_fraction=0.3)
    sides = [set(found.store.facts["identity"][side]) for side in (found.train, found.validation)]
    assert not sides[0] & sides[1] and len(found.validation) == 12
