"""Exact work on words, symbols and numbers: repeat, wrap, join, pick, count, add.

Every task takes a `random.Random` and returns (user text, assistant text). Braces and quotes get practice
here, so that a structured answer is a small step for fine-tuning; the model is never shown JSON.
"""

from random import Random

from .reading import NAMES, NUMBER_WORDS, OBJECTS, ORDERABLE, PLACES, Turn, plural
from .world import COLOURS, a, capital

WRAPPINGS = {
    "quotes": '"{}"', "square brackets": "[{}]", "curly brackets": "{{{}}}", "round brackets": "({})",
    "stars": "*{}*", "angle brackets": "<{}>", "single quotes": "'{}'",
}  # fmt: skip
SEPARATORS = {
    "a comma": ", ", "a dash": "-", "a colon": ":", "a semicolon": "; ", "a slash": "/", "a plus": " + ",
    "a bar": " | ", "an equals sign": "=", "an arrow": " -> ", "an underscore": "_", "the word and": " and ",
    "the letter x": " x ", "a hash": "#", "a dot": ".",
}  # fmt: skip


def copying(rng: Random) -> Turn:
    """Repeat, wrap, join, pick: exact work on words and symbols."""
    return rng.choice(
        [_repeat, _wrap, _wrap, _join, _join, _bullets, _pick, _number_word, _singular, _pairs, _pairs]
    )(rng)


def _words(rng: Random, low: int, high: int) -> list[str]:
    pool = rng.choice(
        [
            NAMES,
            OBJECTS,
            COLOURS,
            PLACES,
            ORDERABLE,
            NUMBER_WORDS,
            [str(n) for n in range(100)],
            NAMES + OBJECTS + COLOURS,
        ]
    )
    return rng.sample(pool, rng.randint(low, high))


def _repeat(rng: Random) -> Turn:
    words = _words(rng, 1, 5) + rng.choices(
        list("!?.,:;-+*/=#&%$@_|<>[](){}\"'~^\\`"), k=rng.choice([0, 0, 1, 2])
    )
    rng.shuffle(words)
    text = rng.choice([" ", " ", ""]).join(words)
    return rng.choice(["Repeat: {}", "Say this: {}", "Write this again: {}", "Copy: {}"]).format(text), text


def _wrap(rng: Random) -> Turn:
    word, kind = rng.choice(_words(rng, 1, 1)), rng.choice(list(WRAPPINGS))
    words = " ".join([word, *rng.sample(OBJECTS, rng.choice([0, 0, 1]))])
    return rng.choice(["Put {} in {}.", "Write {} in {}.", "Put this in {1}: {0}"]).format(
        words, kind
    ), WRAPPINGS[kind].format(words)


def _join(rng: Random) -> Turn:
    words, kind = _words(rng, 2, 4), rng.choice(list(SEPARATORS))
    ask = rng.choice(
        [
            "Join these words with {1}: {0}",
            "Write {0} with {1} between the words.",
            "Put {1} between these: {0}",
        ]
    )
    return ask.format(rng.choice([" ", ", "]).join(words), kind), SEPARATORS[kind].join(words)


def _pairs(rng: Random) -> Turn:
    """Key and value pairs, the germ of every structured answer."""
    values = {
        "name": rng.choice(NAMES),
        "colour": rng.choice(COLOURS),
        "thing": rng.choice(OBJECTS),
        "place": rng.choice(PLACES),
        "number": str(rng.randint(1, 99)),
    }
    keys = rng.sample(list(values), rng.randint(1, 3))
    text = " and ".join(f"the {key} is {values[key]}" for key in keys)
    style, pattern, between = rng.choice([("lines", "{}: {}", "\n"), ("equals signs", "{}={}", " "), ("brackets", "[{}: {}]", " "), ("quotes", '"{}": "{}"', ", "), ("arrows", "{} -> {}", "; ")])  # fmt: skip
    return f"Write with {style}: {text}.", between.join(pattern.format(key, values[key]) for key in keys)


def _bullets(rng: Random) -> Turn:
    words = _words(rng, 2, 4)
    kind, marks = rng.choice(
        [("numbers", [f"{i}. " for i in range(1, 5)]), ("dashes", ["- "] * 4), ("stars", ["* "] * 4)]
    )
    return f"Write a list with {kind}: {', '.join(words)}", "\n".join(
        mark + word for mark, word in zip(marks, words, strict=False)
    )


def _pick(rng: Random) -> Turn:
    words = _words(rng, 2, 5)
    place, index = rng.choice([("first", 0), ("last", -1), ("second", 1)])
    return f"What is the {place} word? {' '.join(words)}", words[index]


def _number_word(rng: Random) -> Turn:
    number = rng.randrange(21)
    word = NUMBER_WORDS[number]
    return rng.choice([
        (f"Write {word} as a number.", str(number)), (f"Which number is {word}?", f"{capital(word)} is {number}."),
        (f"Write {number} as a word.", word), (f"What number comes after {number}?", f"{number + 1} comes after {number}."),
    ])  # fmt: skip


def _singular(rng: Random) -> Turn:
    noun = rng.choice(OBJECTS + ORDERABLE)
    return rng.choice([
        (f"What is one of many {plural(noun)}?", capital(a(noun)) + "."), (f"Write the plural of {noun}.", plural(noun)),
        (f"Write the singular of {plural(noun)}.", noun), (f"I have one {noun}. Now I have two.", f"You have two {plural(noun)}."),
    ])  # fmt: skip


def arithmetic(rng: Random) -> Turn:
    """Additions and subtractions whose numbers stay between 0 and 20."""
    total = rng.randint(0, 20)
    y = rng.randint(0, total)
    x = total - y
    if rng.random() < 0.55:
        asked = [
            "What is {} plus {}?",
            "What is {} + {}?",
            "{} + {} = ?",
            "Add {} and {}.",
            "How much is {} plus {}?",
            "Calculate {} + {}.",
        ]
        return rng.choice(asked).format(x, y), f"{x} plus {y} is {total}."
    asked = [
        "What is {} minus {}?",
        "What is {} - {}?",
        "{} - {} = ?",
        "How much is {} minus {}?",
        "Calculate {} - {}.",
    ]
    return rng.choice(asked).format(total, y), f"{total} minus {y} is {x}."
