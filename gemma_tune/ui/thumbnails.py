"""Small pictures of the images of one row, as data URIs, so that no route has to serve files of a store."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

SIDE = 160  # pixels
MOST = 12  # of one row; the others are told by their chips alone


def thumbnails(paths: Sequence[Path]) -> list[str]:
    """In the order of the images; empty where a file is gone."""
    return [_thumbnail(path) for path in paths[:MOST]]


def _thumbnail(path: Path) -> str:
    from PIL import Image

    file = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.draft("RGB", (SIDE, SIDE))  # of JPEG only as much is decoded as is shown
            image.thumbnail((SIDE, SIDE))
            image.convert("RGB").save(file, "JPEG", quality=82)
    except OSError:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
