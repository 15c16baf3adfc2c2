import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from gemma_tune import config, hub, hub_config
from gemma_tune.catalog import MODEL_TYPES
from gemma_tune.errors import ModelError
from gemma_tune.workers import modeling

IDS = torch.tensor([[2, 300, 301, 302, 303]])
TEXT_CLASSES = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "function_gemma": "Gemma3ForCausalLM",
    "multimodal": "Gemma3ForCausalLM",
    "gemma3n": "Gemma3nForCausalLM",
    "multimodal_gemma3n": "Gemma3nForCausalLM",
    "gemma4": "Gemma4ForCausalLM",
    "gemma4_moe": "Gemma4ForCausalLM",
    "multimodal_gemma4": "Gemma4ForCausalLM",
    "gemma4_unified": "Gemma4UnifiedForCausalLM",
}


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


@pytest.mark.parametrize("family", TEXT_CLASSES)
def test_every_family_loads_as_a_text_model_and_what_is_saved_loads_again(request, tmp_path, family):
    folder, said = request.getfixturevalue(family), []
    text = modeling.load_model(folder, torch.float32, tell=said.append)
    assert (type(text).__name__, said) == (TEXT_CLASSES[family], [])
    text.save_pretrained(tmp_path)
    with torch.no_grad():
        logits = text(input_ids=IDS).logits
        assert torch.equal(modeling.load_model(tmp_path, torch.float32)(input_ids=IDS).logits, logits)
        assert torch.equal(text.eval()(input_ids=IDS, use_cache=False).logits, logits)


@pytest.mark.parametrize("family", ["multimodal", "multimodal_gemma4", "gemma4_unified"])
def test_the_text_part_of_a_multimodal_model_is_the_one_in_the_file(request, caplog, family):
    folder = request.getfixturevalue(family)
    whole = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with caplog.at_level("INFO", "gemma_tune"):
        text = modeling.load_model(folder, torch.float32)
    assert "only the language part" in caplog.text
    with torch.no_grad():
        assert torch.equal(text(input_ids=IDS).logits, whole(input_ids=IDS).logits)


def test_the_text_part_of_gemma3n_is_the_one_in_the_file(gemma3n, multimodal_gemma3n):
    text, part = (modeling.load_model(folder, torch.float32) for folder in (gemma3n, multimodal_gemma3n))
    with torch.no_grad():
        assert torch.equal(text(input_ids=IDS).logits, part(input_ids=IDS).logits)


@pytest.mark.parametrize("family", ["multimodal", "multimodal_gemma4", "gemma4_unified"])
def test_without_the_names_of_the_file_the_weights_would_be_random_and_are_refused(
    request, monkeypatch, family
):
    monkeypatch.setattr(modeling, "LANGUAGE_PART", None)
    with pytest.raises(ModelError, match="would be random"):
        modeling.load_model(request.getfixturevalue(family), torch.float32)


def test_a_reward_model_has_a_new_head_where_transformers_has_the_class(multimodal, gemma4):
    scorer = modeling.load_model(multimodal, torch.float32, scores=True)
    assert scorer(input_ids=IDS).logits.shape == (1, 1)
    with pytest.raises(ModelError, match="no reward model of this architecture"):
        modeling.load_model(gemma4, torch.float32, scores=True)


def test_every_gemma_of_transformers_is_loaded_or_told_why_not():
    assert set(modeling.CLASSES) == set(MODEL_TYPES)
    towers = ("_vision", "_audio")
    for name in CONFIG_MAPPING_NAMES:
        if "gemma" in name and not name.endswith(towers):
            assert name in MODEL_TYPES or any(part in name for part in hub_config.OTHER_GEMMAS), name


# ---- adapters --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gemma3n", "gemma4", "gemma4_moe"])
def test_lora_takes_the_linear_layers_of_a_text_model(request, family):
    model = modeling.load_model(request.getfixturevalue(family), torch.float32)
    adapted = adapted_layers(model, "all-linear")
    assert {name.rpartition(".")[2] for name in adapted} == set(modeling.LAYERS["all-linear"])
    assert not any("expert" in name or "altup" in name for name in adapted)
    attention = adapted_layers(
        modeling.load_model(request.getfixturevalue(family), torch.float32), "attention"
    )
    assert attention == {name for name in adapted if name.endswith(tuple(modeling.ATTENTION_LAYERS))}


@pytest.mark.parametrize("family", ["multimodal", "multimodal_gemma4"])
def test_lora_leaves_the_vision_tower_of_a_multimodal_model_alone(request, family):
    whole = AutoModelForImageTextToText.from_pretrained(request.getfixturevalue(family))
    text = modeling.load_model(request.getfixturevalue(family), torch.float32)
    assert modeling.lora_targets(text) == modeling.LAYERS["all-linear"]
    adapted = adapted_layers(whole, "all-linear")
    assert all("language_model" in name for name in adapted)
    assert len(adapted) == len(adapted_layers(text, "all-linear"))
    names = modeling.LAYERS["all-linear"]  # what goes wrong with the names alone
    whole = AutoModelForImageTextToText.from_pretrained(request.getfixturevalue(family))
    if family == "multimodal_gemma4":
        with pytest.raises(ValueError, match="Gemma4ClippableLinear"):
            get_peft_model(whole, LoraConfig(target_modules=names))
    else:
        naive = get_peft_model(whole, LoraConfig(target_modules=names))
        assert any("vision" in name for name in lora_layers(naive))


def adapted_layers(model, target_modules: str) -> set[str]:
    return lora_layers(
        get_peft_model(model, LoraConfig(target_modules=modeling.lora_targets(model, target_modules)))
    )


def lora_layers(model) -> set[str]:
    return {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}


def test_a_run_that_goes_on_trains_the_adapter_of_the_earlier_one(gemma3, tmp_path):
    config, facts = go_on(gemma3, tmp_path, "lora")
    said = []
    model = modeling.load_start(config, facts, gemma3, said.append)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(".default." in name for name in trained)
    assert "trained further" in said[0]
    base = modeling.load_model(gemma3, torch.float32)
    adapter = modeling.load_adapter(modeling.load_model(gemma3, torch.float32), tmp_path)
    with torch.no_grad():
        start = adapter(input_ids=IDS).logits
        assert torch.equal(model(input_ids=IDS).logits, start)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)  # as training changes it
        tuned = model(input_ids=IDS).logits
        with modeling.as_started(model, facts):
            assert torch.equal(model(input_ids=IDS).logits, start)
        assert torch.equal(model(input_ids=IDS).logits, tuned)
        with modeling.as_started(model, replace(facts, adapter=None)):
            assert torch.equal(model(input_ids=IDS).logits, base(input_ids=IDS).logits)


def test_a_full_run_that_goes_on_has_the_adapter_in_its_weights(gemma3, tmp_path):
    config, facts = go_on(gemma3, tmp_path, "full")
    model = modeling.load_start(config, facts, gemma3)
    adapter = modeling.load_adapter(modeling.load_model(gemma3, torch.float32), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, adapter(input_ids=IDS).logits)
    assert not hasattr(model, "peft_config") and all(p.requires_grad for p in model.parameters())


def test_an_adapter_of_another_task_is_not_gone_on_from(gemma3, tmp_path):
    for task, objective, rule in (
        ("SEQ_CLS", "sft", "gives scores"),
        ("CAUSAL_LM", "reward", "that answers"),
    ):
        save_adapter(gemma3, tmp_path / task)
        _edit(tmp_path / task / "adapter_config.json", task_type=task)
        values = {"model": {"id": str(tmp_path / task)}, "objective": {"type": objective}}
        facts = hub.inspect_model(str(tmp_path / task))
        with pytest.raises(ModelError, match=rule):
            modeling.load_start(config.parse(values), facts, gemma3)


def go_on(base, folder, method: str):
    """The settings and facts of a run that goes on from an adapter, which is made in `folder`."""
    save_adapter(base, folder)
    facts = hub.inspect_model(str(folder))
    return config.parse({"model": {"id": str(folder)}, "method": {"type": method}}), facts


def save_adapter(base, folder, **settings) -> None:
    model = modeling.load_model(base, torch.float32)
    settings = {"r": 4, "target_modules": modeling.lora_targets(model), "task_type": "CAUSAL_LM"} | settings
    adapter = get_peft_model(model, LoraConfig(**settings))
    torch.manual_seed(0)
    for name, parameter in adapter.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter.save_pretrained(folder)


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


def test_an_adapter_of_another_shape_is_refused(gemma3, tmp_path):
    adapter = get_peft_model(
        modeling.load_model(gemma3, torch.float32), LoraConfig(target_modules=["q_proj"])
    )
    adapter.save_pretrained(tmp_path)
    _edit(tmp_path / "adapter_config.json", target_modules=["q_proj", "v_proj"])
    with pytest.raises(ModelError, match="does not fit"):
        modeling.load_adapter(modeling.load_model(gemma3, torch.float32), tmp_path)


def _edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
