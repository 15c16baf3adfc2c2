import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

from gemma_tune import hub
from gemma_tune.errors import ModelError
from gemma_tune.workers import modeling

IDS = torch.tensor([[2, 300, 301, 302, 303]])


def test_a_model_loads_in_the_type_that_is_asked_for(gemma3):
    assert modeling.load_model(gemma3, torch.bfloat16).dtype == torch.bfloat16
    assert not modeling.load_model(gemma3, torch.float32).training


def test_missing_weights_are_refused(gemma3, tmp_path):
    broken = shutil.copytree(gemma3, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    AutoModelForCausalLM.from_pretrained(broken)  # Transformers itself says nothing
    with pytest.raises(ModelError, match=r"lacks 1 weights .*layers\.1\.mlp\.up_proj"):
        modeling.load_model(broken, torch.float32)


def test_the_text_part_of_a_multimodal_model_is_the_one_in_the_file(multimodal):
    whole = Gemma3ForConditionalGeneration.from_pretrained(multimodal).eval()
    text = modeling.load_model(multimodal, torch.float32)
    assert type(text).__name__ == "Gemma3ForCausalLM"
    with torch.no_grad():
        assert torch.equal(text(input_ids=IDS).logits, whole(input_ids=IDS).logits)


def test_a_text_part_that_is_saved_loads_again(multimodal, tmp_path):
    text = modeling.load_model(multimodal, torch.float32)
    text.save_pretrained(tmp_path)
    again = modeling.load_model(tmp_path, torch.float32)
    with torch.no_grad():
        assert torch.equal(text(input_ids=IDS).logits, again(input_ids=IDS).logits)


def test_gemma2_runs_with_eager_attention(gemma2, monkeypatch):
    assert modeling.load_model(gemma2, torch.float32).config._attn_implementation == "eager"
    monkeypatch.setattr(modeling, "attention_of", lambda model_type: "sdpa")
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        modeling.load_model(gemma2, torch.float32)


def test_another_model_type_never_reaches_transformers(gemma3, tmp_path, monkeypatch):
    foreign = shutil.copytree(gemma3, tmp_path / "foreign")
    _edit(foreign / "config.json", model_type="llama")
    monkeypatch.setattr(modeling.transformers.AutoConfig, "from_pretrained", pytest.fail)
    with pytest.raises(ModelError, match="llama"):
        modeling.load_model(foreign, torch.float32)


def test_a_config_that_names_code_is_refused_before_loading(gemma3, tmp_path):
    foreign = shutil.copytree(gemma3, tmp_path / "foreign")
    _edit(foreign / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(ModelError, match="auto_map"):
        hub.inspect_model(str(foreign))


def test_pickled_weights_are_not_read(gemma3, tmp_path):
    pickled = shutil.copytree(gemma3, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        modeling.load_model(pickled, torch.float32)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(gemma3):
    model, tokens = modeling.load_model(gemma3, torch.float32), modeling.load_tokenizer(gemma3)
    modeling.refuse_foreign_tokenizer(tokens, model)
    tokens.add_tokens(["<image_soft_token>"])  # as Gemma 3's text models ship it
    modeling.refuse_foreign_tokenizer(tokens, model)
    tokens.add_tokens(["<another>"])
    with pytest.raises(ModelError, match="<another>"):
        modeling.refuse_foreign_tokenizer(tokens, model)


def test_a_tokenizer_with_other_control_tokens_is_refused(gemma3):
    model, tokens = modeling.load_model(gemma3, torch.float32), modeling.load_tokenizer(gemma3)
    model.config.bos_token_id = 5
    with pytest.raises(ModelError, match="bos_token_id"):
        modeling.refuse_foreign_tokenizer(tokens, model)


def test_parameters_are_counted_without_loading(gemma3, multimodal):
    model = modeling.load_model(gemma3, torch.float32)
    assert modeling.parameters_in(gemma3) == sum(p.numel() for p in model.parameters())
    text = modeling.load_model(multimodal, torch.float32)
    assert modeling.parameters_in(multimodal) == sum(p.numel() for p in text.parameters())


def test_too_little_memory_is_said_with_both_numbers(gemma3, monkeypatch):
    modeling.refuse_too_large([gemma3, gemma3], torch.float32)
    monkeypatch.setattr(modeling, "free_memory_bytes", lambda: (500_000, "memory"))
    with pytest.raises(ModelError, match="these 2 models takes about"):
        modeling.refuse_too_large([gemma3, gemma3], torch.float32)


def test_an_adapter_of_another_shape_is_refused(gemma3, tmp_path):
    from peft import LoraConfig, get_peft_model

    adapter = get_peft_model(
        modeling.load_model(gemma3, torch.float32), LoraConfig(target_modules=["q_proj"])
    )
    adapter.save_pretrained(tmp_path)
    _edit(tmp_path / "adapter_config.json", target_modules=["q_proj", "v_proj"])
    with pytest.raises(ModelError, match="does not fit"):
        modeling.load_adapter(modeling.load_model(gemma3, torch.float32), tmp_path)


def _edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
