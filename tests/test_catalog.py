import json

import pytest

from gemma_tune import catalog
from gemma_tune.catalog import MODEL_TYPES, MODELS
from gemma_tune.config import apply_overrides, parse
from gemma_tune.geometry import from_config

BOTH = {
    "Gemma 2": ("2B", "9B", "27B"),
    "Gemma 3": ("270M", "1B", "4B", "12B", "27B"),
    "Gemma 3n": ("E2B", "E4B"),
    "Gemma 4": ("E2B", "E4B", "12B", "26B-A4B", "31B"),
    "MedGemma": ("4B",),
}
PUBLISHED_BILLIONS = {  # of the text model, as the cards and reports round them
    "google/gemma-2-2b-it": 2.61, "google/gemma-2-9b-it": 9.24, "google/gemma-2-27b-it": 27.2,
    "google/gemma-3-270m-it": 0.268, "google/gemma-3-1b-it": 1.0, "google/gemma-3-4b-it": 3.88,
    "google/gemma-3-12b-it": 11.77, "google/gemma-3-27b-it": 27.0, "google/gemma-4-12B-it": 11.9,
    "google/gemma-4-26B-A4B-it": 25.2, "google/gemma-4-31B-it": 30.7,
}  # fmt: skip


def test_the_catalogue_holds_every_model_that_is_promised():
    promised = {(family, size, variant) for family, sizes in BOTH.items() for size in sizes
                for variant in (catalog.BASE, catalog.INSTRUCTION_TUNED)}  # fmt: skip
    promised |= {(family, size, catalog.INSTRUCTION_TUNED) for family, size in
                 (("Pocket Gemma", ""), ("FunctionGemma", "270M"), ("MedGemma", "27B"))}  # fmt: skip
    assert {(card.family, card.size, card.variant) for card in MODELS.values()} == promised
    assert len({card.label for card in MODELS.values()}) == len(MODELS)


def test_ids_are_those_of_the_hub():
    assert {"google/gemma-3-1b-pt", "google/gemma-3-270m", "google/gemma-2-2b", "google/gemma-4-E2B", "google/gemma-3n-E4B-it",
            "google/functiongemma-270m-it", "google/medgemma-27b-text-it"} <= set(MODELS)  # fmt: skip
    for card in MODELS.values():
        assert card.instruction_tuned == (card.id.endswith("-it") or card.id == catalog.POCKET_ID)


def test_each_model_type_can_be_loaded_and_each_gate_has_a_page():
    for card in MODELS.values():
        assert card.model_type in MODEL_TYPES
        assert card.licence_url.startswith("https://")
        assert card.source and card.methods
        if card.gated:
            assert card.page == f"https://huggingface.co/{card.id}"


def test_gemma_4_is_free_and_the_older_ones_are_gated():
    for card in MODELS.values():
        free = card.family in ("Gemma 4", "Pocket Gemma")
        assert card.gated != free and ("Apache-2.0" in card.licence) == free


def test_recommended_settings_are_valid_settings_of_one_effective_batch():
    for card in MODELS.values():
        for name, advice in card.recommended.items():
            train = parse(apply_overrides({}, [f"{one}={value}" for one, value in advice.items()])).train
            rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
            of_pocket = 32 if name == "grpo/lora" else 16
            assert rows == (of_pocket if card.id == catalog.POCKET_ID else 8)


@pytest.mark.parametrize(("model_id", "billions"), PUBLISHED_BILLIONS.items())
def test_counts_are_those_published(model_id, billions):
    assert MODELS[model_id].parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_the_traps_name_what_quantization_leaves():
    assert any("22.8 of its 25.2 billion" in trap for trap in MODELS["google/gemma-4-26B-A4B-it"].traps)
    assert any("per-layer embeddings" in trap for trap in MODELS["google/gemma-3n-E2B-it"].traps)
    assert "qlora" not in MODELS["google/gemma-4-26B-A4B-it"].methods
    assert any("no chat template" in trap for trap in MODELS["google/gemma-3-1b-pt"].traps)


def test_the_pocket_card_tells_what_the_shipped_model_is():
    card = MODELS[catalog.POCKET_ID]
    shipped = json.loads((catalog.POCKET_DIR / "config.json").read_text())
    assert card.geometry == from_config(shipped)
    assert (card.layers, card.geometry.hidden_size, card.vocabulary_tokens, card.context_tokens) == (
        shipped["num_hidden_layers"],
        shipped["hidden_size"],
        shipped["vocab_size"],
        shipped["max_position_embeddings"],
    )
    assert card.bytes_on_disk == (catalog.POCKET_DIR / "model.safetensors").stat().st_size


@pytest.mark.training
@pytest.mark.parametrize("row", catalog._ROWS, ids=lambda row: row.name)
def test_parameter_counts_are_those_of_transformers_own_class(row):
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    values = catalog.config_of(f"google/{row.name}{row.endings[1]}")
    kind = values.pop("model_type")
    text_kind = f"{kind}_text" if MODEL_TYPES[kind] else kind
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[text_kind](**values))
    shape = MODELS[f"google/{row.name}{row.endings[1]}"].geometry
    assert shape.parameters == sum(weights.numel() for weights in model.parameters())
