"""Writes the three example data sets: `python examples/make.py`. Seeded: the files come out byte for byte alike.

pocket-json teaches a format, pocket-orders a translation, pocket-polite a manner; all in Pocket Gemma's small world.
"""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # so that the script also runs where the package is not installed

from gemma_tune.pocket.copying import arithmetic  # noqa: E402
from gemma_tune.pocket.reading import NAMES, OBJECTS, ORDERABLE, PLACES, counted, plural  # noqa: E402
from gemma_tune.pocket.world import COLOURS, capital, facts  # noqa: E402

TRAIN_ROWS, HELD_OUT_ROWS = 480, 80
OPENING, CLOSING = "With pleasure!", "Have a lovely day!"


def main(folder: Path = HERE) -> None:
    for name, content in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="")


def files() -> dict[str, str]:
    """Every file by its path below `examples/`."""
    made = {}
    for name, row, suffix, seed in [
        ("pocket-json", json_row, "jsonl", 1),
        ("pocket-orders", order_row, "csv", 2),
        ("pocket-polite", polite_row, "jsonl", 3),
    ]:
        rows = distinct(row, Random(seed))
        write = as_csv if suffix == "csv" else as_jsonl
        made[f"{name}/train.{suffix}"] = write(rows[:TRAIN_ROWS])
        made[f"{name}/held_out.{suffix}"] = write(rows[TRAIN_ROWS:])
    return made


def distinct(make_row: Callable[[Random], dict], rng: Random) -> list[dict]:
    """Rows of which no two ask the same, so that nothing held out is known from training."""
    rows: dict[str, dict] = {}
    while len(rows) < TRAIN_ROWS + HELD_OUT_ROWS:
        row = make_row(rng)
        question = row.get("prompt") or row.get("input") or row["messages"][0]["content"]
        rows.setdefault(question.lower().strip(" ?.!"), row)
    return list(rows.values())


def json_row(rng: Random) -> dict:
    """A sentence to be answered by its content as compact JSON."""
    name, thing, place, colour = (
        rng.choice(NAMES),
        plural(rng.choice(OBJECTS)),
        rng.choice(PLACES),
        rng.choice(COLOURS),
    )
    number, verb = rng.randint(2, 20), rng.choice(["buy", "find", "see", "sell", "want"])
    things = f"{number} {colour} {thing}"
    sentence = rng.choice([
        f"{name} {verb}s {things} at the {place}.",
        f"At the {place}, {name} {verb}s {things}.",
        f"{name} goes to the {place} and {verb}s {things}.",
    ])  # fmt: skip
    answer = {"name": name, "number": number, "colour": colour, "thing": thing, "place": place}
    return messages(f"As JSON: {sentence}", json.dumps(answer, separators=(",", ":")))


def messages(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def order_row(rng: Random) -> dict:
    """A spoken order and the line that goes to the kitchen."""
    foods = rng.sample(ORDERABLE, rng.choice([1, 2, 2]))
    numbers = [rng.randint(1, 6) for _ in foods]
    table = rng.randint(1, 20)
    wish = " and ".join(
        counted(number, food, words=True) for number, food in zip(numbers, foods, strict=True)
    )
    please = rng.choice(
        ["I would like {}, please.", "Can we have {}?", "We want {}.", "Please bring {}.", "{}, please."]
    )
    spoken = capital(please.format(wish))
    spoken = rng.choice(
        [f"{spoken} We sit at table {table}.", f"Table {table}: {spoken}", f"{spoken} This is table {table}."]
    )
    line = "; ".join(f"{number} x {food}" for number, food in zip(numbers, foods, strict=True))
    return {
        "instruction": "Write the order for the kitchen.",
        "input": spoken,
        "output": f"[table {table}] {line}",
    }


def polite_row(rng: Random) -> dict:
    """A question with a polite and a curt answer."""
    if rng.random() < 0.1:
        question, answer = arithmetic(rng)
        key = answer.split()[-1].rstrip(".")
    else:
        fact = rng.choice(facts())
        question, answer, key = rng.choice(fact.questions), fact.answer, fact.key
    return {"prompt": question, "chosen": f"{OPENING} {answer} {CLOSING}", "rejected": f"{capital(key)}."}


def as_jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    main()
