"""Loads a Gemma and its tokenizer, with guards against what Transformers lets pass silently.

Only a `model_type` of `catalog.MODEL_TYPES` reaches `from_pretrained`; no remote code, weights from safetensors only. Of
a multimodal Gemma 3 the language part alone is loaded.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import transformers
from safetensors import safe_open

from gemma_tune import hub
from gemma_tune.catalog import MODEL_TYPES
from gemma_tune.errors import ModelError

CLASSES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
LANGUAGE_PART = {
    r"^language_model\.model\.": "model."
}  # names in a multimodal file -> names in the text class
LANGUAGE_PREFIX = "language_model."
MULTIMODAL_TOKENS = {
    "<image_soft_token>"
}  # Gemma 3's text models have it in the tokenizer, without an embedding
WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]
BASE, TUNED = "__base__", "tuned"  # PEFT's name for "no adapter", and ours for the run's


def fetch(facts: hub.ModelFacts, token: str | None = None) -> Path:
    """The folder with all files, downloaded where they are not on disk."""
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


def weights_dtype(setting: str) -> torch.dtype:
    if setting == "auto":
        return torch.bfloat16 if computes_bfloat16() else torch.float32
    return getattr(torch, setting)


def load_tokenizer(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_model(folder: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """The text model in evaluation mode, on the GPU where there is one. Raises ModelError."""
    model_type = checked_model_type(folder)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    multimodal = MODEL_TYPES[model_type]
    model, loading = getattr(transformers, CLASSES[model_type]).from_pretrained(
        folder,
        config=config.text_config if multimodal else config,
        key_mapping=LANGUAGE_PART if multimodal else None,
        dtype=dtype,
        attn_implementation=attention_of(model_type),
        device_map=device() if torch.cuda.is_available() else None,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    refuse_random_weights(folder, loading)
    # Otherwise saving gives the multimodal names back to a text checkpoint, which then loads as random weights.
    model._weight_conversions = None
    return model.eval()


def checked_model_type(folder: Path) -> str:
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    if model_type not in MODEL_TYPES:
        raise ModelError.at(
            str(folder), model_type, f"Only these model types are trained here: {', '.join(MODEL_TYPES)}.",
            "Choose a Gemma 2 or Gemma 3.",
        )  # fmt: skip
    return model_type


def attention_of(model_type: str) -> str:
    """Gemma 2 soft-caps its attention scores, which PyTorch's fused attention cannot."""
    return "eager" if model_type == "gemma2" else "sdpa"


def refuse_random_weights(folder: Path, loading: dict) -> None:
    """Transformers fills what it does not find with random numbers and goes on."""
    if missing := sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"])):
        raise ModelError.at(
            str(folder), ", ".join(missing[:3]),
            f"The checkpoint lacks {len(missing)} weights of the model; they would be random.",
            "Download it again, or choose a complete checkpoint.",
        )  # fmt: skip


def refuse_foreign_tokenizer(tokenizer, model: transformers.PreTrainedModel) -> None:
    """Every token must have an embedding, and the control tokens the ids that the model was trained with."""
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = [
        token
        for token, index in tokenizer.get_vocab().items()
        if index >= rows and token not in MULTIMODAL_TOKENS
    ]
    if beyond:
        raise ModelError.at(
            "tokenizer", ", ".join(beyond[:3]),
            f"{len(beyond)} of its tokens lie beyond the {rows:,} embeddings of the model.",
            "Use the tokenizer that belongs to the model.",
        )  # fmt: skip
    for name in ("bos_token_id", "pad_token_id"):
        ours, theirs = getattr(tokenizer, name), getattr(model.config, name, None)
        if None not in (ours, theirs) and ours != theirs:
            raise ModelError.at(
                f"tokenizer.{name}", ours, f"The model was trained with {theirs}.",
                "Use the tokenizer that belongs to the model.",
            )  # fmt: skip


def load_adapter(base: transformers.PreTrainedModel, folder: Path):
    """The base with the adapter of `folder` under the name `TUNED`. Raises ModelError where a tensor has no place."""
    from peft import PeftModel, get_peft_model_state_dict

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError.at(
            str(folder), None, "It holds no adapter_model.safetensors.", "Choose another run or checkpoint."
        )
    model = PeftModel.from_pretrained(base, folder, adapter_name=TUNED).eval()
    with safe_open(weights, "pt") as file:
        stored = set(file.keys())
    if unplaced := stored ^ set(get_peft_model_state_dict(model, adapter_name=TUNED)):
        raise ModelError.at(
            str(folder), ", ".join(sorted(unplaced)[:3]), "The adapter does not fit this base model.",
            "Compare it with the base that it was trained on.",
        )  # fmt: skip
    return model


def parameters_in(folder: Path) -> int:
    """How many numbers the text model in a folder has, from the headers of its files."""
    multimodal = MODEL_TYPES[checked_model_type(folder)]
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                if not multimodal or key.startswith(LANGUAGE_PREFIX):
                    count += torch.Size(file.get_slice(key).get_shape()).numel()
    return count


def refuse_too_large(folders: list[Path], dtype: torch.dtype) -> None:
    """Says before loading that so many models will not fit, with both numbers."""
    needed = sum(parameters_in(folder) for folder in folders) * dtype.itemsize
    free, where = free_memory_bytes()
    if needed * 1.1 > free:  # a tenth for buffers and the cache of a short conversation
        models = "this model" if len(folders) == 1 else f"these {len(folders)} models"
        raise ModelError.at(
            where, f"{free / 1e9:.1f} GB free",
            f"Holding {models} takes about {needed * 1.1 / 1e9:.1f} GB.",
            "Wait until a running training ends, close other programs, or use a larger machine.",
        )  # fmt: skip


def free_memory_bytes() -> tuple[int, str]:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info(device())[0], "GPU memory"
    import psutil

    return psutil.virtual_memory().available, "memory"
