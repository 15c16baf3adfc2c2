"""Where a run comes from: configuration digest, versions, machine, seed. The worker adds the data's fingerprint."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import psutil

from gemma_tune import __version__
from gemma_tune.config import RunConfig
from gemma_tune.runs import hardware

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors")


def gather(config: RunConfig) -> dict:
    return {
        "gemma_tune": __version__,
        "config_digest": config.digest(),
        "model": config.model.id,
        "model_revision": config.model.revision,
        "seed": config.train.seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cpu_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [gpu["name"] for gpu in hardware.Sampler().gpus()],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
