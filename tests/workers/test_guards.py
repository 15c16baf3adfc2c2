import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3ForConditionalGeneration, Gemma4TextConfig

from gemma_tune import config
from gemma_tune.errors import ConfigError, ModelError
from gemma_tune.workers import guards, modeling

SHARING = ["gemma3n", "gemma4"]  # the last layers use the keys and values of earlier ones
EVERY_TEXT_MODEL = ["gemma2", "gemma3", "gemma3n", "gemma4", "gemma4_moe", "gemma4_unified"]


def load(request, family: str, **settings):
    return modeling.load_model(request.getfixturevalue(family), torch.float32, **settings)


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(10, 300, shape, generator=torch.Generator().manual_seed(1))


def loss_and_gradient(model, **inputs) -> tuple[float, torch.Tensor]:
    model.train().zero_grad()
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


# ---- tokens ----------------------------------------------------------------------------------------------------------
def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(gemma3):
    model, tokens = modeling.load_model(gemma3, torch.float32), modeling.load_tokenizer(gemma3)
    guards.refuse_foreign_tokenizer(tokens, model)
    tokens.add_tokens(["<image_soft_token>"])  # as Gemma 3's text models ship it
    guards.refuse_foreign_tokenizer(tokens, model)
    tokens.add_tokens(["<another>"])
    with pytest.raises(ModelError, match="<another>"):
        guards.refuse_foreign_tokenizer(tokens, model)


def test_a_tokenizer_with_other_control_tokens_is_refused(gemma3):
    model, tokens = modeling.load_model(gemma3, torch.float32), modeling.load_tokenizer(gemma3)
    model.config.bos_token_id = 5
    with pytest.raises(ModelError, match="bos_token_id"):
        guards.refuse_foreign_tokenizer(tokens, model)


def test_a_token_without_an_embedding_per_layer_is_refused(gemma3n):
    model, tokens = modeling.load_model(gemma3n, torch.float32), modeling.load_tokenizer(gemma3n)
    guards.refuse_foreign_tokenizer(tokens, model)
    model.model.embed_tokens_per_layer = torch.nn.Embedding(len(tokens) - 1, 256)
    with pytest.raises(IndexError):  # what would happen on reading it
        model(input_ids=torch.tensor([[len(tokens) - 1]]))
    with pytest.raises(ModelError, match="beyond the"):
        guards.refuse_foreign_tokenizer(tokens, model)


# ---- number formats --------------------------------------------------------------------------------------------------
def test_a_checkpoint_in_float16_is_loaded_in_another_format_and_that_is_told(gemma3, tmp_path):
    AutoModelForCausalLM.from_pretrained(gemma3, dtype=torch.float16).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.float16  # as Transformers does it
    for dtype in (torch.float32, torch.bfloat16):
        said = []
        assert modeling.load_model(tmp_path, dtype, tell=said.append).dtype == dtype
        assert (
            len(said) == 1
            and "stored in float16" in said[0]
            and str(dtype).endswith(said[0].split()[-1][:-1])
        )
    with pytest.raises(ConfigError, match="overflow in float16"):
        modeling.load_model(gemma3, torch.float16)


def test_activations_that_float16_cannot_hold_are_finite_as_we_load_them(gemma3, tmp_path):
    large = shutil.copytree(gemma3, tmp_path / "large")
    weights = load_file(large / "model.safetensors")
    weights["model.layers.0.post_feedforward_layernorm.weight"] += (
        60_000  # Gemma's real norms reach such values
    )
    half = {name: weight.half() for name, weight in weights.items()}
    save_file(half, large / "model.safetensors", metadata={"format": "pt"})
    ids = random_ids(1, 8)
    with torch.no_grad():
        naive = AutoModelForCausalLM.from_pretrained(large, dtype=torch.float16).eval()
        assert not naive(input_ids=ids).logits.isfinite().all()
        assert modeling.load_model(large, torch.bfloat16)(input_ids=ids).logits.isfinite().all()


# ---- attention -------------------------------------------------------------------------------------------------------
def test_gemma2_runs_with_the_attention_that_soft_caps(request):
    assert load(request, "gemma2").config._attn_implementation == "eager"
    assert load(request, "gemma3").config._attn_implementation == "sdpa"
    assert load(request, "gemma3", attention="eager").config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match="soft-caps its attention scores"):
        load(request, "gemma2", attention="sdpa")


def test_the_soft_cap_changes_what_gemma2_computes(request):
    model = load(request, "gemma2")
    ids = random_ids(1, 32)
    with torch.no_grad():
        capped = model(input_ids=ids).logits
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = 0.01
        assert not torch.allclose(model(input_ids=ids).logits, capped, atol=1e-3)


def test_heads_too_wide_for_flash_attention_are_refused(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(guards.transformers.utils, "is_flash_attn_2_available", lambda: True)
    flash = "flash_attention_2"
    assert guards.widest_head(Gemma4TextConfig()) == 512
    with pytest.raises(ConfigError, match="heads 512 wide"):
        guards.attention_of(Gemma4TextConfig(), flash)
    assert guards.attention_of(Gemma4TextConfig(), "sdpa") == "sdpa"
    for family in ("gemma2", "gemma3", "gemma3n", "gemma4"):  # tiny heads
        assert (
            guards.attention_of(AutoConfig.from_pretrained(request.getfixturevalue(family)), flash) == flash
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU both may run")
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_that_needs_a_gpu_is_refused_without_one(request, attention):
    with pytest.raises(ConfigError, match="needs a GPU"):
        load(request, "gemma3", attention=attention)


# ---- token types, shared keys and values, packing --------------------------------------------------------------------
def test_text_alone_trains_without_token_types_as_the_whole_model_does_with_them(multimodal):
    ids = random_ids(1, 24)
    whole = Gemma3ForConditionalGeneration.from_pretrained(multimodal).train()
    text = modeling.load_model(multimodal, torch.float32)
    loss, _ = loss_and_gradient(text, input_ids=ids)
    types = torch.zeros_like(ids)
    assert loss == whole(input_ids=ids, labels=ids, token_type_ids=types).loss.item()
    types[:, 4:12] = 1  # an image, whose parts read each other
    assert loss != whole(input_ids=ids, labels=ids, token_type_ids=types).loss.item()


@pytest.mark.parametrize("family", SHARING)
def test_shared_keys_and_values_keep_their_gradient_under_checkpointing(request, family):
    model = load(request, family)
    ids = random_ids(2, 40)  # longer than the sliding window
    loss, gradient = loss_and_gradient(model, input_ids=ids)
    assert loss_and_gradient(model, input_ids=ids, use_cache=False)[0] == loss
    model.activation_checkpointing_enable()  # not reentrant, as TRL's trainers have it
    again, recomputed = loss_and_gradient(model, input_ids=ids)
    assert again == loss and torch.equal(recomputed, gradient)


@pytest.mark.parametrize("family", SHARING)
def test_where_checkpointing_would_lose_the_gradient_of_shared_keys_it_is_refused(request, family):
    model = load(request, family)
    ids = random_ids(2, 40)
    loss, gradient = loss_and_gradient(model, input_ids=ids)
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    again, recomputed = loss_and_gradient(model, input_ids=ids)
    assert again == loss and (recomputed - gradient).norm() > 0.05 * gradient.norm(), "nothing shows it"
    devices = {"distributed_type": "deepspeed", "zero_stage": 3, "num_processes": 2}
    values = {"model": {"id": str(request.getfixturevalue(family))}, "devices": devices}
    with pytest.raises(ConfigError, match="loses gradients in this model"):
        guards.refuse_reentrant_checkpointing(config.parse(values), model)
    guards.refuse_reentrant_checkpointing(config.parse(values), load(request, "gemma3"))
    for harmless in ({"train": {"activation_checkpointing": False}}, {"method": {"type": "full"}}):
        guards.refuse_reentrant_checkpointing(config.parse(values | harmless), model)


@pytest.mark.parametrize("family", SHARING)
def test_shared_keys_and_values_are_not_the_layers_own(request, family):
    """What a layer without sharing would compute differs, so the test above can fail."""
    model = load(request, family)
    ids = random_ids(1, 40)
    last_of_its_own = model.model.layers[1].self_attn  # layers 2 and 3 read what 0 and 1 have stored
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        last_of_its_own.store_full_length_kv = False
        with pytest.raises((KeyError, TypeError)):
            model(input_ids=ids, use_cache=False)
        last_of_its_own.store_full_length_kv = True
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)


@pytest.mark.parametrize("family", EVERY_TEXT_MODEL)
def test_documents_in_one_row_read_each_other_unless_their_positions_begin_anew(request, family):
    model = load(request, family)
    one, other, last = random_ids(3, 12)
    starts = torch.arange(12).repeat(2)[None]
    rows = [torch.cat([first, last])[None] for first in (one, other)]
    with torch.no_grad():
        apart = [model(input_ids=row, position_ids=starts, use_cache=False).logits[:, 12:] for row in rows]
        leaking = [model(input_ids=row, use_cache=False).logits[:, 12:] for row in rows]  # as "wrapped" packs
    if family != "gemma4_moe":  # experts are computed over all tokens at once, in another order of sums
        assert torch.equal(*apart)
    torch.testing.assert_close(*apart)
    assert not torch.allclose(*leaking, atol=1e-3)


def test_packing_that_leaks_is_refused(gemma3):
    values = {"model": {"id": str(gemma3)}, "train": {"packing": True}}
    for strategy in ("bfd", "bfd_split"):
        guards.refuse_leaky_packing(
            config.parse(values | {"advanced": {"trainer": {"packing_strategy": strategy}}})
        )
    wrapped = config.parse(values | {"advanced": {"trainer": {"packing_strategy": "wrapped"}}})
    with pytest.raises(ConfigError, match="read each other"):
        modeling.load_start(wrapped, None, gemma3)


# ---- experts ---------------------------------------------------------------------------------------------------------
def test_experts_that_no_adapter_reaches_are_counted_and_told(request):
    mixture, dense = load(request, "gemma4_moe"), load(request, "gemma4")
    assert guards.expert_parameters(mixture) == 4 * 4 * (3 * 64 * 64)  # layers, experts, gate and up and down
    assert "196,608 parameters of the experts stay" in guards.frozen_experts_note(mixture)
    assert guards.frozen_experts_note(dense) == ""
