"""From which model a run begins, and that model's shape. No torch, no network."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from gemma_tune import hub
from gemma_tune.catalog import MODELS, ModelCard
from gemma_tune.errors import GemmaTuneError
from gemma_tune.geometry import Geometry, from_config
from gemma_tune.hub_adapters import RUN_PREFIX
from gemma_tune.runs.folder import find_run


def base_of(model_id: str) -> str:
    """The model that a run began from; any other id as it is."""
    seen = set()
    while model_id.startswith(RUN_PREFIX) and model_id not in seen:
        seen.add(model_id)
        try:
            model_id = find_run(model_id.removeprefix(RUN_PREFIX)).config().model.id
        except GemmaTuneError:
            break
    return model_id


def card_of(model_id: str) -> ModelCard | None:
    return MODELS.get(base_of(model_id))


def geometry_of(model_id: str, revision: str = "main") -> Geometry | None:
    """The shape of a model from the catalogue, or from the config.json on this disk; None where neither is there."""
    if card := card_of(model_id):
        return card.geometry
    path = hub.config_path(model_id, revision)
    return _read(path, path.stat().st_mtime_ns) if path else None


@lru_cache(maxsize=32)
def _read(path: Path, changed_ns: int) -> Geometry | None:
    try:
        return from_config(json.loads(path.read_text(encoding="utf-8")))
    except (GemmaTuneError, ValueError, OSError):
        return None
