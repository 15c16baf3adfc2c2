"""What the config.json of a model may say: a Gemma that answers, and no foreign code. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from gemma_tune import catalog
from gemma_tune.errors import ModelError

OTHER_GEMMAS = {  # part of a model_type -> why models of the Gemma family with it are not tuned here
    "assistant": "This is a draft model, which guesses ahead for a larger Gemma and does not stand alone.",
    "diffusion_gemma": "This Gemma writes by diffusion, not word by word.",
    "embedding_gemma": "This is an embedding model, which writes no answers.",
    "t5gemma": "This is an encoder-decoder model, trained in another way.",
    "t5_gemma": "This is an encoder-decoder model, trained in another way.",
    "paligemma": "This Gemma answers about images only.",
    "shieldgemma": "This is a classifier of images.",
    "recurrent_gemma": "This Gemma has a recurrent architecture, for which no method here was tested.",
    "vaultgemma": "This Gemma was trained with differential privacy, which tuning it here would not keep.",
}
_PRIVATE_FIELD = re.compile(r"_.*_internal")


def check_model_config(config: dict, where: str) -> str:
    """The model_type, where the config is of a Gemma that loads without foreign code."""
    for path in _keys(config):
        key = path.rpartition(".")[2]
        if key == "auto_map":
            raise ModelError.at(
                where, path, "Its config.json names code to run when it is loaded (auto_map).",
                "Use a model in the format of Transformers' own Gemma classes.",
            )  # fmt: skip
        if _PRIVATE_FIELD.fullmatch(key):
            raise ModelError.at(
                where, path, "Its config.json sets a private field of Transformers, which could load foreign code.",
                "Take the field out if you trust the model, or use another one.",
            )  # fmt: skip
    model_type = config.get("model_type")
    if model_type not in catalog.MODEL_TYPES:
        raise ModelError.at(
            where, model_type or "no model_type", _why_not(str(model_type)),
            f"Its model_type must be one of {', '.join(catalog.MODEL_TYPES)}.",
        )  # fmt: skip
    if config.get("use_bidirectional_attention") in (True, "all"):
        raise ModelError.at(
            where, "use_bidirectional_attention", "This is an embedding model: it reads both ways and writes no answers.",
            "Choose a model that answers.",
        )  # fmt: skip
    return model_type


def _why_not(model_type: str) -> str:
    for part, why in OTHER_GEMMAS.items():
        if part in model_type:
            return f"{why} It cannot be tuned here."
    return "This is not a Gemma model that can be tuned here."


def _keys(value: object, path: str = "") -> Iterator[str]:
    """Every key of nested objects, as a dotted path."""
    if isinstance(value, list):
        for one in value:
            yield from _keys(one, path)
    if isinstance(value, dict):
        for key, inner in value.items():
            dotted = f"{path}.{key}".lstrip(".") if path else str(key)
            yield dotted
            yield from _keys(inner, dotted)


def read_config(path: Path, where: str) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError.at(
            where,
            str(path.parent),
            f"There is no {path.name} in it.",
            "Name the folder that holds the model.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError.at(
            where, str(error), f"Its {path.name} cannot be read.", "Download it again."
        ) from None
    if not isinstance(config, dict):
        raise ModelError.at(where, str(path), f"Its {path.name} is not an object.", "Download it again.")
    return config


def context_tokens(config: dict) -> int | None:
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    return config.get("max_position_embeddings") or text.get("max_position_embeddings")
