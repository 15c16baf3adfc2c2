"""The files of a model's folder that say how it tokenises, renders turns and writes images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer

from gemma_tune.data.image_tokens import ImageTokens, image_tokens
from gemma_tune.errors import Fault, ModelError

NAMES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
ABOUT_IMAGES = ("config.json", "processor_config.json", "preprocessor_config.json")


def read(folder: Path) -> tuple[Tokenizer, str, dict[str, str], ImageTokens | Fault]:
    """(tokenizer, chat template, special tokens, how images are written or why they are not). Raises ModelError."""
    config = _json(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError.at(
            str(path), None, "The model has no tokenizer.json.",
            "Save its tokenizer once with Transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )  # fmt: skip
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
        raise ModelError.at(
            str(path), str(error), "The tokenizer cannot be read.", "Download it again."
        ) from None
    about_images = [_json(folder / name) for name in ABOUT_IMAGES]
    images = image_tokens(*about_images, _special_tokens(config, deep=True))
    return tokenizer, _template(folder, config), _special_tokens(config), images


def tokenizer_digest(folder: Path) -> str:
    """Equal exactly where two folders tokenise and render alike."""
    digest = hashlib.sha256()
    for name in NAMES:
        path = folder / name
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return digest.hexdigest()


def _special_tokens(config: dict, deep: bool = False) -> dict[str, str]:
    """By their names in tokenizer_config.json. `deep`: with those that only processors know."""
    inner = [config.get(name) for name in ("extra_special_tokens", "model_specific_special_tokens")]
    named = {name: one for some in inner if deep and isinstance(some, dict) for name, one in some.items()}
    return {
        name: token.get("content", "") if isinstance(token, dict) else token
        for name, token in (named | config).items()
        if name.endswith("_token") and isinstance(token, str | dict)
    }


def _template(folder: Path, config: dict) -> str:
    """Empty where the model has none."""
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    template = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template or ""


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError.at(
            str(path), str(error), "The file is not valid JSON.", "Download the model again."
        ) from None
    return found if isinstance(found, dict) else {}
