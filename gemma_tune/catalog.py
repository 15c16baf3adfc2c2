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
    layers: int
    hidden_size: int
    context_tokens: int
    vocabulary_tokens: int
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


def _gemma2(size: str, parameters: float, layers: int, hidden: int) -> ModelCard:
    return ModelCard(
        id=f"google/gemma-2-{size.lower()}-it",
        label=f"Gemma 2 {size}",
        family="Gemma 2",
        model_type="gemma2",
        parameters=round(parameters * 1e9),
        layers=layers,
        hidden_size=hidden,
        context_tokens=8_192,
        vocabulary_tokens=256_000,
        bytes_on_disk=round(parameters * 2e9),
        system_role=_GEMMA2_SYSTEM,
        traps=_GEMMA2_TRAPS,
        recommended=_SMALL,
    )


def _gemma3(
    size: str, parameters: float, layers: int, hidden: int, context: int, vision: float = 0
) -> ModelCard:
    return ModelCard(
        id=f"google/gemma-3-{size.lower()}-it",
        label=f"Gemma 3 {size}",
        family="Gemma 3",
        model_type="gemma3" if vision else "gemma3_text",
        parameters=round(parameters * 1e9),
        layers=layers,
        hidden_size=hidden,
        context_tokens=context,
        vocabulary_tokens=262_144,
        bytes_on_disk=round((parameters + vision) * 2e9),
        traps=_GEMMA3_VISION if vision else (),
        recommended=_SMALL,
    )


MODELS: dict[str, ModelCard] = {
    card.id: card
    for card in (
        ModelCard(
            id=POCKET_ID,
            label="Pocket Gemma",
            family="Pocket Gemma",
            model_type="gemma3_text",
            parameters=3_200_000,
            layers=6,
            hidden_size=192,
            context_tokens=1_024,
            vocabulary_tokens=2_048,
            bytes_on_disk=6_500_000,
            licence="Apache-2.0, shipped with Gemma Tune",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            gated=False,
            traps=(
                "A teaching model: it knows one small made-up world in simple English, and nothing else.",
            ),
            recommended={
                "lora": {
                    "train.learning_rate": 3e-3,
                    "train.max_length": 256,
                    "train.activation_checkpointing": False,
                },
                "full": {
                    "train.learning_rate": 1e-3,
                    "train.max_length": 256,
                    "train.activation_checkpointing": False,
                },
            },
        ),
        _gemma3("270M", 0.268, 18, 640, 32_768),
        _gemma3("1B", 1.0, 26, 1152, 32_768),
        _gemma3("4B", 3.88, 34, 2560, 131_072, vision=0.42),
        _gemma3("12B", 11.77, 48, 3840, 131_072, vision=0.42),
        _gemma3("27B", 27.0, 62, 5376, 131_072, vision=0.42),
        _gemma2("2B", 2.61, 26, 2304),
        _gemma2("9B", 9.24, 42, 3584),
        _gemma2("27B", 27.2, 46, 4608),
    )
}


def local_path(model_id: str) -> str:
    """What `from_pretrained` takes for an id: the built-in folder for Pocket Gemma, else the id itself."""
    return str(POCKET_DIR) if model_id == POCKET_ID else model_id
