"""A forecast here and now: brings a model's shape, this machine and the checked rows together. No torch."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import psutil

from gemma_tune import hub, sight
from gemma_tune.config import RunConfig
from gemma_tune.data.doctor import Report
from gemma_tune.data.store import Store
from gemma_tune.fit import Choice, make_it_fit
from gemma_tune.forecast import Device, Forecast, Lengths, forecast
from gemma_tune.geometry import Geometry, tower_parameters
from gemma_tune.runs.base import base_of, card_of, geometry_of
from gemma_tune.runs.hardware import Sampler, usable_cores
from gemma_tune.runs.launch import allocator

WITHOUT_BFLOAT16 = ("T4", "V100", "P100", "GTX", "RTX 20")  # NVIDIA's generations before Ampere
ROWS_LOOKED_AT = 1_000  # for the number of their images
LONGEST_ROWS = 1024  # the largest batch there may be


def forecast_of(config: RunConfig, report: Report | None = None) -> Forecast | None:
    """`report`: the doctor's, where the data were checked. None where the shape of the model is not known yet."""
    known = _known(config, report)
    return forecast(config, *known) if known else None


def ways(config: RunConfig, report: Report | None = None) -> list[Choice]:
    """How the run could need less memory, the least harmful change first."""
    known = _known(config, report)
    return make_it_fit(config, *known) if known else []


def _known(config: RunConfig, report: Report | None) -> tuple[Geometry, Device, Lengths | None] | None:
    geometry = geometry_of(config.model.id, config.model.revision)
    lengths = lengths_of(report)
    if lengths and report.prepared.store.has_images:
        asked = config.model.id, config.model.revision
        images = _most_images(report.prepared.store.folder)
        lengths = replace(
            lengths, tower_parameters=towers_of(*asked), image_numbers=images * image_numbers_of(*asked)
        )
    return (geometry, device_of(config), lengths) if geometry else None


# ---- the model -----------------------------------------------------------------------------------------------------
def towers_of(model_id: str, revision: str = "main") -> int:
    """Numbers beside the language part of a model that sees, from the catalogue or from its files on this disk."""
    if card := card_of(model_id):
        return card.other_bytes // 2
    path = hub.config_path(model_id, revision)
    return tower_parameters(json.loads(path.read_text(encoding="utf-8"))) if path else 0


def image_numbers_of(model_id: str, revision: str = "main") -> int:
    """How many numbers live at once for each image that a model looks at."""
    path = hub.config_path(base_of(model_id), revision)
    if path is None:
        card = card_of(model_id)
        vision = sight.LARGE if card and card.parameters > 10e9 else {}
        return sight.image_numbers({"model_type": card.model_type, "vision_config": vision}) if card else 0
    beside = path.parent / "preprocessor_config.json"
    told = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    return sight.image_numbers(json.loads(path.read_text(encoding="utf-8")), told)


@lru_cache(maxsize=32)
def _most_images(folder: Path) -> int:
    """The most that one row holds, among the first ones."""
    store = Store(folder)
    return max((len(row.images) for row in store.rows(np.arange(min(len(store), ROWS_LOOKED_AT)))), default=0)


# ---- the machine and the rows --------------------------------------------------------------------------------------
@cache
def _sampler() -> Sampler:
    """Opened once: NVML takes a while to start."""
    return Sampler()


def gpu_names() -> list[str]:
    return [gpu["name"] for gpu in _sampler().gpus()]


def device_of(config: RunConfig) -> Device:
    """What a run uses: the GPUs that it names, else the first ones; the CPU where there is none."""
    gpus = _sampler().gpus()
    chosen = {int(index) for index in config.devices.gpu_ids.split(",") if index.strip().isdigit()}
    used = [gpu for gpu in gpus if gpu["index"] in chosen] or gpus[: config.devices.num_processes]
    if not used:
        memory = psutil.virtual_memory()  # bfloat16: "auto" computes in float32 without a GPU
        return Device(
            "cpu",
            "this CPU",
            1,
            memory.total,
            memory.available,
            cores=usable_cores(),
            bfloat16=False,
            allocator="tcmalloc" if allocator() else "system",
        )
    free = min(gpu["memory_total_bytes"] - gpu["memory_used_bytes"] for gpu in used)
    total, name = min(gpu["memory_total_bytes"] for gpu in used), used[0]["name"]
    modern = not any(old in name for old in WITHOUT_BFLOAT16)
    return Device("cuda", name, len(gpus), total, free, bfloat16=modern)


def lengths_of(report: Report | None) -> Lengths | None:
    """What a forecast needs of checked data; None before they are."""
    if report is None or not len(report.lengths):
        return None
    falling = np.sort(report.lengths)[::-1]
    return Lengths(
        rows=report.train_rows,
        left_out=report.unlearnable_rows,
        total_tokens=int(report.lengths.sum()),
        longest=int(falling[0]),
        learned_share=report.supervised_tokens / max(report.total_tokens, 1),
        longest_rows=tuple(map(int, falling[:LONGEST_ROWS])),
    )
