"""What the forecast is measured on: true shapes, cut in depth where they would not fit, and settings of every kind."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune import catalog

SHAPES = {  # the catalogue's card, and layers that are kept; None: all
    "Gemma 3 270M": ("google/gemma-3-270m-it", None),
    "Gemma 3 1B, 3 layers": ("google/gemma-3-1b-it", 3),
    "Gemma 3 4B, 2 layers": ("google/gemma-3-4b-it", 2),
    "Gemma 2 2B, 2 layers": ("google/gemma-2-2b-it", 2),
    "Gemma 3n E2B, 2 layers": ("google/gemma-3n-E2B-it", 2),
    "Gemma 4 E2B, 3 layers": ("google/gemma-4-E2B-it", 3),
    "Gemma 4 12B, 2 layers": ("google/gemma-4-12B-it", 2),
}
NO_CHECKPOINTING = "train.activation_checkpointing=false"
LORA, FULL, QLORA = "method.type=lora", "method.type=full", "method.type=qlora"


@dataclass(frozen=True)
class Case:
    """Two steps of a model with these settings; `tokens`: lengths of the rows, the longest first."""

    shape: str
    tokens: tuple[int, ...]
    overrides: tuple[str, ...]
    allocator: str = "tcmalloc"

    @property
    def key(self) -> str:
        return " | ".join((self.shape, ",".join(map(str, self.tokens)), *self.overrides, self.allocator))


def _case(shape: str, tokens: tuple[int, ...], *overrides: str, allocator: str = "tcmalloc") -> Case:
    batch = f"train.per_device_train_batch_size={len(tokens)}"
    return Case(shape, tokens, (*overrides, batch), allocator)


SHORT, MIXED, LONG, MANY = (256,), (400, 120, 60, 40), (900,), (200, 200, 200, 200)
VALIDATED = "eval.eval_steps=1"
CASES = (
    _case("Gemma 3 270M", MIXED, LORA),
    _case("Gemma 3 270M", LONG, LORA, VALIDATED),
    _case("Gemma 3 270M", MIXED, LORA, NO_CHECKPOINTING),
    _case("Gemma 3 270M", LONG, LORA, NO_CHECKPOINTING),
    _case("Gemma 3 270M", MIXED, LORA, NO_CHECKPOINTING, "train.padding_free=false"),
    _case(
        "Gemma 3 270M", MIXED, LORA, NO_CHECKPOINTING, "method.r=64", "train.gradient_accumulation_steps=2"
    ),
    _case("Gemma 3 270M", MIXED, QLORA, NO_CHECKPOINTING),
    _case("Gemma 3 270M", MIXED, QLORA, "method.quantization=int8"),
    _case("Gemma 3 270M", MIXED, FULL),
    _case("Gemma 3 270M", LONG, FULL, NO_CHECKPOINTING),
    _case("Gemma 3 270M", MIXED, FULL, "train.optim=adafactor"),
    _case("Gemma 3 270M", MIXED, FULL, "train.optim=adamw_8bit"),
    _case("Gemma 3 270M", MIXED, FULL, "train.gradient_accumulation_steps=2", NO_CHECKPOINTING),
    _case("Gemma 3 270M", (160, 80), "objective.type=dpo", LORA),
    _case("Gemma 3 270M", MIXED, LORA, allocator="system"),
    _case("Gemma 3 270M", LONG, LORA, NO_CHECKPOINTING, allocator="system"),
    _case("Gemma 3 270M", MIXED, FULL, allocator="system"),
    _case("Gemma 3 1B, 3 layers", MIXED, LORA),
    _case("Gemma 3 1B, 3 layers", MANY, LORA, NO_CHECKPOINTING),
    _case("Gemma 3 1B, 3 layers", SHORT, FULL),
    _case("Gemma 3 1B, 3 layers", SHORT, FULL, "train.optim=adafactor"),
    _case("Gemma 3 4B, 2 layers", SHORT, LORA, NO_CHECKPOINTING),
    _case("Gemma 3 4B, 2 layers", SHORT, QLORA),
    _case("Gemma 2 2B, 2 layers", SHORT, LORA),
    _case("Gemma 2 2B, 2 layers", MIXED, LORA, NO_CHECKPOINTING),
    _case("Gemma 3n E2B, 2 layers", SHORT, LORA, NO_CHECKPOINTING),
    _case("Gemma 4 E2B, 3 layers", MIXED, LORA, NO_CHECKPOINTING),
    _case("Gemma 4 E2B, 3 layers", SHORT, QLORA),
    _case("Gemma 4 12B, 2 layers", SHORT, LORA),
    # measured after every constant was set
    _case("Gemma 3 1B, 3 layers", (120, 60), "objective.type=dpo", LORA, NO_CHECKPOINTING),
    _case("Gemma 2 2B, 2 layers", MIXED, LORA, NO_CHECKPOINTING, allocator="system"),
    _case("Gemma 4 E2B, 3 layers", MIXED, LORA, allocator="system"),
    _case("Gemma 3 270M", MANY, FULL, "train.optim=lion_8bit", NO_CHECKPOINTING),
    _case("Gemma 3 270M", MIXED, LORA, "train.selective_checkpointing=true"),
    _case("Gemma 3 270M", LONG, FULL, "train.selective_checkpointing=true"),
    _case("Gemma 3 1B, 3 layers", MANY, LORA, "train.selective_checkpointing=true"),
)
SET_BEFORE = 7  # of the cases, the last ones


def model_config(shape: str) -> dict:
    """The text model's config.json."""
    model_id, layers = SHAPES[shape]
    values = dict(catalog.config_of(model_id))
    multimodal = catalog.MODEL_TYPES[values["model_type"]]
    values["model_type"] += "_text" if multimodal else ""
    if layers is None:
        return values
    values["num_hidden_layers"] = layers
    values.pop("num_kv_shared_layers", None)
    if values["model_type"] == "gemma3n_text":
        values |= {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.95] * layers}
    if "layer_types" in values or values["model_type"] in ("gemma3n_text", "gemma3_text"):
        values["layer_types"] = ["sliding_attention"] * (layers - 1) + ["full_attention"]
    return values
