"""The models that the page offers, every number with its source. Standard library only.

Parameters, layers, context and vocabulary were read from the `config.json` geometry in transformers 5.23's conversion
scripts and defaults, and from Google's `gemma` 3.3.0 package; parameter counts were computed on the meta device from
that geometry. Any other repository or folder whose `model_type` is in `MODEL_TYPES` can be used too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gemma_tune.pocket import MODEL_DIR as POCKET_DIR

POCKET_ID = "pocket"

# What may reach `from_pretrained`: model_type -> whether the checkpoint carries more than a text model.
MODEL_TYPES = {"gemma": False, "gemma2": False, "gemma3_text": False, "gemma3": True}

GEMMA_TERMS = "https://ai.google.dev/gemma/terms"


@dataclass(frozen=True)
class ModelCard:
    """One row of the catalogue. Counts are of the text model; `bytes_on_disk` of the whole bfloat16 checkpoint."""

    id: str
    label: str
    family: str
    model_type: str
    parameters: int
    hidden_size: int
    layers: int
    intermediate_size: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary_tokens: int
    context_tokens: int
    bytes_on_disk: int
    licence: str = "Gemma Terms of Use"
    licence_url: str = GEMMA_TERMS
    gated: bool = True
    system_role: str = "folded into the first user turn"
    traps: tuple[str, ...] = ()
    recommended: dict[str, dict[str, object]] = field(default_factory=dict)  # method type -> dotted settings

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.id}"


_GEMMA2_SYSTEM = "no system role: a system text is put before the first user turn"
_GEMMA2_TRAPS = (
    "Its attention soft-caps scores, so it runs with eager attention: memory grows with length squared.",
)
_GEMMA3_VISION = (
    "The checkpoint also holds a vision tower; text tuning loads and trains the language part only.",
)
_SMALL = {
    "lora": {
        "train.learning_rate": 2e-4
    },  # LoRA Without Regret (Thinking Machines, 2025): about 10 x the full rate
    "full": {"train.learning_rate": 2e-5},  # the rate of TRL's SFTConfig
}


def _google(
    family: str, size: str, model_type: str, parameters: int, shape: tuple, vision: int = 0, **more
) -> ModelCard:
    """`shape`: hidden size, layers, intermediate size, heads, key-value heads, head dimension, vocabulary, context."""
    hidden, layers, intermediate, heads, key_value_heads, head_dim, vocabulary, context = shape
    return ModelCard(
        id=f"google/{family.lower().replace(' ', '-')}-{size.lower()}-it",
        label=f"{family} {size}",
        family=family,
        model_type=model_type,
        parameters=parameters,
        hidden_size=hidden,
        layers=layers,
        intermediate_size=intermediate,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        vocabulary_tokens=vocabulary,
        context_tokens=context,
        bytes_on_disk=2 * (parameters + vision),
        recommended=_SMALL,
        **more,
    )


_VISION = 419_800_000  # parameters of Gemma 3's vision tower and projector, about; loaded by none of ours
_GEMMA2 = {"system_role": _GEMMA2_SYSTEM, "traps": _GEMMA2_TRAPS}
_GEMMA3_LARGE = {"vision": _VISION, "traps": _GEMMA3_VISION}

MODELS: dict[str, ModelCard] = {
    card.id: card
    for card in (
        ModelCard(
            id=POCKET_ID,
            label="Pocket Gemma",
            family="Pocket Gemma",
            model_type="gemma3_text",
            parameters=3_102_144,
            hidden_size=192,
            layers=6,
            intermediate_size=640,
            heads=3,
            key_value_heads=1,
            head_dim=64,
            vocabulary_tokens=1_536,
            context_tokens=1_024,
            bytes_on_disk=6_212_928,
            licence="Apache-2.0, shipped with Gemma Tune",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            gated=False,
            traps=(
                "A teaching model: it knows one small made-up world in simple English, and nothing else.",
            ),
            recommended={
                "lora": {
                    "train.learning_rate": 3e-3,
                    "train.per_device_train_batch_size": 16,
                    "train.activation_checkpointing": False,
                },
                "full": {
                    "train.learning_rate": 1e-3,
                    "train.per_device_train_batch_size": 16,
                    "train.activation_checkpointing": False,
                },
            },
        ),
        _google("Gemma 3", "270M", "gemma3_text", 268_098_176, (640, 18, 2048, 4, 1, 256, 262_144, 32_768)),
        _google("Gemma 3", "1B", "gemma3_text", 999_885_952, (1152, 26, 6912, 4, 1, 256, 262_144, 32_768)),
        _google(
            "Gemma 3",
            "4B",
            "gemma3",
            3_880_263_168,
            (2560, 34, 10240, 8, 4, 256, 262_208, 131_072),
            **_GEMMA3_LARGE,
        ),
        _google(
            "Gemma 3",
            "12B",
            "gemma3",
            11_766_034_176,
            (3840, 48, 15360, 16, 8, 256, 262_208, 131_072),
            **_GEMMA3_LARGE,
        ),
        _google(
            "Gemma 3",
            "27B",
            "gemma3",
            27_009_346_304,
            (5376, 62, 21504, 32, 16, 128, 262_208, 131_072),
            **_GEMMA3_LARGE,
        ),
        _google(
            "Gemma 2", "2B", "gemma2", 2_614_341_888, (2304, 26, 9216, 8, 4, 256, 256_000, 8_192), **_GEMMA2
        ),
        _google(
            "Gemma 2", "9B", "gemma2", 9_241_705_984, (3584, 42, 14336, 16, 8, 256, 256_000, 8_192), **_GEMMA2
        ),
        _google(
            "Gemma 2",
            "27B",
            "gemma2",
            27_227_128_320,
            (4608, 46, 36864, 32, 16, 128, 256_000, 8_192),
            **_GEMMA2,
        ),
    )
}


def local_path(model_id: str) -> str:
    """What `from_pretrained` takes for an id: the built-in folder for Pocket Gemma, else the id itself."""
    return str(POCKET_DIR) if model_id == POCKET_ID else model_id
