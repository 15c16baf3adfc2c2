"""The images beside a question in Watch and Compare, where the run learned from rows with images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from gemma_tune.data import Store, holds_images
from gemma_tune.data.rows import IMAGE
from gemma_tune.errors import GemmaTuneError
from gemma_tune.runs.folder import find_run
from gemma_tune.ui.thumbnails import thumbnails


def build() -> gr.Gallery:
    return gr.Gallery(
        label="Images, before the question",
        visible=False,
        interactive=True,
        type="filepath",
        format="png",  # nothing of them is lost on the way
        file_types=["image"],
        allow_preview=False,
        columns=6,
        height=180,
        object_fit="contain",
        buttons=[],
        elem_id="asked-images",
    )


def are_learned(run_id: str) -> bool:
    """Whether the rows of a run hold images; not known before they are prepared."""
    return holds_images(find_run(run_id).data_dir)


def of_sample(run_id: str, sample: dict[str, Any]) -> list[Image.Image] | None:
    """The pictures of a held-out question."""
    if not sample.get("images"):
        return None
    return [Image.open(path) for path in _paths(run_id, sample["images"])]


@lru_cache(maxsize=64)
def small(run_id: str, names: tuple[str, ...]) -> list[str]:
    """The same as thumbnails, in data URIs; none where the run has no images any more."""
    try:
        return thumbnails(_paths(run_id, names))
    except (GemmaTuneError, OSError):
        return []


def _paths(run_id: str, names: Sequence[str]) -> list[Path]:
    store = Store(find_run(run_id).data_dir)
    return [store.image_path(name) for name in names]


def spoken(prompt: str) -> str:
    """A prompt without the places of its images."""
    return prompt.replace(IMAGE, "").strip()


def placed(prompt: str, images: int) -> str:
    """A prompt with the places of its images: at its beginning, as TRL puts them too."""
    return IMAGE * images + prompt


def files_of(images: list | None) -> list[str]:
    """The paths in a gallery's value."""
    return [path for path, _ in images or []]
