"""Adapters and finished runs as models: which folder an id means, and on which base it stands. Standard library and YAML."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from gemma_tune.errors import ModelError

RUN_PREFIX = "run:"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_RUN_ID = re.compile(r"[A-Za-z0-9][\w-]*")


class Base(NamedTuple):
    id: str
    revision: str


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def run_model(runs: Path, model_id: str) -> Path:
    """The folder of what a run saved; `model_id` is run:ID. Raises ModelError."""
    run_id = model_id.removeprefix(RUN_PREFIX)
    run = runs / run_id
    if not _RUN_ID.fullmatch(run_id) or not (run / "config.yaml").is_file():
        raise ModelError.at(
            "model.id", model_id, "There is no such run.", "gemma-tune runs lists those that there are."
        )
    folder = run / "model"
    if not folder.is_dir():
        raise ModelError.at(
            "model.id", model_id, "This run has saved no model.",
            "Let it finish, or stop it and keep what it has learned.",
        )  # fmt: skip
    return folder


def base_of(folder: Path) -> Base:
    """What the adapter in a folder was trained on: by its run's configuration, else by its own. Raises ModelError."""
    config = _adapter_config(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError.at(
            str(folder), None, f"The adapter has no {ADAPTER_WEIGHTS}, and other weight files may carry code.",
            "Save it with PEFT (save_pretrained writes safetensors).",
        )  # fmt: skip
    if found := _base_of_run(folder.parent):
        return found
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError.at(
            str(folder), None, f"Its {ADAPTER_CONFIG} names no base_model_name_or_path.",
            "Write the id of its base model there.",
        )  # fmt: skip
    return Base(name, config.get("revision") or "main")


def _base_of_run(run: Path) -> Base | None:
    """None where the folder is no run's. Its own choice of model is what others can find, not a folder of a cache."""
    import yaml

    path = run / "config.yaml"
    if not path.is_file():
        return None
    try:
        model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        provenance = run / "provenance.json"
        known = json.loads(provenance.read_text(encoding="utf-8")) if provenance.is_file() else {}
        return Base(str(model["id"]), known.get("model_revision") or model.get("revision", "main"))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ModelError.at(
            str(path), str(error), "It does not say which model the run began from.", "Start the run anew."
        ) from None


def _adapter_config(folder: Path) -> dict:
    """LoRA's configuration, which names no foreign code."""
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise ModelError.at(str(path), str(error), "The adapter's configuration cannot be read.", "Save it again.") from None  # fmt: skip
    if config.get("peft_type") != "LORA":
        raise ModelError.at(
            str(path), config.get("peft_type"), "Only LoRA adapters can be used here.", "Choose another one."
        )
    library = (config.get("auto_mapping") or {}).get("parent_library", "transformers")
    if library.split(".")[0] != "transformers":
        raise ModelError.at(
            str(path), library, "It names code to run when it is loaded (auto_mapping).",
            "Use an adapter that PEFT saved for one of Transformers' own classes.",
        )  # fmt: skip
    return config
