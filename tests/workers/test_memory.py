import pytest
import torch

from gemma_tune import config
from gemma_tune.errors import ModelError
from gemma_tune.workers import memory, modeling

FAMILIES = ["gemma3", "multimodal", "multimodal_gemma3n", "multimodal_gemma4", "gemma4_moe"]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_the_text_model_are_counted_without_loading(request, family):
    folder = request.getfixturevalue(family)
    model = modeling.load_model(folder, torch.float32)
    linear, other = memory.parameters_in(folder)
    scalars = sum(
        name.endswith("layer_scalar") for name, _ in model.named_buffers()
    )  # of Gemma 4, in its file too
    assert linear + other == sum(p.numel() for p in model.parameters()) + scalars
    assert memory.bytes_in(folder, torch.bfloat16) == 2 * (linear + other)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_model_takes_about_what_is_told(request, family, kind):
    folder = request.getfixturevalue(family)
    settings = config.parse(
        {"method": {"type": "qlora", "quantization": kind, "bnb_4bit_use_double_quant": False}}
    )
    model = modeling.load_base(settings, folder)
    told = memory.bytes_in(folder, torch.float32, kind)
    assert told == pytest.approx(held_bytes(model), rel=0.05)
    assert told < 0.85 * memory.bytes_in(folder, torch.float32)


def held_bytes(model) -> int:
    """Of weights and nf4's scales."""
    from bitsandbytes.nn import Params4bit

    scales = [p.quant_state.absmax for p in model.parameters() if isinstance(p, Params4bit)]
    return sum(one.numel() * one.itemsize for one in [*model.parameters(), *scales])


def test_too_little_memory_is_said_with_both_numbers(gemma3, monkeypatch):
    sizes = [memory.bytes_in(gemma3, torch.float32)] * 2
    memory.refuse_too_large(sizes)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: (500_000, "memory"))
    with pytest.raises(ModelError, match="these 2 models takes about"):
        memory.refuse_too_large(sizes)
