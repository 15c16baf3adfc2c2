"""The models that the page offers, every number with its source. Standard library only.

Shapes are those of Google's own code and of Transformers' conversion scripts (each row says which); every count of
parameters follows from the shape, and a test compares it with Transformers' class. Any other repository or folder whose
`model_type` is in `MODEL_TYPES` can be used too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from gemma_tune.geometry import Geometry, from_config
from gemma_tune.pocket import MODEL_DIR as POCKET_DIR

POCKET_ID = "pocket"

# What may reach `from_pretrained`: model_type -> whether the checkpoint carries more than a text model.
MODEL_TYPES = {
    "gemma": False,
    "gemma2": False,
    "gemma3_text": False,
    "gemma3": True,
    "gemma3n_text": False,
    "gemma3n": True,
    "gemma4_text": False,
    "gemma4": True,
    "gemma4_unified_text": False,
    "gemma4_unified": True,
}

INSTRUCTION_TUNED, BASE = "instruction-tuned", "base"
FOLDED = "folded into the first user turn"


@dataclass(frozen=True)
class ModelCard:
    """One row of the catalogue. Counts are of the text model; `bytes_on_disk` of the whole bfloat16 checkpoint."""

    id: str
    family: str
    size: str
    variant: str  # INSTRUCTION_TUNED or BASE
    model_type: str  # of the checkpoint; the key of MODEL_TYPES
    geometry: Geometry
    source: str  # of the shape
    other_bytes: int = (
        0  # in the checkpoint beside the text model: towers for images and sound, about; headers
    )
    licence: str = "Gemma Terms of Use"
    licence_url: str = "https://ai.google.dev/gemma/terms"
    gated: bool = True
    system_role: str = FOLDED
    methods: tuple[str, ...] = ("lora", "qlora", "full")  # that suit it, the best first
    traps: tuple[str, ...] = ()
    recommended: dict[str, dict[str, object]] = field(default_factory=dict)  # method type -> dotted settings

    @property
    def instruction_tuned(self) -> bool:
        return self.variant == INSTRUCTION_TUNED

    @property
    def label(self) -> str:
        name = f"{self.family} {self.size}".strip()
        return name if self.instruction_tuned else f"{name} base"

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.id}"

    @property
    def parameters(self) -> int:
        return self.geometry.parameters

    @property
    def bytes_on_disk(self) -> int:
        return 2 * self.parameters + self.other_bytes

    @property
    def layers(self) -> int:
        return len(self.geometry.layers)

    @property
    def heads(self) -> int:
        return self.geometry.layers[0].heads

    @property
    def vocabulary_tokens(self) -> int:
        return self.geometry.vocabulary_tokens

    @property
    def context_tokens(self) -> int:
        return self.geometry.context_tokens


GOOGLE = "google-deepmind/gemma 3.3.0, gm.nn."
CONVERSION = "Transformers' conversion script, "
_HEALTH = {"licence": "Health AI Developer Foundations Terms of Use",
           "licence_url": "https://developers.google.com/health-ai-developer-foundations/terms"}  # fmt: skip
# https://ai.google.dev/edge/litert-lm/models/gemma-4 names the licence; the repositories ask for no consent.
_APACHE = {
    "licence": "Apache-2.0",
    "licence_url": "https://www.apache.org/licenses/LICENSE-2.0",
    "gated": False,
}

_GEMMA2_TRAP = "Its attention soft-caps scores, which PyTorch's fused attention cannot: slower, and more memory for long texts."
_TOWERS = "The checkpoint also reads images{}; text tuning loads and trains the language part only."  # or sound as well
_PLE = "{:.1f} of its {:.1f} billion numbers are a table of per-layer embeddings, which quantization leaves as it is."
_EXPERTS = "{:.1f} of its {:.1f} billion numbers are experts, which quantization leaves as they are: QLoRA saves little."
_BASE_TRAP = "A base model goes on with text and has no chat template: it learns from plain text, not from conversations."
_TOOLS_TRAP = "Made to be tuned for function calls; it is no assistant, and its chat format is its own."

# (hidden, layers, intermediate, heads, key-value heads, head size), then what differs from Transformers' defaults.
_SHAPE = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")  # fmt: skip
_TEXT3 = {"vocab_size": 262_144, "max_position_embeddings": 32_768, "sliding_window": 512}
_FULL3 = {"sliding_window": 1_024}
_LARGE4 = {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "sliding_window": 1_024,
           "max_position_embeddings": 262_144}  # fmt: skip
_E2B4 = {"num_kv_shared_layers": 20, "use_double_wide_mlp": True,
         "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7}  # fmt: skip
_MOE = {"num_global_key_value_heads": 2, "enable_moe_block": True, "num_experts": 128, "top_k_experts": 8,
        "moe_intermediate_size": 704}  # fmt: skip

# Parameters of the towers, counted from Transformers' classes with the conversion scripts' settings, without weights;
# of Gemma 3n the sound encoder was counted and its image encoder taken as MobileNet-V5's 300 million.
_SIGLIP, _TOWERS_3N, _TOWERS_4_SMALL, _TOWERS_4_LARGE, _EMBEDDER_12B = (
    419_816_304, 981_000_000, 477_000_000, 574_000_000, 52_000_000,
)  # fmt: skip
IMAGES, IMAGES_AND_SOUND = "", " and hears sound"


@dataclass(frozen=True)
class _Row:
    """One size: `name` is the id without owner and ending, `endings` what the ids of base and tuned end in."""

    family: str
    size: str
    name: str
    endings: tuple[str | None, str | None]  # base, instruction-tuned; None: there is none
    model_type: str
    shape: tuple[int, ...]
    source: str
    differs: dict[str, Any] = field(default_factory=dict)
    towers: int = 0
    senses: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


_PT, _PLAIN, _ONLY_IT = ("-pt", "-it"), ("", "-it"), (None, "-it")
_TWO = {
    "system_role": "no system role: a system text is put before the first user turn",
    "traps": (_GEMMA2_TRAP,),
}
_FOUR = {**_APACHE, "system_role": "a turn of its own"}
_TOOLS = {"traps": (_TOOLS_TRAP,), "system_role": "a developer turn of its own"}
_SHAPE_4B, _SHAPE_27B = (2560, 34, 10_240, 8, 4, 256), (5376, 62, 21_504, 32, 16, 128)
_FOUR_SCRIPT, _FOUR_3N = CONVERSION + "gemma4: ", CONVERSION + "gemma3n: "
_ROWS = (
    _Row("Gemma 4", "E2B", "gemma-4-E2B", _PLAIN, "gemma4", (1536, 35, 6144, 8, 1, 256), _FOUR_SCRIPT + "gemma-4-e2b",
         _E2B4, _TOWERS_4_SMALL, IMAGES_AND_SOUND, _FOUR),
    _Row("Gemma 4", "E4B", "gemma-4-E4B", _PLAIN, "gemma4", (2560, 42, 10_240, 8, 2, 256), _FOUR_SCRIPT + "gemma-4-e4b",
         {"num_kv_shared_layers": 18}, _TOWERS_4_SMALL, IMAGES_AND_SOUND, _FOUR),
    _Row("Gemma 4", "12B", "gemma-4-12B", _PLAIN, "gemma4_unified", (3840, 48, 15_360, 16, 8, 256),
         CONVERSION + "gemma4_unified: gemma-4-12b", {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
         _EMBEDDER_12B, IMAGES_AND_SOUND, _FOUR),
    _Row("Gemma 4", "26B-A4B", "gemma-4-26B-A4B", _PLAIN, "gemma4", (2816, 30, 2112, 16, 8, 256),
         _FOUR_SCRIPT + "gemma-4-26b-a4b", _LARGE4 | _MOE, _TOWERS_4_LARGE, IMAGES, _FOUR | {"methods": ("lora", "full")}),
    _Row("Gemma 4", "31B", "gemma-4-31B", _PLAIN, "gemma4", (5376, 60, 21_504, 32, 16, 256), _FOUR_SCRIPT + "gemma-4-31b",
         _LARGE4 | {"num_global_key_value_heads": 4}, _TOWERS_4_LARGE, IMAGES, _FOUR),
    _Row("Gemma 3", "270M", "gemma-3-270m", _PLAIN, "gemma3_text", (640, 18, 2048, 4, 1, 256), GOOGLE + "Gemma3_270M", _TEXT3),
    _Row("Gemma 3", "1B", "gemma-3-1b", _PT, "gemma3_text", (1152, 26, 6912, 4, 1, 256), GOOGLE + "Gemma3_1B", _TEXT3),
    _Row("Gemma 3", "4B", "gemma-3-4b", _PT, "gemma3", _SHAPE_4B, GOOGLE + "Gemma3_4B", _FULL3, _SIGLIP, IMAGES),
    _Row("Gemma 3", "12B", "gemma-3-12b", _PT, "gemma3", (3840, 48, 15_360, 16, 8, 256), GOOGLE + "Gemma3_12B", _FULL3,
         _SIGLIP, IMAGES),
    _Row("Gemma 3", "27B", "gemma-3-27b", _PT, "gemma3", _SHAPE_27B, GOOGLE + "Gemma3_27B", _FULL3, _SIGLIP, IMAGES),
    _Row("Gemma 3n", "E2B", "gemma-3n-E2B", _PLAIN, "gemma3n", (2048, 30, 8192, 8, 2, 256), _FOUR_3N + "gemma3n_e2b",
         {"num_kv_shared_layers": 10}, _TOWERS_3N, IMAGES_AND_SOUND),
    _Row("Gemma 3n", "E4B", "gemma-3n-E4B", _PLAIN, "gemma3n", (2048, 35, 16_384, 8, 2, 256), _FOUR_3N + "gemma3n_e4b",
         {}, _TOWERS_3N, IMAGES_AND_SOUND),
    _Row("Gemma 2", "2B", "gemma-2-2b", _PLAIN, "gemma2", (2304, 26, 9216, 8, 4, 256), GOOGLE + "Gemma2_2B", more=_TWO),
    _Row("Gemma 2", "9B", "gemma-2-9b", _PLAIN, "gemma2", (3584, 42, 14_336, 16, 8, 256), GOOGLE + "Gemma2_9B", more=_TWO),
    _Row("Gemma 2", "27B", "gemma-2-27b", _PLAIN, "gemma2", (4608, 46, 36_864, 32, 16, 128), GOOGLE + "Gemma2_27B", more=_TWO),
    _Row("FunctionGemma", "270M", "functiongemma-270m", _ONLY_IT, "gemma3_text", (640, 18, 2048, 4, 1, 256),
         "its model card: the architecture of Gemma 3 270M", _TEXT3, more=_TOOLS),
    _Row("MedGemma", "4B", "medgemma-4b", _PT, "gemma3", _SHAPE_4B, "its model card: the architecture of Gemma 3 4B", _FULL3,
         _SIGLIP, IMAGES, _HEALTH),
    _Row("MedGemma", "27B", "medgemma-27b-text", _ONLY_IT, "gemma3_text", _SHAPE_27B,
         "its model card: the architecture of Gemma 3 27B; the vocabulary as in the other text models",
         _FULL3 | {"vocab_size": 262_144}, more=_HEALTH),
)  # fmt: skip


def _config(row: _Row) -> dict[str, Any]:
    """What a config.json of this size says of the text model, defaults of Transformers left out."""
    return {"model_type": row.model_type, **dict(zip(_SHAPE, row.shape, strict=True)), **row.differs}


def _cards(row: _Row) -> list[ModelCard]:
    """The instruction-tuned model of a size, then its base, where there are such."""
    geometry = from_config(_config(row))
    card = ModelCard(
        id=f"google/{row.name}{row.endings[1]}",
        family=row.family,
        size=row.size,
        variant=INSTRUCTION_TUNED,
        model_type=row.model_type,
        geometry=geometry,
        source=row.source,
        other_bytes=2 * row.towers,
        recommended=_recommended(geometry.parameters),
        **{"methods": _methods(geometry), **row.more, "traps": _traps(row, geometry)},
    )
    if row.endings[0] is None:
        return [card]
    base = {"id": f"google/{row.name}{row.endings[0]}", "variant": BASE, "traps": (_BASE_TRAP, *card.traps)}
    return [card, replace(card, **base)]


def _methods(geometry: Geometry) -> tuple[str, ...]:
    """LoRA where its bfloat16 weights fit a card of 24 GB with room, else QLoRA first."""
    return ("lora", "qlora", "full") if geometry.parameters < 8e9 else ("qlora", "lora", "full")


def _traps(row: _Row, geometry: Geometry) -> tuple[str, ...]:
    traps = list(row.more.get("traps", ()))
    if row.senses is not None:
        traps.append(_TOWERS.format(row.senses))
    for sentence, part in ((_PLE, geometry.ple_parameters), (_EXPERTS, geometry.expert_parameters)):
        if part:
            traps.append(sentence.format(part / 1e9, geometry.parameters / 1e9))
    return tuple(traps)


def _recommended(parameters: int) -> dict[str, dict[str, object]]:
    """Rates: LoRA Without Regret (Thinking Machines, 2025), about ten times the full one, and TRL's SFTConfig.

    The effective batch of 8 rows is the form's own, in smaller parts for larger models.
    """
    rows = 8 if parameters < 2e9 else 2 if parameters < 8e9 else 1
    batch = {"train.per_device_train_batch_size": rows, "train.gradient_accumulation_steps": 8 // rows}
    parts = {} if rows == 8 else batch
    return {"lora": {"train.learning_rate": 2e-4, **parts}, "full": {"train.learning_rate": 2e-5, **parts}}


_POCKET = ModelCard(
    id=POCKET_ID,
    family="Pocket Gemma",
    size="",
    variant=INSTRUCTION_TUNED,
    model_type="gemma3_text",
    geometry=from_config(
        {"model_type": "gemma3_text", **dict(zip(_SHAPE, (192, 6, 640, 3, 1, 64), strict=True)), "vocab_size": 1_536,
         "max_position_embeddings": 1_024, "sliding_window": 64, "sliding_window_pattern": 3}
    ),
    source="gemma_tune/pocket/model/config.json",
    other_bytes=8_640,  # the header of its file
    licence="Apache-2.0, shipped with Gemma Tune",
    licence_url="https://www.apache.org/licenses/LICENSE-2.0",
    gated=False,
    methods=("lora", "full"),
    traps=("A teaching model: it knows one small made-up world in simple English, and nothing else.",),
    recommended={
        name: {"train.learning_rate": rate, "train.per_device_train_batch_size": rows,
               "train.activation_checkpointing": False, **more}
        for name, rate, rows, more in (
            ("lora", 3e-3, 16, {}), ("full", 1e-3, 16, {}), ("orpo/lora", 2e-3, 16, {}), ("reward/lora", 1e-3, 16, {}),
            ("dpo/lora", 2e-3, 16, {"objective.sft_weight": 1.0}), ("grpo/lora", 1e-3, 32, {}),  # rows of GRPO are answers
        )
    },
)  # fmt: skip

MODELS: dict[str, ModelCard] = {
    card.id: card for card in (_POCKET, *(card for row in _ROWS for card in _cards(row)))
}


def config_of(model_id: str) -> dict[str, Any]:
    """The config.json of one of Google's models as far as it shapes the text model; `model_type` is the checkpoint's."""
    return next(
        _config(row) for row in _ROWS if model_id in (f"google/{row.name}{end}" for end in row.endings)
    )


def local_path(model_id: str) -> str:
    """What `from_pretrained` takes for an id: the built-in folder for Pocket Gemma, else the id itself."""
    return str(POCKET_DIR) if model_id == POCKET_ID else model_id
