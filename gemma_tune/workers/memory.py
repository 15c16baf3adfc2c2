"""Whether models fit into the memory that is free, told before they are loaded."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import safe_open

from gemma_tune.catalog import MODEL_TYPES
from gemma_tune.errors import ModelError
from gemma_tune.workers import modeling

LANGUAGE_NAMES = re.compile("|".join(modeling.LANGUAGE_PART))
# Bytes per weight of a quantized layer, with nf4's scales at their widest (one float32 for 64 weights).
QUANTIZED_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0}


def bytes_in(folder: Path, dtype: torch.dtype, quantization: str = "", *, images: bool = False) -> float:
    """What the model in a folder takes once loaded, from the headers of its files: the text model, with `images` the whole."""
    linear, other = parameters_in(folder, images=images)
    return linear * QUANTIZED_BYTES.get(quantization, dtype.itemsize) + other * dtype.itemsize


def parameters_in(folder: Path, *, images: bool = False) -> tuple[int, int]:
    """How many numbers stand in linear layers of the text model, and how many elsewhere; the towers only with `images`."""
    multimodal = MODEL_TYPES[modeling.checked_model_type(folder)]
    linear = other = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                of_tower = multimodal and not LANGUAGE_NAMES.match(key)
                if of_tower and not images:
                    continue
                shape = file.get_slice(key).get_shape()
                count = torch.Size(shape).numel()
                if not of_tower and len(shape) == 2 and "embed_tokens" not in key and "lm_head" not in key:
                    linear += count
                else:
                    other += count
    return linear, other


def refuse_too_large(sizes_bytes: list[float]) -> None:
    """Says before loading that models of these sizes will not fit together, with both numbers."""
    needed = sum(sizes_bytes) * 1.1  # a tenth for buffers and the cache of a short conversation
    free, where = free_memory_bytes()
    if needed > free:
        models = "this model" if len(sizes_bytes) == 1 else f"these {len(sizes_bytes)} models"
        raise ModelError.at(
            where, f"{free / 1e9:.1f} GB free",
            f"Holding {models} takes about {needed / 1e9:.1f} GB.",
            "Wait until a running training ends, close other programs, or use a larger machine.",
        )  # fmt: skip


def free_memory_bytes() -> tuple[int, str]:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info(modeling.device())[0], "GPU memory"
    import psutil

    return psutil.virtual_memory().available, "memory"
