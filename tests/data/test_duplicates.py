import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_tune.data.duplicates import SIMILAR, exact_copies, near_pairs, similarity
from gemma_tune.data.facts import SKETCH, sketch_of


def sketches(*texts: str) -> np.ndarray:
    return np.array([sketch_of(text) for text in texts], np.uint32).reshape(-1, SKETCH)


def essay(seed: int, words: int = 200) -> list[str]:
    draw = np.random.default_rng(seed)
    return ["".join(chr(97 + letter) for letter in draw.integers(0, 26, 6)) for _ in range(words)]


def changed(words: list[str], count: int) -> str:
    """The words with `count` of them replaced, spread evenly."""
    places = np.linspace(0, len(words) - 1, count, dtype=int) if count else []
    return " ".join("xxxxxx" if place in places else word for place, word in enumerate(words))


@given(st.lists(st.integers(0, 6)))
def test_a_copy_is_every_row_but_the_first_of_its_kind(values):
    found = exact_copies(np.array(values, np.uint64))
    assert found.tolist() == [value in values[:place] for place, value in enumerate(values)]


def test_a_row_with_a_few_other_words_is_nearly_the_same_and_another_is_not():
    base = essay(0)
    texts = [" ".join(base), " ".join(essay(1)), changed(base, 3), " ".join(essay(2)), changed(base, 60)]
    assert near_pairs(sketches(*texts)).tolist() == [[0, 2]]


def test_each_later_row_is_named_once_with_the_first_that_it_resembles():
    base = " ".join(essay(0))
    assert near_pairs(sketches(base, "other " * 9, base, base)).tolist() == [[0, 2], [0, 3]]


def test_no_row_or_a_single_one_resembles_nothing():
    assert near_pairs(sketches()).shape == (0, 2)
    assert near_pairs(sketches("a")).shape == (0, 2)


def test_texts_too_short_for_one_sequence_resemble_only_their_like():
    assert near_pairs(sketches("", "a", "b", "a")).tolist() == [[1, 3]]


def test_what_is_found_agrees_with_comparing_every_two():
    """Of texts well above the bar nearly all are found, of texts below it none."""
    draw, texts = np.random.default_rng(3), []
    for seed in range(60):
        base = essay(seed)
        texts += [
            " ".join(base),
            changed(base, int(draw.integers(0, 2))),
            changed(base, int(draw.integers(40, 99))),
        ]
    all_sketches = sketches(*texts)
    found = {tuple(pair) for pair in near_pairs(all_sketches).tolist()}
    earlier, later = np.triu_indices(len(texts), 1)
    alike = similarity(all_sketches[earlier], all_sketches[later])
    expected = {
        (int(a), int(b)) for a, b in zip(earlier[alike >= SIMILAR], later[alike >= SIMILAR], strict=True)
    }
    assert found <= expected
    assert len(found) >= 0.9 * len({later for _, later in expected})


@pytest.mark.parametrize("rows", [30_000])
def test_many_rows_alike_do_not_take_a_comparison_of_every_two(rows):
    import time

    alike = np.repeat(sketches(" ".join(essay(0))), rows, axis=0)
    begun = time.monotonic()
    assert len(near_pairs(alike)) == rows - 1
    assert time.monotonic() - begun < 10  # about 0.1 s; every two would be 450 million
