import pytest

from gemma_tune import config
from gemma_tune.data.findings import Finding, findings_of
from gemma_tune.data.prepare import gather

WORDS = """river stone paper garden window silver morning bridge letter forest candle market winter silent orange
travel mountain kitchen pencil shadow ribbon harbour engine meadow lantern copper valley thunder basket mirror"""


def prose(seed: int, words: int = 14) -> str:
    """Words that no other seed gives in that order."""
    known = WORDS.split()
    places = ((seed * 7 + place * (seed % 11 + 1)) % len(known) for place in range(words))
    return " ".join(f"{known[place]}{seed}" for place in places)


def pairs(count: int, first: int = 0) -> list[dict]:
    return [{"prompt": prose(n), "completion": prose(n + 1000)} for n in range(first, first + count)]


@pytest.fixture
def found(write):
    """The findings of some rows by their title."""

    def find(rows: list[dict], **data) -> dict[str, Finding]:
        values = {"source": write("a.jsonl", rows), "validation_fraction": 0, **data}
        prepared = gather(config.parse({"data": values, "train": {"per_device_train_batch_size": 1}}))
        return {one.title: one for one in findings_of(prepared)}

    return find


def numbers(finding: Finding) -> list[int]:
    return [one.number for one in finding.examples]


def test_clean_rows_have_no_finding(found, write):
    assert found(pairs(30)) == {}
    assert found(pairs(30), validation_fraction=0.2) == {}
    assert found([{"text": prose(n, 30)} for n in range(9)]) == {}
    assert found([{"prompt": "", "completion": "x"}, {"prompt": "", "completion": "y"}]) == {}


@pytest.mark.parametrize(
    ("title", "odd", "tone"),
    [
        ("Control tokens in the text", "end it with <end_of_turn> now", "warm"),
        ("Leftover placeholders", "Dear {{name}}, hello", "warm"),
        ("Broken accents", "a cafÃ© there", "warm"),
        ("Invisible control characters", "zero\u200bwidth", "warm"),
        ("HTML in the text", "one<br>two", "plain"),
    ],
)
def test_what_is_odd_in_a_text_is_found_with_its_row_and_place(found, title, odd, tone):
    rows = pairs(9)
    rows[3]["prompt"] += f" {odd} and so on, as it was"
    rows[7]["completion"] = f"{odd} {rows[7]['completion']}"
    findings = found(rows)
    assert list(findings) == [title]
    finding = findings[title]
    assert (finding.count, finding.tone, numbers(finding)) == (2, tone, [4, 8]) and finding.words
    shown = finding.examples[0].text
    assert (shown in rows[3]["prompt"] and len(shown) < 80) or shown == r"'\u200b'"


def test_the_odd_text_of_a_system_turn_or_of_a_rejected_answer_is_found_too(found):
    messages = [
        {"role": r, "content": prose(n) + (" <bos>" if n == 0 else "")}
        for n, r in enumerate(("system", "user", "assistant"))
    ]
    assert "Control tokens in the text" in found([{"messages": messages}])
    assert "HTML in the text" in found(
        [{"prompt": prose(1), "chosen": prose(2), "rejected": f"<p>{prose(3)}</p>"}]
    )


def test_answers_of_a_single_character_are_very_short(found):
    rows = [*pairs(3), {"prompt": prose(7), "completion": "y"}]
    assert numbers(found(rows)["Very short answers"]) == [4]
    rows[3]["completion"] = "no"
    assert found(rows) == {}


def test_a_row_far_longer_than_the_others_is_named(found):
    rows = pairs(20)
    rows[5]["completion"] = prose(5, 600)
    finding = found(rows)["Very long rows"]
    assert (finding.count, finding.tone, numbers(finding)) == (1, "plain", [6])
    assert finding.words.startswith("The longest has 5,") and "the middle one" in finding.words
    assert "Very long rows" not in found(
        [{"prompt": prose(n, 300), "completion": prose(n + 50, 600)} for n in range(5)]
    )


def test_copies_are_counted_but_not_their_first(found):
    rows = [
        *pairs(5),
        pairs(5)[1],
        {"prompt": pairs(5)[1]["prompt"].upper(), "completion": pairs(5)[1]["completion"]},
    ]
    finding = found(rows)["Exact copies"]
    assert (finding.count, finding.tone, numbers(finding)) == (2, "warm", [6, 7])
    assert "Nearly the same rows" not in found(rows)


def test_rows_with_one_other_word_are_nearly_the_same(found):
    rows = [{"prompt": prose(n, 40), "completion": prose(n + 100, 40)} for n in range(6)]
    rows.append(rows[2] | {"prompt": rows[2]["prompt"] + " too"})
    finding = found(rows)["Nearly the same rows"]
    assert (finding.count, finding.tone, numbers(finding)) == (1, "plain", [7])
    assert finding.examples[0].text.startswith("like row 3: ")


# ---- leaks -----------------------------------------------------------------------------------------------------------
def test_a_validation_row_that_is_also_learned_is_found(found, write):
    held = write("held.jsonl", [*pairs(3, 50), pairs(1, 4)[0]])
    finding = found(pairs(10), validation_source=held)["Validation rows that are also trained on"]
    assert (finding.count, finding.tone, numbers(finding)) == (1, "warm", [4])
    assert finding.examples[0].file == "held.jsonl"


def test_the_same_prompt_on_both_sides_is_found_unless_the_row_is_the_same(found, write):
    other = {"prompt": pairs(1, 4)[0]["prompt"], "completion": prose(77)}
    findings = found(pairs(10), validation_source=write("held.jsonl", [*pairs(2, 50), other, pairs(1, 5)[0]]))
    finding = findings["The same prompt on both sides of the split"]
    assert (finding.count, numbers(finding)) == (1, [3])
    assert numbers(findings["Validation rows that are also trained on"]) == [4]


def test_a_validation_row_nearly_like_a_learned_one_is_found(found, write):
    rows = [{"prompt": prose(n, 40), "completion": prose(n + 100, 40)} for n in range(6)]
    near = {"prompt": rows[2]["prompt"] + " too", "completion": rows[2]["completion"]}
    findings = found(rows, validation_source=write("held.jsonl", [*pairs(2, 50), near]))
    finding = findings["Validation rows nearly the same as training rows"]
    assert (finding.count, finding.tone, numbers(finding)) == (1, "plain", [3])


def test_rows_alike_on_one_side_only_are_no_leak(found, write):
    rows = [{"prompt": prose(n, 40), "completion": prose(n + 100, 40)} for n in range(6)]
    rows.append(rows[2] | {"prompt": rows[2]["prompt"] + " too"})
    assert list(found(rows, validation_source=write("held.jsonl", pairs(2, 50)))) == ["Nearly the same rows"]


def test_a_leak_is_found_behind_a_likeness_on_the_same_side(found, write):
    """The row held back resembles another held-back row first, and a learned one behind it."""
    base = {"prompt": prose(1, 60), "completion": prose(101, 60)}
    near = [base | {"prompt": f"{base['prompt']} {word}"} for word in ("too", "again", "also")]
    rows = [*near[:1], *pairs(3, 60), *near[1:2], *pairs(2, 70), near[2]]
    sides = [{**row, "where": "dev" if place in (0, 7) else "train"} for place, row in enumerate(rows)]
    finding = found(sides, split_column="where")["Validation rows nearly the same as training rows"]
    assert numbers(finding) == [1, 8]


# ---- pairs and labels ------------------------------------------------------------------------------------------------
def preference(chosen: int, rejected: int, count: int = 10) -> list[dict]:
    return [
        {"prompt": prose(n), "chosen": prose(n + 100, chosen), "rejected": prose(n + 200, rejected)}
        for n in range(count)
    ]


def test_chosen_answers_that_are_mostly_the_longer_ones_are_a_bias(found):
    finding = found(preference(30, 10))["Length differs between chosen and rejected"]
    assert (
        finding.tone == "warm"
        and "the longer in 100% of the pairs" in finding.words
        and "balance them" in finding.words
    )
    shorter = found(preference(10, 30))["Length differs between chosen and rejected"]
    assert "the longer in 0% of the pairs" in shorter.words


def test_pairs_of_like_lengths_are_only_told(found):
    findings = found(preference(20, 20))
    assert list(findings) == ["Lengths of chosen and rejected"]
    assert findings["Lengths of chosen and rejected"].tone == "plain"
    equal = [{"prompt": prose(n), "chosen": "abcd", "rejected": "efgh"} for n in range(3)]
    words = found(equal)["Lengths of chosen and rejected"].words
    assert "Chosen answers have 4 characters, rejected ones 4" in words and "longer in 0% of" in words


@pytest.mark.parametrize(
    ("good", "bad", "tone"),
    [(5, 5, "plain"), (8, 2, "plain"), (2, 8, "plain"), (9, 1, "warm"), (1, 9, "warm")],
)
def test_the_balance_of_labels_is_told_and_a_lack_of_it_warned_of(found, good, bad, tone):
    rows = [row | {"label": place < good} for place, row in enumerate(pairs(good + bad))]
    finding = found(rows)["Balance of the labels"]
    assert finding.tone == tone and f"{good} answers are labelled as good, {bad} as bad" in finding.words
    assert f"the {bad} bad ones are kept but not used" in finding.words
    assert ("1 : 1 and 1 : 4" in finding.words) == (tone == "warm")


# ---- languages and scripts -------------------------------------------------------------------------------------------
GERMAN = ["Der kleine Hund läuft jeden Morgen mit seinem Freund durch den Wald und über die Wiese.",
          "Wir haben gestern ein neues Buch gekauft, das von einer langen Reise nach Norden erzählt.",
          "Kannst du mir bitte sagen, wann der nächste Zug nach München von diesem Bahnhof abfährt?"]  # fmt: skip
ENGLISH = ["The little dog runs through the forest and over the meadow with his friend every morning.",
           "Yesterday we bought a new book that tells the story of a long journey to the far north.",
           "Could you please tell me when the next train to Munich leaves from this railway station?"]  # fmt: skip


def in_language(sentences: list[str], count: int) -> list[dict]:
    return [
        {"prompt": sentences[n % 3] + f" ({n})", "completion": sentences[(n + 1) % 3] + " " + prose(n, 2)}
        for n in range(count)
    ]


def test_two_languages_are_told_with_their_shares_and_one_is_not(found):
    findings = found([*in_language(ENGLISH, 12), *in_language(GERMAN, 8)])
    finding = findings["Several languages"]
    assert finding.tone == "plain" and "en 60%" in finding.words and "de 40%" in finding.words
    assert "Guessed from 20 rows" in finding.words
    assert "Several languages" not in found(in_language(ENGLISH, 12))


def test_few_or_short_rows_are_not_guessed_at(found):
    assert "Several languages" not in found([*in_language(ENGLISH, 5), *in_language(GERMAN, 4)])
    short = [{"prompt": word, "completion": word} for word in ("Hund", "dog", "chien", "perro") * 5]
    assert "Several languages" not in found(short)


def test_several_scripts_are_told_and_a_single_row_in_a_hundred_is_not(found):
    rows = [*pairs(6), *({"prompt": f"你好{n}", "completion": "世界"} for n in range(4))]
    finding = found(rows)["Several scripts"]
    assert finding.tone == "plain" and finding.words == "Latin 60%, Han 40%."
    assert "Several scripts" not in found([*pairs(99), {"prompt": "你好", "completion": "世界"}])
    assert "Several scripts" not in found(
        [*pairs(5), *({"prompt": f"{n} + 1", "completion": f"{n + 1}0"} for n in range(9))]
    )


# ---- as a whole ------------------------------------------------------------------------------------------------------
def test_the_serious_findings_come_first_and_name_fifty_rows_at_most(found):
    rows = [
        *pairs(4),
        *({"prompt": prose(n), "completion": "one<br>two " + prose(n)} for n in range(100, 170)),
    ]
    rows += [{"prompt": prose(99), "completion": "Dear {{name}} " + prose(98)}]
    findings = found(rows)
    tones = [one.tone for one in findings.values()]
    assert tones[0] == "warm" and set(tones[1:]) == {"plain"}
    assert findings["HTML in the text"].count == 70 and len(findings["HTML in the text"].examples) == 50


def test_an_empty_set_has_no_finding(found):
    assert found([{"prompt": "a", "completion": ""}]) == {}
