"""Images on their way into a model: opened, brought into its form, laid beside the ids of a batch.

The places of an image among the ids are made with the ids (`data.rendering`); here come the pixels. Transformers' own
image processors do it, in their form for Pillow. Shapes: B rows of T ids, padded; P images of the whole batch.
"""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoImageProcessor, BatchFeature, PreTrainedModel
from trl.trainer.utils import pad

from gemma_tune.data import images as data_images
from gemma_tune.data.rendering import NOT_LEARNED
from gemma_tune.data.rows import RowFault
from gemma_tune.data.store import Store
from gemma_tune.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from PIL.Image import Image

TOKEN_TYPES = {
    "gemma3": "token_type_ids",
    "gemma4": "mm_token_type_ids",
}  # the model's name for them, by model_type
PIXELS = ("pixel_values", "image_position_ids")  # of what the processors give, all that the models take
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class ImageReader:
    """Brings images into the form that one model reads."""

    processor: object
    image_token_id: int
    token_types: str
    folder: Path  # of the base, where the processor's configuration lies

    @classmethod
    def of(cls, model: PreTrainedModel, folder: Path) -> ImageReader:
        """`folder`: of the base. Raises ModelError."""
        config = model.config
        try:
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError.at(
                str(folder), str(error), "Its image processor cannot be read.", "Download the model again."
            ) from None
        return cls(processor, config.image_token_id, TOKEN_TYPES[config.model_type], folder)

    def inputs(self, input_ids: torch.Tensor, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        """What the model takes beside ids (B, T), the images in the order of their places in them; on the ids' device."""
        kinds = (input_ids == self.image_token_id).long()
        found = {self.token_types: kinds}
        if images:
            pixels: BatchFeature = self.processor(images=list(images), return_tensors="pt")
            found |= {name: pixels[name] for name in PIXELS if name in pixels}
        return {name: one.to(input_ids.device) for name, one in found.items()}

    def save(self, folder: Path) -> None:
        """Puts how images are read beside a model that was tuned with them."""
        for path in (self.folder / name for name in PROCESSOR_FILES):
            if path.is_file():
                shutil.copy(path, folder / path.name)


@dataclass(frozen=True)
class StoredImages:
    """The images of a run's store, read by one model."""

    reader: ImageReader
    store: Store

    def beside(self, input_ids: torch.Tensor, files: Iterable[str]) -> dict[str, torch.Tensor]:
        """As `ImageReader.inputs`, of images by the names of their files."""
        return self.reader.inputs(input_ids, [opened(self.store.image_path(name)) for name in files])


@dataclass(frozen=True)
class Collator:
    """Rows of `input_ids`, `labels` and `image_files` as one padded batch, as TRL's collator makes it of its own rows."""

    images: StoredImages
    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        input_ids = self._padded(ids, self.pad_token_id)
        return {
            "input_ids": input_ids,  # the first: Transformers counts the rows by it
            "attention_mask": self._padded([torch.ones_like(one) for one in ids], 0),
            "labels": self._padded([torch.tensor(row["labels"]) for row in rows], NOT_LEARNED),
        } | self.images.beside(input_ids, [name for row in rows for name in row["image_files"]])

    def _padded(self, rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad(rows, padding_value=value, pad_to_multiple_of=self.pad_to_multiple_of)


def question_images(packed: list[str]) -> tuple[list[dict], list[Image]]:
    """(as rows name them, their pictures) of images in base64, kept as those of rows are. Raises ConfigError."""
    with tempfile.TemporaryDirectory(prefix="gemma-tune-question-") as folder:
        keeps = data_images.Images(folder=Path(folder))
        try:
            images = [keeps.keep(base64.b64decode(one), f"image {at}") for at, one in enumerate(packed, 1)]
        except RowFault as fault:
            raise ConfigError.at(fault.field, fault.value, fault.rule, fault.way_out) from None
        return images, [opened(Path(folder) / image["file"]) for image in images]


def opened(path: Path) -> Image:
    """The picture as it is looked at: in colours, with nothing left to read."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")
