"""Rows with one-colour pictures for tests: only who sees the picture can name its colour."""

import json
import random
from pathlib import Path

from data.pictures import data_uri, picture

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40)}
QUESTIONS = ["What colour is this?", "Name the colour.", "Which colour do you see?"]


def write_pictures(path: Path, rows: int = 64, size: tuple[int, int] = (28, 28)) -> Path:
    """As messages JSONL; no two pictures are alike, and each shade is near its colour."""
    dice = random.Random(0)
    lines = []
    for number in range(rows):
        name = list(COLOURS)[number % len(COLOURS)]
        shade = tuple(min(255, max(0, value + dice.randint(-25, 25))) for value in COLOURS[name])
        question = [{"type": "image", "image": data_uri(picture(size, shade))},
                    {"type": "text", "text": dice.choice(QUESTIONS)}]  # fmt: skip
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": name}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path.write_text("".join(lines))
    return path
