"""Pocket Gemma: a tiny, really trained Gemma 3 that ships with the app, so that everything works offline.

`world` and its siblings write the text, `make` trains the model; importing this package costs nothing.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
