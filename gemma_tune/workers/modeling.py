"""Loads a Gemma and its tokenizer as a run asks for it: plain or quantized, with or without an adapter.

Only a `model_type` of `catalog.MODEL_TYPES` reaches `from_pretrained`; no remote code, weights from safetensors only. Of
a multimodal checkpoint the language part alone is loaded, and it is saved as a text model; the whole of it where the
rows hold images.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import safe_open

from gemma_tune import hub, support
from gemma_tune.catalog import MODEL_TYPES
from gemma_tune.config import RunConfig
from gemma_tune.errors import ModelError
from gemma_tune.workers import guards, quantization, towers
from gemma_tune.workers.guards import refuse_foreign_tokenizer

__all__ = [
    "BASE",
    "START",
    "TUNED",
    "as_started",
    "fetch",
    "load_adapter",
    "load_base",
    "load_model",
    "load_start",
    "load_tokenizer",
    "lora_targets",
    "named_as_published",
    "refuse_foreign_tokenizer",
    "using",
    "weights_dtype",
]

log = logging.getLogger(__name__)

Tell = Callable[[str], None]  # takes a plain sentence for the user


@dataclass(frozen=True)
class TextClass:
    """Transformers' classes for a text model; `scores`: with a reward model's head, empty where there is none."""

    answers: str
    scores: str = ""


WHOLE_CLASSES = {  # with the towers, of `support.IMAGE_MODEL_TYPES`
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
}
_GEMMA3 = TextClass("Gemma3ForCausalLM", "Gemma3TextForSequenceClassification")
_GEMMA3N = TextClass("Gemma3nForCausalLM")
_GEMMA4 = TextClass("Gemma4ForCausalLM")
_UNIFIED = TextClass("Gemma4UnifiedForCausalLM")
CLASSES = {
    "gemma": TextClass("GemmaForCausalLM", "GemmaForSequenceClassification"),
    "gemma2": TextClass("Gemma2ForCausalLM", "Gemma2ForSequenceClassification"),
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3,
    "gemma3n_text": _GEMMA3N,
    "gemma3n": _GEMMA3N,
    "gemma4_text": _GEMMA4,
    "gemma4": _GEMMA4,
    "gemma4_unified_text": _UNIFIED,
    "gemma4_unified": _UNIFIED,
}
# Names in a multimodal file -> names in the text class. Gemma 3 saves the first order of words, the others the second.
LANGUAGE_PART = {
    r"^(?:language_model\.model|model\.language_model)\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
ATTENTION_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj"]
LAYERS = {
    "attention": ATTENTION_LAYERS,
    "all-linear": [*ATTENTION_LAYERS, "gate_proj", "up_proj", "down_proj"],
}
WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]
BASE = "__base__"  # PEFT's name for "no adapter"
START, TUNED = "start", "tuned"  # ours for the adapter that a run began from, and for its result


def fetch(facts: hub.ModelFacts, token: str | None = None) -> Path:
    """The folder with all files of the base, downloaded where they are not on disk."""
    if facts.on_disk and facts.path:
        return Path(facts.path)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(facts.id, revision=facts.revision, token=token, allow_patterns=WEIGHT_FILES)
        )
    except hub.hub_failures() as error:
        raise hub.hub_error(error, "model.id", facts.id, "model") from None


def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def computes_bfloat16() -> bool:
    """Whether there is a GPU with bfloat16 in hardware."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _placed() -> torch.device | None:
    """Where the weights are loaded; on no GPU where FSDP takes each its share from the host."""
    shared = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    return device() if torch.cuda.is_available() and not shared else None


def weights_dtype(setting: str) -> torch.dtype:
    if setting == "auto":
        return torch.bfloat16 if computes_bfloat16() else torch.float32
    return getattr(torch, setting)


def load_tokenizer(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_start(
    config: RunConfig,
    facts: hub.ModelFacts,
    folder: Path,
    tell: Tell = log.warning,
    *,
    images: bool = False,
) -> transformers.PreTrainedModel:
    """What a run's training begins from: the base in `folder`, with the adapter of an earlier run where it goes on.

    For lora and qlora that adapter is trained further (a PeftModel); for full it is merged into the weights. Raises
    ModelError and ConfigError.
    """
    guards.refuse_leaky_packing(config)
    if facts.adapter:
        guards.refuse_other_task(config, Path(facts.adapter))
        guards.refuse_other_model(config, Path(facts.adapter), images)
    model = load_base(config, folder, tell, images=images)
    guards.refuse_reentrant_checkpointing(config, model)
    if facts.adapter and config.method.type == "full":
        return quantization.merge(model, Path(facts.adapter))
    if facts.adapter:
        model = load_adapter(model, Path(facts.adapter), name="default", is_trainable=True)
        tell("The adapter of the earlier run is trained further; its rank and layers stay as they are.")
    elif config.method.type != "full" and (note := guards.frozen_experts_note(model)):
        tell(note)
    return model


def load_base(
    config: RunConfig, folder: Path, tell: Tell = log.warning, *, images: bool = False
) -> transformers.PreTrainedModel:
    """The base model of a run, quantized where its method says so, in evaluation mode."""
    return load_model(
        folder,
        weights_dtype(config.model.dtype),
        attention=config.model.attn_implementation,
        quantized=quantization.quantization_config(config),
        scores=config.objective.type == "reward",
        images=images,
        tell=tell,
    )


def load_model(
    folder: Path,
    dtype: torch.dtype,
    *,
    attention: str = "auto",
    quantized: transformers.BitsAndBytesConfig | None = None,
    scores: bool = False,
    images: bool = False,
    tell: Tell = log.warning,
) -> transformers.PreTrainedModel:
    """The text model in evaluation mode, on the GPU where there is one. Raises ModelError and ConfigError.

    `scores`: with a reward model's head, which is new where the checkpoint has none. `images`: the whole multimodal
    model, whose towers are frozen.
    """
    model_type = checked_model_type(folder)
    guards.refuse_float16(dtype)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = whole_class(folder, model_type) if images else text_class(model_type, scores)
    part = MODEL_TYPES[model_type] and not images
    config = config.text_config if part else config
    if note := guards.float16_note(config, dtype):
        tell(note)
    if scores:
        config.num_labels = 1
    with _quiet():
        model, loading = kind.from_pretrained(
            folder,
            config=config,
            key_mapping=LANGUAGE_PART if part else None,
            dtype=dtype,
            attn_implementation=guards.attention_of(config.get_text_config(), attention),
            quantization_config=quantized,
            device_map=_placed(),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    guards.refuse_random_weights(folder, loading)
    if part:
        log.info("Of the multimodal checkpoint only the language part is loaded and trained.")
    if quantized:
        quantization.make_trainable(model)
        if note := guards.unquantized_experts_note(model):
            tell(note)
    # Otherwise saving gives the published names: a text checkpoint would load as random weights, and a whole Gemma 3 that
    # is resumed would silently begin anew. For None the whole model's would be looked up again.
    published, model._weight_conversions = model._weight_conversions, [] if images else None
    if images:
        towers.freeze(model)
        model.published_conversions = published
    return model.eval()


@contextmanager
def named_as_published(model: torch.nn.Module) -> Iterator[None]:
    """What is saved of a whole multimodal model has the names within that its own checkpoint has."""
    conversions = getattr(model, "published_conversions", None)
    if conversions:
        model._weight_conversions = conversions
    try:
        yield
    finally:
        if conversions:
            model._weight_conversions = []


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' list of each weight of a vision tower that is left out; what is missing we refuse ourselves."""
    logging_of = transformers.utils.logging
    before = logging_of.get_verbosity()
    logging_of.set_verbosity_error()
    try:
        yield
    finally:
        logging_of.set_verbosity(before)


def text_class(model_type: str, scores: bool = False) -> type[transformers.PreTrainedModel]:
    found = CLASSES[model_type].scores if scores else CLASSES[model_type].answers
    if not found:
        raise ModelError(support.fault(model_type, "reward"))
    return getattr(transformers, found)


def whole_class(folder: Path, model_type: str) -> type[transformers.PreTrainedModel]:
    if model_type not in WHOLE_CLASSES:
        raise ModelError.at(
            str(folder), model_type, "This kind of model reads no images here.",
            f"Choose a model of one of these types: {', '.join(WHOLE_CLASSES)}.",
        )  # fmt: skip
    return getattr(transformers, WHOLE_CLASSES[model_type])


def checked_model_type(folder: Path) -> str:
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    if model_type not in MODEL_TYPES:
        raise ModelError.at(
            str(folder), model_type, f"Only these model types are trained here: {', '.join(MODEL_TYPES)}.",
            "Choose a Gemma 2, 3, 3n or 4.",
        )  # fmt: skip
    return model_type


def lora_targets(model: transformers.PreTrainedModel, target_modules: str = "all-linear") -> str | list[str]:
    """PEFT's `target_modules` for "all-linear" or "attention": the linear layers of the language model.

    A text model takes their names. In a multimodal one the same names stand in vision and audio towers too, some in
    wrappers that PEFT refuses, so it takes a regular expression. Experts are no layers and stay out.
    """
    names = LAYERS[target_modules]
    if not hasattr(model.config, "text_config"):
        return list(names)
    return rf".*language_model.*\.({'|'.join(names)})"


def load_adapter(
    base: transformers.PreTrainedModel, folder: Path, name: str = TUNED, is_trainable: bool = False
):
    """The base, or a PeftModel, with the adapter of `folder`. Raises ModelError where a tensor has no place."""
    from peft import PeftModel, get_peft_model_state_dict

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError.at(
            str(folder), None, "It holds no adapter_model.safetensors.", "Choose another run or checkpoint."
        )
    if isinstance(base, PeftModel):
        base.load_adapter(folder, adapter_name=name, is_trainable=is_trainable)
        model = base
    else:
        model = PeftModel.from_pretrained(base, folder, adapter_name=name, is_trainable=is_trainable)
    with safe_open(weights, "pt") as file:
        stored = set(file.keys())
    if unplaced := stored ^ set(get_peft_model_state_dict(model, adapter_name=name)):
        raise ModelError.at(
            str(folder), ", ".join(sorted(unplaced)[:3]), "The adapter does not fit this base model.",
            "Compare it with the base that it was trained on.",
        )  # fmt: skip
    return model.eval()


@contextmanager
def using(model, name: str) -> Iterator[None]:
    """The PeftModel with one of its adapters, or with none where the name is BASE."""
    if name == BASE:
        with model.disable_adapter():
            yield
        return
    before = model.active_adapter
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(before)


@contextmanager
def as_started(model, facts: hub.ModelFacts) -> Iterator[None]:
    """The PeftModel as it was before its training: without its adapter, or with the one that it went on from."""
    if facts.adapter and START not in model.peft_config:
        load_adapter(model, Path(facts.adapter), START)
    with using(model, START if facts.adapter else BASE):
        yield
