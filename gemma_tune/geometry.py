"""The shape of a Gemma: what memory and time depend on, and every count of parameters that follows from it.

Of a multimodal checkpoint only the language part is described, as only that is loaded. H is the hidden size, V the
vocabulary. Where a config.json leaves a value out, Transformers' own default for that model type holds, as in loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gemma_tune.errors import ModelError

FULL, SLIDING = "full_attention", "sliding_attention"
KEPT_WIDTH = 2  # selective checkpointing keeps results that are at most so many times as wide as their input

# Transformers 5.23's configuration classes; `pattern`: every so manyeth layer sees the whole text, the others a window.
_COMMON = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_size": 2304,
           "intermediate_size": 9216}  # fmt: skip
_GEMMA4 = _COMMON | {"vocab_size": 262_144, "num_hidden_layers": 30, "pattern": 6, "global_head_dim": 512}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"vocab_size": 256_000, "hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28,
              "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
              "max_position_embeddings": 8_192, "pattern": 1},
    "gemma2": _COMMON | {"vocab_size": 256_000, "num_hidden_layers": 26, "max_position_embeddings": 8_192,
                         "sliding_window": 4_096, "pattern": 2},
    "gemma3": _COMMON | {"vocab_size": 262_208, "num_hidden_layers": 26, "max_position_embeddings": 131_072,
                         "sliding_window": 4_096, "pattern": 6},
    "gemma3n": _COMMON | {"vocab_size": 262_400, "hidden_size": 2048, "intermediate_size": 16_384,
                          "num_hidden_layers": 35, "num_key_value_heads": 2, "max_position_embeddings": 32_768,
                          "sliding_window": 512, "pattern": 5, "num_kv_shared_layers": 15, "altup_num_inputs": 4,
                          "laurel_rank": 64, "vocab_size_per_layer_input": 262_144,
                          "hidden_size_per_layer_input": 256},
    "gemma4": _GEMMA4 | {"max_position_embeddings": 131_072, "sliding_window": 512,
                         "vocab_size_per_layer_input": 262_144, "hidden_size_per_layer_input": 256},
    "gemma4_unified": _GEMMA4 | {"max_position_embeddings": 262_144, "sliding_window": 1_024},
}  # fmt: skip

NORMS_OF_A_LAYER = {
    "gemma": 2
}  # of hidden width; later generations also normalise what attention and MLP give
# Small layers that QLoRA loads at full width: Gemma 3n's AltUp and the router of a mixture of experts.
KEPT_WHOLE = frozenset(["correction_coefs", "prediction_coefs", "modality_router", "router.proj"])
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Layer:
    """One decoder layer. `window`: tokens that attention sees, None: all."""

    heads: int
    key_value_heads: int
    head_dim: int
    intermediate_size: int
    window: int | None = None
    shares_key_values: bool = False  # takes keys and values of an earlier layer, and has no weights for them
    values_are_keys: bool = False  # one projection for both


@dataclass(frozen=True)
class Geometry:
    """A text model's shape. Sizes are numbers of elements; 0 where a generation has no such part."""

    generation: str  # the model type without regard to whether the checkpoint is multimodal
    hidden_size: int
    vocabulary_tokens: int
    context_tokens: int
    layers: tuple[Layer, ...]
    tied_head: bool = True
    ple_size: int = 0  # width of the per-layer embeddings (Gemma 3n and 4)
    ple_vocabulary_tokens: int = 0
    altup_inputs: int = 0  # hidden states carried side by side (Gemma 3n)
    laurel_rank: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate_size: int = 0

    @cached_property
    def embedding_parameters(self) -> int:
        """The token table, V × H; the same weights score the vocabulary where the head is tied."""
        return self.vocabulary_tokens * self.hidden_size

    @cached_property
    def head_parameters(self) -> int:
        return 0 if self.tied_head else self.embedding_parameters

    @cached_property
    def ple_parameters(self) -> int:
        """The table of per-layer embeddings: looked up, never multiplied, so never quantized."""
        return self.ple_vocabulary_tokens * len(self.layers) * self.ple_size

    @cached_property
    def expert_parameters(self) -> int:
        """Mixture-of-experts weights, which bitsandbytes leaves as they are."""
        return len(self.layers) * self.experts * 3 * self.hidden_size * self.expert_intermediate_size

    @cached_property
    def quantizable_parameters(self) -> int:
        """Weights of `nn.Linear` that bitsandbytes quantizes: not the head, nor the few that steer (`KEPT_WHOLE`)."""
        return self._linear_parameters() - self._linear_parameters(KEPT_WHOLE)

    @cached_property
    def parameters(self) -> int:
        """Every trainable number of the text model, a tied head counted once."""
        big = self.embedding_parameters + self.head_parameters + self.ple_parameters + self.expert_parameters
        return big + self._linear_parameters() + self._small_parameters()

    @property
    def active_parameters(self) -> int:
        """Those that one token multiplies with: no table, and of the experts only those chosen."""
        share = self.experts_per_token / self.experts if self.experts else 0
        return self.quantizable_parameters + round(self.expert_parameters * share)

    def linears(self, layer: Layer) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the projections of one layer, by Transformers' names."""
        hidden, queries = self.hidden_size, layer.heads * layer.head_dim
        keys, inner = layer.key_value_heads * layer.head_dim, layer.intermediate_size
        shapes = ((hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden),
                  (hidden, inner), (hidden, inner), (inner, hidden))  # fmt: skip
        named = dict(zip(PROJECTIONS, shapes, strict=True))
        absent = (
            {"k_proj", "v_proj"} if layer.shares_key_values else {"v_proj"} if layer.values_are_keys else ()
        )
        return {name: shape for name, shape in named.items() if name not in absent}

    def kept_linears(self, layer: Layer) -> dict[str, tuple[int, int]]:
        """Those of `linears` whose results selective checkpointing keeps."""
        return {name: (a, b) for name, (a, b) in self.linears(layer).items() if b <= KEPT_WIDTH * a}

    def _linear_parameters(self, only: frozenset[str] | None = None) -> int:
        """Of every `nn.Linear` but the head, or of those of the layers with these names."""
        side = self._side_linears()
        count = len(self.layers) * sum(a * b for name, (a, b) in side.items() if only is None or name in only)
        if only is None:
            count += sum(a * b for layer in self.layers for a, b in self.linears(layer).values())
            count += self._model_linears()
        return count

    def _side_linears(self) -> dict[str, tuple[int, int]]:
        """The further linear layers of each decoder layer."""
        hidden, streams = self.hidden_size, self.altup_inputs
        found = {}
        if self.ple_size:
            found |= {
                "per_layer_input_gate": (hidden, self.ple_size),
                "per_layer_projection": (self.ple_size, hidden),
            }
        if self.laurel_rank:
            found |= {"linear_left": (hidden, self.laurel_rank), "linear_right": (self.laurel_rank, hidden)}
        if streams:
            found |= {"correction_coefs": (streams, streams), "prediction_coefs": (streams, streams**2),
                      "modality_router": (hidden, streams)}  # fmt: skip
        if self.experts:
            found["router.proj"] = (hidden, self.experts)
        return found

    def _model_linears(self) -> int:
        """Outside the layers: the projection into the per-layer embeddings, and AltUp's into and out of its streams."""
        hidden = self.hidden_size
        return hidden * len(self.layers) * self.ple_size + 2 * max(self.altup_inputs - 1, 0) * hidden**2

    def _small_parameters(self) -> int:
        """Norms and scales."""
        hidden = self.hidden_size
        wide = NORMS_OF_A_LAYER.get(self.generation, 4) + bool(self.ple_size) + bool(self.laurel_rank)
        wide += 2 * bool(self.altup_inputs)  # the router's norm and the output scale
        wide += 4 * bool(self.experts)  # three norms and the router's scale
        in_layers = len(self.layers) * (wide * hidden + self.experts)  # and a scale for each expert
        if self.generation not in ("gemma", "gemma2"):
            in_layers += sum(layer.head_dim * (1 if layer.shares_key_values else 2) for layer in self.layers)
        return in_layers + hidden + self.ple_size


def from_config(config: Mapping[str, Any]) -> Geometry:
    """The shape that a Hugging Face config.json tells, multimodal or not. Raises ModelError."""
    text = config.get("text_config") or config
    model_type = text.get("model_type") or config.get("model_type") or ""
    generation = model_type.removesuffix("_text")
    if generation not in DEFAULTS:
        raise ModelError.at(
            "config.json", model_type or "no model_type", "The shape of this kind of model is not known here.",
            "Choose a model of the Gemma family.",
        )  # fmt: skip
    read = _Reader(
        {**DEFAULTS[generation], **{key: value for key, value in text.items() if value is not None}}
    )
    count = read.number("num_hidden_layers")
    experts = read.number("num_experts") if text.get("enable_moe_block") else 0
    return Geometry(
        generation=generation,
        hidden_size=read.number("hidden_size"),
        vocabulary_tokens=read.number("vocab_size"),
        context_tokens=read.number("max_position_embeddings"),
        layers=tuple(_layer(generation, read, index, count) for index in range(count)),
        tied_head=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))),
        ple_size=read.number("hidden_size_per_layer_input"),
        ple_vocabulary_tokens=read.number("vocab_size_per_layer_input"),
        altup_inputs=read.number("altup_num_inputs"),
        laurel_rank=read.number("laurel_rank"),
        experts=experts,
        experts_per_token=read.number("top_k_experts") if experts else 0,
        expert_intermediate_size=read.number("moe_intermediate_size") if experts else 0,
    )


def tower_parameters(config: Mapping[str, Any]) -> int:
    """About the numbers of what a model sees with: of each layer its four attention and two or three MLP matrices."""
    vision = config.get("vision_config") or {}
    width, inner, layers = (
        vision.get(name) or 0 for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    matrices = 3 if str(config.get("model_type")).startswith("gemma4") else 2
    return layers * width * (4 * width + matrices * inner)


@dataclass(frozen=True)
class _Reader:
    values: dict[str, Any]

    def number(self, name: str, index: int | None = None) -> int:
        """A whole number, of one layer where the config has a list; 0 where it has none. Raises ModelError."""
        value = self.values.get(name, 0)
        if isinstance(value, (list, tuple)) and index is not None and index < len(value):
            value = value[index]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0 or value > 2**40:
            raise ModelError.at(
                f"config.json, {name}", value, "It must be a whole number of at least 0.",
                "Take the config.json that belongs to the weights.",
            )  # fmt: skip
        return value


def _layer(generation: str, read: _Reader, index: int, count: int) -> Layer:
    sliding = _is_sliding(generation, read, index, count)
    shared = index >= count - read.number("num_kv_shared_layers")
    key_value_heads, head_dim = read.number("num_key_value_heads"), read.number("head_dim")
    one_projection = bool(read.values.get("attention_k_eq_v")) and not sliding
    if generation.startswith("gemma4") and not sliding:
        own = (read.values.get("per_layer_config") or {}).get(str(index), {})
        head_dim = own.get("head_dim") or read.number("global_head_dim")
        wide = read.number("num_global_key_value_heads") if one_projection else 0
        key_value_heads = own.get("num_key_value_heads") or wide or key_value_heads
    inner = read.number("intermediate_size", index)
    return Layer(
        heads=read.number("num_attention_heads"),
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        intermediate_size=inner * 2 if shared and read.values.get("use_double_wide_mlp") else inner,
        window=read.number("sliding_window") or None if sliding else None,
        shares_key_values=shared,
        values_are_keys=one_projection and not shared,
    )


def _is_sliding(generation: str, read: _Reader, index: int, count: int) -> bool:
    kinds = read.values.get("layer_types")
    if isinstance(kinds, list) and index < len(kinds):
        sliding = kinds[index] == SLIDING
    else:
        pattern = read.number("sliding_window_pattern") or read.number("pattern")
        sliding = bool((index + 1) % pattern)
    return sliding and not (
        generation.startswith("gemma4") and index == count - 1
    )  # its last one sees everything
