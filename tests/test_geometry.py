import time

import pytest

from gemma_tune.catalog import MODEL_TYPES, MODELS
from gemma_tune.errors import ModelError
from gemma_tune.geometry import DEFAULTS, from_config, tower_parameters

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "sliding_window": 8,
}
MORE = {
    "gemma4_text": [
        {},
        {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
        {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "vocab_size_per_layer_input": 100,
         "layer_types": ["sliding_attention", "full_attention"] * 3},
        {"hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
         "moe_intermediate_size": 24, "global_head_dim": 24},
    ],
    "gemma4_unified_text": [{}, {"attention_k_eq_v": True, "num_global_key_value_heads": 1}],
    "gemma3n_text": [{"num_kv_shared_layers": 0, "altup_num_inputs": 2, "laurel_rank": 8},
                     {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": 100,
                      "intermediate_size": [64, 96, 64, 96, 64, 96],
                      "layer_types": ["sliding_attention", "full_attention"] * 3}],
    "gemma": [{}, {"tie_word_embeddings": False}],
}  # fmt: skip
SHAPES = [
    (kind, extra)
    for kind in ("gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text")
    for extra in MORE.get(kind, [{}])
]


def quantizable(model) -> int:
    """What bitsandbytes would take, by the names that a run keeps whole."""
    import torch

    from gemma_tune.workers.quantization import KEPT_WHOLE

    return sum(
        one.weight.numel()
        for name, one in model.named_modules()
        if type(one) is torch.nn.Linear and not any(name.endswith(kept) for kept in KEPT_WHOLE)
    )


def built(values: dict):
    """Transformers' own text model of a config, on the meta device."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[values["model_type"]](
        **{key: value for key, value in values.items() if key != "model_type"}
    )
    with torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(config)


@pytest.mark.training
@pytest.mark.parametrize(
    ("kind", "extra"), SHAPES, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_every_count_is_that_of_transformers_own_class(kind, extra):
    config, model = built({"model_type": kind, **TINY, **extra})
    for values in (
        {"model_type": kind, **TINY, **extra},
        config.to_dict() | {"per_layer_config": _as_json(config)},
    ):
        shape = from_config(values)
        assert shape.parameters == sum(weights.numel() for weights in model.parameters())
        assert shape.quantizable_parameters == quantizable(model)
        assert shape.expert_parameters == sum(
            w.numel() for n, w in model.named_parameters() if ".experts." in n
        )
        assert shape.ple_parameters == sum(
            w.numel() for n, w in model.named_parameters() if "embed_tokens_per_layer" in n
        )


def _as_json(config) -> dict:
    import json

    return json.loads(config.to_json_string()).get("per_layer_config")


@pytest.mark.training
@pytest.mark.parametrize("kind", [kind for kind in MODEL_TYPES if not MODEL_TYPES[kind]])
def test_what_a_config_leaves_out_is_transformers_own_default(kind):
    import json

    from transformers import CONFIG_MAPPING

    whole = json.loads(CONFIG_MAPPING[kind]().to_json_string(use_diff=False))
    assert from_config({"model_type": kind}) == from_config(whole)


def test_a_multimodal_config_is_read_for_its_language_part():
    nested = {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", **TINY},
        "vision_config": {},
    }
    assert from_config(nested) == from_config({"model_type": "gemma3_text", **TINY})


def test_every_model_type_that_can_be_trained_has_a_shape():
    assert {kind.removesuffix("_text") for kind in MODEL_TYPES} == set(DEFAULTS)
    for kind in MODEL_TYPES:
        assert from_config({"model_type": kind, **TINY}).parameters > 0


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llama"},
        {"model_type": "gemma2", "hidden_size": "big"},
        {"model_type": "gemma2", "num_hidden_layers": -1},
    ],
)
def test_a_config_without_a_known_shape_is_refused(config):
    with pytest.raises(ModelError):
        from_config(config)


def test_layers_know_their_window_and_what_they_share():
    shape = from_config({"model_type": "gemma4_text", **TINY, "num_kv_shared_layers": 2, "layer_types":
                         ["sliding_attention", "full_attention"] * 3})  # fmt: skip
    assert [layer.window for layer in shape.layers] == [8, None] * 3
    assert [layer.shares_key_values for layer in shape.layers] == [False] * 4 + [True] * 2
    assert [layer.head_dim for layer in shape.layers] == [16, 512] * 3
    assert "k_proj" not in shape.linears(shape.layers[-1]) and "k_proj" in shape.linears(shape.layers[0])


def test_reading_a_shape_takes_no_time():
    began = time.perf_counter()
    for _ in range(20):
        assert from_config({"model_type": "gemma4", "num_hidden_layers": 60}).parameters
    assert time.perf_counter() - began < 0.2


def test_what_a_model_sees_with_is_counted_from_its_config():
    siglip = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
    counted = tower_parameters({"model_type": "gemma3", "vision_config": siglip})
    assert counted == pytest.approx(MODELS["google/gemma-3-4b-it"].other_bytes / 2, rel=0.03)
    assert tower_parameters({"model_type": "gemma3_text"}) == 0
