"""Rows with one-colour pictures for tests: only who sees the picture can name its colour."""

import base64
import io
import json
import random
from pathlib import Path

from data.pictures import data_uri, picture
from PIL import Image

from gemma_tune.data.rows import IMAGE as PLACE

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40)}
__all__ = ["PLACE", "opened", "other_names", "write_pictures"]
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


def other_names(lines: str) -> str:
    """The same rows with other words for the colours."""
    words = dict(zip(COLOURS, ("hat", "boat", "cup", "tree"), strict=True))
    for colour, word in words.items():
        lines = lines.replace(f'"content": "{colour}"', f'"content": "{word}"')
    return lines


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
