"""What may surprise in data that can be trained on: copies, leaks, odd texts, imbalance. Nothing here stops a run.

Each finding names rows; most of them come from the facts of a store alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from gemma_tune.data import facts as noted
from gemma_tune.data.duplicates import exact_copies, near_pairs
from gemma_tune.data.prepare import Prepared
from gemma_tune.data.store import Store

ROWS_NAMED = 50
LANGUAGE_ROWS = 200  # sampled; each takes a quarter of a millisecond
LANGUAGE_CHARACTERS = 400
LANGUAGE_LEAST_CHARACTERS = 40  # shorter texts are anybody's guess
MIXED_SHARE = 0.02
LENGTH_BIAS = 1.5
LONG_FACTOR, LONG_CHARACTERS = (
    10,
    4_000,
)  # a row is very long from so many times the median and so many characters
LABEL_BALANCE = 0.2


@dataclass(frozen=True)
class Example:
    """One row that a finding names."""

    number: int
    file: str
    text: str


@dataclass(frozen=True)
class Finding:
    title: str
    count: int  # rows; 0 where it is about the set
    words: str  # why it matters and what to do, in sentences
    tone: str = "warm"  # or "plain": good to know
    examples: list[Example] = field(default_factory=list)


_ODD = {
    noted.TURN_TOKEN: ("Control tokens in the text", "The model reads them as the beginning or end of a turn, not as text. Take them out, unless that is meant."),
    noted.PLACEHOLDER: ("Leftover placeholders", "The model will learn to write them. Fill them in, or take the rows out."),
    noted.BROKEN_ACCENTS: ("Broken accents", "The text was decoded wrongly somewhere. Export it again as UTF-8."),
    noted.CONTROL: ("Invisible control characters", "They are learned like any other. Clean the text unless they are meant."),
    noted.HTML: ("HTML in the text", "The model will learn to write it. Fine for data about HTML; else convert it to plain text."),
    noted.SHORT: ("Very short answers", "They have a single character. Fine for labels; else check the column."),
}  # fmt: skip


def findings_of(prepared: Prepared) -> list[Finding]:
    """Most serious first."""
    store = prepared.store
    if not len(store):
        return []
    alike = near_pairs(store.sketches)
    found = [
        *_leaks(prepared, alike),
        *_odd_texts(store),
        *_copies(store, alike),
        *_long_rows(store),
        *_pairs(store),
        *_labels(store, prepared.unused_bad),
        *_scripts(store),
        *_languages(store),
    ]
    return sorted(found, key=lambda one: one.tone != "warm")


def _named(store: Store, indices: np.ndarray, flag: int = 0) -> list[Example]:
    return [
        Example(row.number, row.file, noted.what_is_odd(flag, row.whole_text()))
        for row in store.rows(indices[:ROWS_NAMED])
    ]


def _odd_texts(store: Store) -> Iterator[Finding]:
    for flag, (title, words) in _ODD.items():
        rows = np.flatnonzero(store.facts["flags"] & flag)
        if len(rows):
            serious = flag not in (noted.HTML, noted.SHORT)
            yield Finding(title, len(rows), words, "warm" if serious else "plain", _named(store, rows, flag))


def _long_rows(store: Store) -> Iterator[Finding]:
    """Rows that are far longer than the others, most often whole documents or a broken export."""
    sizes = store.facts["prompt_characters"].astype(np.int64) + store.facts["answer_characters"]
    rows = np.flatnonzero(sizes > max(LONG_CHARACTERS, LONG_FACTOR * int(np.median(sizes))))
    if len(rows):
        words = f"The longest has {sizes.max():,} characters, the middle one {int(np.median(sizes)):,}. Look whether they are what they should be."
        yield Finding("Very long rows", len(rows), words, "plain", _named(store, rows))


def _copies(store: Store, alike: np.ndarray) -> Iterator[Finding]:
    """`alike`: pairs of rows that are nearly the same."""
    is_copy = exact_copies(store.facts["identity"])
    if len(copies := np.flatnonzero(is_copy)):
        words = "They count as often as they stand there, and stay on one side of the split. Take them out unless that is meant."
        yield Finding("Exact copies", len(copies), words, "warm", _named(store, copies))
    if len(pairs := alike[~is_copy[alike[:, 1]]]):
        examples = [
            Example(one.number, one.file, f"like row {other.number}: {one.whole_text()[:60]}")
            for one, other in zip(
                store.rows(pairs[:ROWS_NAMED, 1]), store.rows(pairs[:ROWS_NAMED, 0]), strict=True
            )
        ]
        words = "They share nearly all of their words with an earlier row. Fine for filled-in patterns; else keep one of each."
        yield Finding("Nearly the same rows", len(pairs), words, "plain", examples)


def _leaks(prepared: Prepared, alike: np.ndarray) -> Iterator[Finding]:
    """What makes the validation look better than the model is."""
    store, train, held = prepared.store, np.unique(prepared.train), prepared.validation
    if not len(held) or not len(train):
        return
    for name, title, words in (
        ("identity", "Validation rows that are also trained on", "The validation loss will look better than it is. Take them out of one side."),
        ("prompt", "The same prompt on both sides of the split", "The model has seen another answer to it. Validate on other prompts to know what it can do with new ones."),
    ):  # fmt: skip
        values = store.facts[name]
        rows = held[np.isin(values[held], values[train])]
        if name == "prompt":
            rows = rows[~np.isin(store.facts["identity"][rows], store.facts["identity"][train])]
        if len(rows):
            yield Finding(title, len(rows), words, "warm", _named(store, rows))
    like = _first_alike(len(store), alike)
    rows = held[np.isin(like[held], like[train])]
    rows = rows[~np.isin(store.facts["identity"][rows], store.facts["identity"][train])]
    if len(rows):
        words = "A row with nearly the same words is trained on, so the validation loss will look better than it is."
        yield Finding(
            "Validation rows nearly the same as training rows", len(rows), words, "plain", _named(store, rows)
        )


def _first_alike(rows: int, pairs: np.ndarray) -> np.ndarray:
    """(n,): of each row the first one that is nearly the same, or nearly the same as one that is; itself where none is."""
    first = np.arange(rows)
    first[pairs[:, 1]] = pairs[:, 0]
    while (first[first] != first).any():
        first = first[first]
    return first


def _pairs(store: Store) -> Iterator[Finding]:
    """Whether the better answers are mostly the longer ones, which is what would be learned."""
    own = store.facts[store.facts["kind"] == noted.KINDS.index("pair")]
    if not len(own):
        return
    chosen, other = own["answer_characters"].mean(), own["other_characters"].mean()
    longer = (own["answer_characters"] > own["other_characters"]).mean()
    words = f"Chosen answers have {chosen:,.0f} characters, rejected ones {other:,.0f}; the chosen one is the longer in {longer:.0%} of the pairs."
    if max(chosen, other) > LENGTH_BIAS * max(1.0, min(chosen, other)):
        words += " Preference training may learn the length alone: balance them."
        yield Finding("Length differs between chosen and rejected", 0, words)
    else:
        yield Finding("Lengths of chosen and rejected", 0, words, "plain")


def _labels(store: Store, unused_bad: int) -> Iterator[Finding]:
    labels = store.facts["label"]
    good, bad = int((labels == 1).sum()), int((labels == 0).sum())
    if not good + bad:
        return
    share = good / (good + bad)
    words = f"{good:,} answers are labelled as good, {bad:,} as bad ({share:.0%} good)."
    if unused_bad:
        words += (
            f" Supervised training learns the good ones; the {unused_bad:,} bad ones are kept but not used."
        )
    balanced = LABEL_BALANCE <= share <= 1 - LABEL_BALANCE
    if not balanced:
        words += " For KTO a balance between 1 : 1 and 1 : 4 works best."
    yield Finding("Balance of the labels", 0, words, "plain" if balanced else "warm")


def _scripts(store: Store) -> Iterator[Finding]:
    counts = Counter(dict(enumerate(np.bincount(store.facts["script"], minlength=len(noted.SCRIPTS)))))
    shares = {noted.SCRIPTS[index]: count / len(store) for index, count in counts.most_common() if count}
    shares.pop("none", None)
    if len([share for share in shares.values() if share >= MIXED_SHARE]) > 1:
        yield Finding("Several scripts", 0, _listed(shares), "plain")


def _languages(store: Store) -> Iterator[Finding]:
    """Of a sample spread evenly over the rows, by py3langid."""
    long_enough = np.flatnonzero(
        store.facts["answer_characters"] + store.facts["prompt_characters"] >= LANGUAGE_LEAST_CHARACTERS
    )
    if len(long_enough) < 10:
        return
    from py3langid import classify

    sample = long_enough[
        np.linspace(0, len(long_enough) - 1, min(LANGUAGE_ROWS, len(long_enough)), dtype=int)
    ]
    counts = Counter(classify(row.whole_text()[:LANGUAGE_CHARACTERS])[0] for row in store.rows(sample))
    shares = {language: count / len(sample) for language, count in counts.most_common() if count >= 2}
    if len([share for share in shares.values() if share >= MIXED_SHARE]) > 1:
        words = f"{_listed(shares)} Guessed from {len(sample)} rows; short ones are often taken for another language."
        yield Finding("Several languages", 0, words, "plain")


def _listed(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:6]) + "."
