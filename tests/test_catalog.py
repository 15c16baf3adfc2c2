import json

import pytest

from gemma_tune import catalog
from gemma_tune.catalog import MODEL_TYPES, MODELS
from gemma_tune.config import apply_overrides, parse


def test_the_catalogue_holds_every_model_that_is_promised():
    labels = {card.label for card in MODELS.values()}
    assert labels == {
        "Pocket Gemma",
        *(f"Gemma 2 {size}" for size in ("2B", "9B", "27B")),
        *(f"Gemma 3 {size}" for size in ("270M", "1B", "4B", "12B", "27B")),
    }


def test_each_model_type_can_be_loaded_and_each_gate_has_a_page():
    for card in MODELS.values():
        assert card.model_type in MODEL_TYPES
        assert card.licence_url.startswith("https://")
        if card.gated:
            assert card.page == f"https://huggingface.co/{card.id}"


def test_recommended_settings_are_valid_settings():
    for card in MODELS.values():
        for advice in card.recommended.values():
            parse(apply_overrides({}, [f"{name}={value}" for name, value in advice.items()]))


def test_the_pocket_card_tells_what_the_shipped_model_is():
    card = MODELS[catalog.POCKET_ID]
    shipped = json.loads((catalog.POCKET_DIR / "config.json").read_text())
    assert (card.layers, card.hidden_size, card.vocabulary_tokens, card.context_tokens) == (
        shipped["num_hidden_layers"],
        shipped["hidden_size"],
        shipped["vocab_size"],
        shipped["max_position_embeddings"],
    )
    weights = (catalog.POCKET_DIR / "model.safetensors").stat().st_size
    assert card.bytes_on_disk == weights
    assert (
        abs(card.parameters - weights / 2) < 0.01 * card.parameters
    )  # bfloat16: two bytes each, and a header


@pytest.mark.training
@pytest.mark.parametrize("card", MODELS.values(), ids=lambda card: card.label)
def test_parameter_counts_are_those_of_the_geometry(card):
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

    config, model = (
        (Gemma2Config, Gemma2ForCausalLM)
        if card.model_type == "gemma2"
        else (Gemma3TextConfig, Gemma3ForCausalLM)
    )
    shape = config(
        hidden_size=card.hidden_size,
        num_hidden_layers=card.layers,
        intermediate_size=card.intermediate_size,
        num_attention_heads=card.heads,
        num_key_value_heads=card.key_value_heads,
        head_dim=card.head_dim,
        vocab_size=card.vocabulary_tokens,
    )
    with torch.device("meta"):
        built = model(shape)
    assert card.parameters == sum(weights.numel() for weights in built.parameters())
