"""The example data sets: as their script writes them, large enough, and held out for real."""

import csv
import json
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["pocket-json", "pocket-orders", "pocket-polite"]


def rows(name: str, split: str) -> list[dict]:
    path = next((EXAMPLES / name).glob(f"{split}.*"))
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


def question(row: dict) -> str:
    return row.get("prompt") or row.get("input") or row["messages"][0]["content"]


def test_the_script_reproduces_every_file():
    files = runpy.run_path(str(EXAMPLES / "make.py"))["files"]()
    assert len(files) == 6
    for name, content in files.items():
        assert (EXAMPLES / name).read_bytes() == content.encode(), f"run `python examples/make.py`: {name}"


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_rows_and_no_held_out_question_is_trained_on(name):
    train, held_out = rows(name, "train"), rows(name, "held_out")
    assert len(train) >= 300 and len(held_out) >= 60
    asked = [question(row).lower() for row in train + held_out]
    assert len(set(asked)) == len(asked)


def test_every_json_answer_is_json_from_the_sentence():
    for row in rows("pocket-json", "train") + rows("pocket-json", "held_out"):
        ask, reply = (message["content"] for message in row["messages"])
        assert all(str(value) in ask for value in json.loads(reply).values())


def test_every_example_explains_itself():
    for name in NAMES:
        assert "base answers" in (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
