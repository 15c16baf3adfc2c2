import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_tune.data import facts
from gemma_tune.data.duplicates import similarity
from gemma_tune.data.facts import (
    CONTROL,
    FACTS,
    HTML,
    PLACEHOLDER,
    SHORT,
    TURN_TOKEN,
    flags_of,
    noted,
    what_is_odd,
)
from gemma_tune.data.rows import IMAGE, Row


def pair(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def fact(row: Row) -> np.void:
    return np.array([noted(row, 3)[0]], facts.FACTS)[0]


def test_a_row_is_noted_with_its_place_kind_and_sizes():
    found = fact(Row(7, pair("abc", "defg"), prompt_turns=1, label=False, tools="[1]", held_back=True))
    assert (found["number"], found["part"], found["label"], found["held_back"], found["tools"]) == (
        7,
        3,
        0,
        True,
        True,
    )
    assert facts.KINDS[found["kind"]] == "label" and found["answer_characters"] == 4
    assert (
        facts.KINDS[fact(Row(1, text="abc"))["kind"]] == "text"
        and fact(Row(1, text="abc"))["answer_characters"] == 3
    )
    assert (
        fact(Row(1, pair("a", "b")))["label"] == -1 and fact(Row(1, pair("a", "b"), label=True))["label"] == 1
    )


def test_the_sizes_of_both_answers_of_a_pair_are_their_own():
    answers = [{"role": "assistant", "content": "12345"}]
    found = fact(Row(1, pair("q", "abcde"), rejected_messages=answers, prompt_turns=1))
    assert (found["answer_characters"], found["other_characters"]) == (5, 5)
    assert facts.KINDS[found["kind"]] == "pair"


def test_copies_are_known_by_their_words_alone():
    first = fact(Row(1, pair("Who  lives there?", "A cat.")))
    again = fact(Row(99, pair("who lives THERE?\n", " a cat."), file="b.json"))
    other = fact(Row(1, pair("Who lives there?", "A dog.")))
    assert first["identity"] == again["identity"] != other["identity"]
    assert first["prompt"] == again["prompt"] == other["prompt"]
    good, bad = (fact(Row(1, pair("a", "b"), prompt_turns=1, label=label)) for label in (True, False))
    assert good["identity"] != bad["identity"] and good["prompt"] == bad["prompt"]
    swapped = [{"role": "assistant", "content": "b"}], [{"role": "assistant", "content": "c"}]
    assert (
        fact(Row(1, [*pair("a", "b")[:1], *swapped[0]], swapped[1], 1))["identity"]
        != fact(Row(1, [*pair("a", "b")[:1], *swapped[1]], swapped[0], 1))["identity"]
    )


def test_a_system_text_and_tools_are_part_of_the_prompt():
    system = {"role": "system", "content": "s"}
    prompts = {
        int(fact(row)["prompt"])
        for row in (
            Row(1, pair("a", "b")),
            Row(1, [system, *pair("a", "b")]),
            Row(1, pair("a", "b"), tools='[{"name": "f"}]'),
        )
    }
    assert len(prompts) == 3


def test_rows_that_differ_in_their_images_alone_are_different_and_a_place_is_no_text():
    turns = [
        {"role": "user", "content": f"{IMAGE}What is it?"},
        {"role": "assistant", "content": "A cat, asleep."},
    ]
    one, again, other, none = (
        noted(Row(1, turns, images=[{"file": file, "width": 1, "height": 1}] if file else []), 0)
        for file in ("a.png", "a.png", "b.png", "")
    )
    names = FACTS.names
    assert one[0] == again[0] and (one[1] == again[1]).all() and similarity(one[1][None], other[1][None]) == 0
    for name in ("identity", "prompt"):
        at = names.index(name)
        assert one[0][at] != other[0][at]
    at = names.index("prompt_characters")
    assert none[0][at] == one[0][at] + 1, "in a row without images it is text"
    assert not one[0][names.index("flags")] & (CONTROL | TURN_TOKEN)


def test_identities_are_the_same_on_every_machine():
    assert facts.hashed("Who lives there?") == 0xB92BB41C2B074F06
    assert int(fact(Row(1, pair("Who lives there?", "A cat.")))["identity"]) == 0xB356E7214DCF84A7
    assert facts.sketch_of("who lives there?")[:3].tolist() == [73690498, 679956653, 767693191]


@pytest.mark.parametrize(
    ("flag", "odd", "plain"),
    [
        (CONTROL, ["a\x00b", "a\x07", "a\u200bb", "\u202eabc", "\ufeffabc", "a\x9d"], ["a\tb\nc\r\n", "naïve", "👨\u200d👩"]),
        (HTML, ["a<br>b", "<P class='x'>", "</div>", "a &nbsp; b", "&#8217;", "<h2>"], ["a < b > c", "<name>", "AT&T", "&c."]),
        (PLACEHOLDER, ["Dear {{name}},", "{{ first name }}", "[Your Name]", "[insert date]", "Lorem ipsum dolor"],
         ["{name}", "{{}}", "[1]", "insert [x]"]),
        (TURN_TOKEN, ["<end_of_turn>", "<start_of_turn>user", "<|turn>", "<turn|>", "<bos>", "<|tool_call>", "<tool_call|>",
                      "<start_function_call>", "<end_function_response>", "<|channel>"], ["end_of_turn", "<b>"]),
        (facts.BROKEN_ACCENTS, ["cafÃ©", "itâ€™s", "Â°C", "a\ufffdb"], ["café", "it’s"]),
    ],
)  # fmt: skip
def test_what_is_odd_in_a_text_is_flagged_and_shown_where_it_stands(flag, odd, plain):
    for text in odd:
        assert flags_of(text) & flag, text
        around = what_is_odd(flag, "so long before " * 5 + text + " and so long after" * 5)
        assert len(around) < 80
    for text in plain:
        assert not flags_of(text) & flag, text


def test_a_single_character_is_a_very_short_answer():
    assert fact(Row(1, pair("Is it?", "y")))["flags"] & SHORT
    assert not fact(Row(1, pair("Is it?", "no")))["flags"] & SHORT


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello", "Latin"), ("Zoë", "Latin"), ("12 + 3 = 15 !", "none"), ("Привет", "Cyrillic"), ("Καλημέρα", "Greek"),
        ("مرحبا", "Arabic"), ("שלום", "Hebrew"), ("नमस्ते", "Indic"), ("สวัสดี", "Thai"), ("こんにちは", "Kana"),
        ("안녕하세요", "Hangul"), ("你好", "Han"), ("አማርኛ", "other"), ("🐈", "none"), ("a 你好 b 世界", "Han"),
    ],
)  # fmt: skip
def test_the_script_is_that_of_most_letters_of_the_texts(text, script):
    assert facts.script_of(text) == script
    assert facts.SCRIPTS[fact(Row(1, pair(text, text)))["script"]] == script
    assert facts.SCRIPTS[fact(Row(1, text=text))["script"]] == script


@given(st.text(), st.text())
def test_any_text_can_be_noted(question, answer):
    found, sketch = noted(Row(1, pair(question, answer)), 0)
    assert sketch.shape == (facts.SKETCH,) and sketch.dtype == np.uint32
    assert (np.diff(sketch.astype(np.int64)) >= 0).all()
    np.array([found], facts.FACTS)


def shingles(text: str) -> set[bytes]:
    codes = text.encode()
    return {codes[place : place + facts.WINDOW_BYTES] for place in range(len(codes) - facts.WINDOW_BYTES + 1)}


def test_sketches_estimate_what_two_texts_share_of_their_sequences():
    words = np.random.default_rng(0).integers(0, 1000, 400)
    whole = " ".join(map(str, words))
    for share in (1.0, 0.95, 0.8, 0.5, 0.0):
        kept = int(share * len(words))
        other = " ".join(map(str, [*words[:kept], *(words[kept:] + 5000)]))
        expected = len(shingles(whole) & shingles(other)) / len(shingles(whole) | shingles(other))
        both = [facts.sketch_of(text)[None] for text in (whole, other)]
        assert similarity(*both)[0] == pytest.approx(expected, abs=0.2)  # 32 hashes: one deviation is 0.09
    assert similarity(*[facts.sketch_of(whole)[None]] * 2)[0] == 1
