"""A frozen base in nf4 or int8 by bitsandbytes, for QLoRA; and the way back to plain weights.

On a CPU the same code runs as on a GPU, with the limits that are checked here.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import transformers
from torch import nn

from gemma_tune.config import RunConfig
from gemma_tune.errors import ModelError
from gemma_tune.workers import towers

# Left at full width beside the embeddings: a few thousand numbers that decide much (Gemma 3n's AltUp, whose code also
# reads the weights itself, and the router of a mixture of experts). The towers too, through which each image goes once.
KEPT_WHOLE = [
    "lm_head", "modality_router", "prediction_coefs", "correction_coefs", "router.proj", "score",
    *(rf".*\.{name}" for name in (*towers.FROZEN, *towers.PROJECTORS)),  # whole, whatever stands in them
]  # fmt: skip
SMALLEST_INPUT, OUTPUT_MULTIPLE = 64, 32  # of bitsandbytes' nf4 product on a CPU


def quantization_config(config: RunConfig) -> transformers.BitsAndBytesConfig | None:
    """What QLoRA loads the base with; None for the other methods."""
    method = config.method
    if method.type != "qlora":
        return None
    if method.quantization == "int8":
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for each layer
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT_WHOLE)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=method.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute_dtype(),
        llm_int8_skip_modules=KEPT_WHOLE,
    )


def compute_dtype() -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def is_quantized(model: nn.Module) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def make_trainable(model: transformers.PreTrainedModel) -> None:
    """Holds bitsandbytes to what training needs. Raises ModelError where the model's sizes do not suit a CPU."""
    from bitsandbytes.nn import Linear4bit

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}
    if torch.cuda.is_available() or not layers:
        return
    for name, layer in layers.items():
        # Otherwise an evaluation repacks the weights for a product without a backward pass, and from then on the
        # gradient through the base is lost without a word.
        layer.support_avx512bf16_for_cpu = False
        if layer.in_features < SMALLEST_INPUT or layer.out_features % OUTPUT_MULTIPLE:
            raise ModelError.at(
                name, f"{layer.in_features} × {layer.out_features}",
                f"On a CPU nf4 needs layers with at least {SMALLEST_INPUT} inputs and a multiple of {OUTPUT_MULTIPLE} "
                "outputs.",
                "Set method.quantization to int8, or use the method lora.",
            )  # fmt: skip


def merge(base: transformers.PreTrainedModel, adapter: Path) -> transformers.PreTrainedModel:
    """A plain model with the adapter in its weights. `base` is used up.

    A quantized base is brought back to plain weights first, those that the adapter was trained on: merged into 4 bits,
    most of what it learned would be rounded away.
    """
    from peft import PeftModel

    dtype = base.dtype
    if is_quantized(base):
        base = base.dequantize().to(dtype)
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload(safe_merge=True)
    merged.requires_grad_(True)  # PEFT froze them
    if towers.frozen_parts(merged):
        towers.freeze(merged)
    else:
        merged._weight_conversions = None  # saved under the names of a text model
    return merged
