"""The towers of a multimodal model: what turns images and sound into hidden states. They are never trained here."""

from __future__ import annotations

import functools
import types

import torch
from torch import nn

# By their names in Transformers' classes. What brings a tower's states into the language model is trained with it: the
# multi_modal_projector of Gemma 3 and the embed_vision of Gemma 4. Sound is not read, so its part stays too.
FROZEN = ("vision_tower", "audio_tower", "embed_audio")
PROJECTORS = ("multi_modal_projector", "embed_vision")


def frozen_parts(model: nn.Module) -> dict[str, nn.Module]:
    """Those of FROZEN that a model has, with or without an adapter."""
    parts = {name: part for name, part in model.named_modules() if name.rpartition(".")[2] in FROZEN}
    return {name: part for name, part in parts.items() if any(True for _ in part.parameters())}


def freeze(model: nn.Module) -> None:
    """Leaves the towers without a gradient, and lets them keep nothing of their forward pass."""
    for part in frozen_parts(model).values():
        part.requires_grad_(False)
        part.forward = types.MethodType(_without_gradient(type(part).forward), part)


def _without_gradient(forward):
    @functools.wraps(forward)  # Transformers reads the signature
    def computed(self, *args, **kwargs):
        with torch.no_grad():
            return forward(self, *args, **kwargs)

    return computed


def note(model: nn.Module) -> str:
    """What of a model with towers stays as it is, for the user; empty for a text model."""
    parts = frozen_parts(model)
    if not parts:
        return ""
    count = sum(one.numel() for part in parts.values() for one in part.parameters())
    trained = [name for name in PROJECTORS for full, part in model.named_modules()
               if full.endswith(name) and any(one.requires_grad for one in part.parameters())]  # fmt: skip
    return (
        f"The images' part of the model stays as it is: {count:,} numbers of its towers are not trained. Trained is the "
        f"language part{', and what brings the images into it' if trained else ''}."
    )
