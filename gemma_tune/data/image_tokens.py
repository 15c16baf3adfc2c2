"""What a model's processor makes of the place of an image: its tokens, counted from its size, without torch or pixels.

After Transformers' own processors (`processing_gemma3.py`, `processing_gemma4.py`), which a test compares. An image of
Gemma 3 always takes the same number of soft tokens, one of Gemma 4 as many as its resized sides hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gemma_tune.data.rows import Image
from gemma_tune.errors import Fault, ModelError

# kind -> the tokens that begin an image, stand for a part of it, and end it, where the tokenizer does not name them
_MARKS = {
    "gemma3": ("<start_of_image>", "<image_soft_token>", "<end_of_image>"),
    "gemma4": ("<|image>", "<|image|>", "<image|>"),
}
_WHY_NOT = {
    "gemma3n": "Gemma 3n's vision tower needs a library that is not used here (timm).",
    "gemma4_unified": "This Gemma 4 prepares images with a library that is not used here (torchvision).",
}
_WAY_OUT = "Choose Gemma 3 4B or larger or a Gemma 4, or turn data.read_images off."
TEXT_ONLY = Fault("model.id", "", "The rows hold images, and this model reads text only.", _WAY_OUT)
_TAKE_OUT = "Take it out of the text."


@dataclass(frozen=True)
class ImageTokens:
    """How one model writes an image. `count` gives the soft tokens of an image by its size."""

    placeholder: str  # what the chat template writes for an image
    begin: str
    soft: str
    end: str
    around: str  # before and behind
    count: Callable[[Image], int]
    rules: str  # all that the number of tokens depends on

    @property
    def marks(self) -> tuple[str, str, str]:
        return self.begin, self.soft, self.end

    def expanded(self, text: str, images: Sequence[Image]) -> str:
        """A rendered text with the tokens of each image in its place. ModelError where both do not fit together."""
        spelled = next((mark for mark in self.marks if mark != self.placeholder and mark in text), "")
        parts = text.split(self.placeholder)
        if spelled or len(parts) - 1 > len(images):
            raise ModelError.at(
                "the text", spelled or self.placeholder, "The text spells a token that stands for an image.", _TAKE_OUT
            )  # fmt: skip
        if len(parts) - 1 < len(images):
            raise ModelError.at(
                "chat template", None, "This model's chat template has no place for images.", _WAY_OUT
            )
        whole = [parts[0]]
        for image, behind in zip(images, parts[1:], strict=True):
            whole += [self.around, self.begin, self.soft * self.count(image), self.end, self.around, behind]
        return "".join(whole)


def image_tokens(
    config: dict, processor: dict, preprocessor: dict, special_tokens: dict[str, str]
) -> ImageTokens | Fault:
    """How a model writes images, or why it reads none. The first three are JSON files of its folder, empty where missing."""
    own = processor.get("image_processor") or preprocessor or {}
    kind = config.get("model_type") or _kind_of(own, processor)
    if kind not in _MARKS or (config and not config.get("vision_config")):
        return Fault("model.id", kind, _WHY_NOT[kind], _WAY_OUT) if kind in _WHY_NOT else TEXT_ONLY
    if not own:
        rule = "The rows hold images, and the model's folder has no preprocessor_config.json that says how it reads them."
        return Fault("model.id", kind, rule, "Download the whole model again.")
    if own.get("do_pan_and_scan"):
        rule = "The model's image processor cuts images into several (pan and scan), which is not supported."
        return Fault("model.id", kind, rule, "Set do_pan_and_scan to false in its preprocessor_config.json.")
    names = ("boi_token", "image_token", "eoi_token")
    begin, soft, end = (
        special_tokens.get(name) or mark for name, mark in zip(names, _MARKS[kind], strict=True)
    )
    if kind == "gemma3":
        length = int(processor.get("image_seq_length") or 256)
        return ImageTokens(begin, begin, soft, end, "\n\n", lambda image: length, f"gemma3 {length}")
    grid = _Grid(
        own.get("patch_size") or 16, own.get("pooling_kernel_size") or 3, own.get("max_soft_tokens") or 280
    )
    return ImageTokens(soft, begin, soft, end, "", grid.count, f"gemma4 {grid}")


def _kind_of(own: dict, processor: dict) -> str:
    """By the name of its class, where an adapter was saved without the config of its base."""
    name = str(own.get("image_processor_type") or processor.get("processor_class") or "").lower()
    return next((kind for kind in _MARKS if name.startswith((f"{kind}image", f"{kind}processor"))), "")


@dataclass(frozen=True)
class _Grid:
    """Gemma 4 resizes an image to as many whole cells as it may have, its sides in proportion; a cell is a soft token."""

    patch_size: int  # pixels
    pooling_kernel_size: int  # patches along a side of a cell
    max_soft_tokens: int

    def count(self, image: Image) -> int:
        width, height = image["width"], image["height"]
        cell = self.patch_size * self.pooling_kernel_size
        factor = math.sqrt(self.max_soft_tokens * cell**2 / (width * height))
        across, down = math.floor(factor * width / cell), math.floor(factor * height / cell)
        if not across and not down:
            raise self._odd(image)
        if not down:
            down, across = 1, min(width // height, self.max_soft_tokens)
        elif not across:
            across, down = 1, min(height // width, self.max_soft_tokens)
        if across * down > self.max_soft_tokens:
            raise self._odd(image)
        return across * down

    def _odd(self, image: Image) -> ModelError:
        return ModelError.at(
            "the image", f"{image['width']} × {image['height']}", "The model has no way to resize an image of this shape.",
            "Cut it closer to a square.",
        )  # fmt: skip
