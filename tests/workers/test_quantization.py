import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, PeftModel, get_peft_model

from gemma_tune import config
from gemma_tune.errors import ModelError
from gemma_tune.workers import guards, modeling, quantization

from . import tiny

FAMILIES = ["gemma2", "gemma3", "gemma3n", "gemma4", "gemma4_moe"]
IDS = torch.randint(10, 300, (2, 24), generator=torch.Generator().manual_seed(1))


def qlora(**method):
    return config.parse({"method": {"type": "qlora"} | method})


def adapted(base, seed: int = 0):
    """With an adapter that changes what the model says."""
    targets = modeling.lora_targets(base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def loss_and_gradient(model) -> tuple[float, torch.Tensor]:
    model.train().zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantized_base_trains_an_adapter_before_and_after_an_evaluation(request, family, kind):
    base = modeling.load_base(qlora(quantization=kind), request.getfixturevalue(family))
    layers = [type(layer) for layer in base.modules() if isinstance(layer, Linear4bit | Linear8bitLt)]
    assert set(layers) == {Linear4bit if kind == "nf4" else Linear8bitLt} and quantization.is_quantized(base)
    model = adapted(base)
    loss, gradient = loss_and_gradient(model)
    assert gradient.isfinite().all() and gradient.any()
    logits(model)
    again, after = loss_and_gradient(model)
    assert again == loss and torch.equal(after, gradient)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a fault of bitsandbytes on CPUs")
def test_without_the_mending_an_evaluation_takes_gradients_away(gemma3, monkeypatch):
    monkeypatch.setattr(quantization, "make_trainable", lambda model: None)
    base = modeling.load_base(qlora(), gemma3)
    if not next(
        layer for layer in base.modules() if isinstance(layer, Linear4bit)
    ).support_avx512bf16_for_cpu:
        pytest.skip("This CPU has no AVX512-BF16, and bitsandbytes takes another way.")
    model = adapted(base)
    _, gradient = loss_and_gradient(model)
    logits(model)
    _, after = loss_and_gradient(model)
    assert (after - gradient).norm() > 0.1 * gradient.norm()


@pytest.mark.parametrize("family", ["gemma3n", "gemma4_moe"])
def test_small_layers_that_decide_much_stay_whole(request, family):
    base = modeling.load_base(qlora(), request.getfixturevalue(family))
    linear = {name: type(layer) for name, layer in base.named_modules() if isinstance(layer, torch.nn.Linear)}
    whole = {name for name, kind in linear.items() if kind is torch.nn.Linear}
    assert whole and all(name.endswith(tuple(quantization.KEPT_WHOLE)) for name in whole)
    assert any("altup" in name or "router" in name for name in whole)


def test_double_quantization_and_the_number_format_of_the_products_are_as_asked():
    one, two = (quantization.quantization_config(qlora(bnb_4bit_use_double_quant=on)) for on in (False, True))
    assert (one.bnb_4bit_use_double_quant, two.bnb_4bit_use_double_quant) == (False, True)
    assert one.bnb_4bit_compute_dtype == quantization.compute_dtype()
    assert quantization.quantization_config(config.parse({})) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a limit of bitsandbytes on CPUs")
def test_sizes_that_bitsandbytes_cannot_multiply_are_refused_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(tiny.SHAPE, "head_dim", 24)
    folder = tiny.save_gemma3(tmp_path)
    with pytest.raises(ModelError, match=r"at least 64 inputs.*64 × 48.*int8"):
        modeling.load_base(qlora(), folder)
    modeling.load_base(qlora(quantization="int8"), folder)


def test_experts_that_are_not_quantized_are_counted_and_told(gemma4_moe, gemma4):
    said = []
    model = modeling.load_base(qlora(), gemma4_moe, said.append)
    counts = guards.unquantized_parameters(model)
    assert counts["experts"] == guards.expert_parameters(model) == 196_608
    assert counts["embeddings"] == model.get_input_embeddings().weight.numel()
    assert len(said) == 1 and "does not quantize experts: 196,608" in said[0]
    modeling.load_base(qlora(), gemma4, said.append)
    assert len(said) == 1


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_a_merge_says_what_the_adapter_said_on_its_quantized_base(request, tmp_path, family):
    folder = request.getfixturevalue(family)
    model = adapted(modeling.load_base(qlora(), folder))
    model.save_pretrained(tmp_path / "adapter")
    tuned, base = logits(model), logits(modeling.load_base(qlora(), folder))
    merged = quantization.merge(modeling.load_base(qlora(), folder), tmp_path / "adapter")
    learned = (tuned - base).norm()
    assert (logits(merged) - tuned).norm() < 0.1 * learned
    merged.save_pretrained(tmp_path / "merged")
    again = modeling.load_model(tmp_path / "merged", torch.float32)
    assert not quantization.is_quantized(again) and torch.equal(logits(again), logits(merged))
    rounded = PeftModel.from_pretrained(
        modeling.load_base(qlora(), folder), tmp_path / "adapter"
    ).merge_and_unload()
    assert (logits(rounded) - tuned).norm() > 0.2 * learned, "what a merge into 4 bits destroys"
