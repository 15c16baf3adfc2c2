"""How supervisor and worker are started: command lines and environments. Secrets go by environment only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from gemma_tune.runs.hardware import Sampler, has_accelerator, usable_cores
from gemma_tune.runs.processes import RUN_VARIABLE

WORKER_COMMAND_VARIABLE = (
    "GEMMA_TUNE_WORKER_COMMAND"  # a JSON list that replaces the worker's command (tests)
)
PACKAGE_ROOT = Path(__file__).parents[2]


def supervisor_command(run_path: Path, *, adopt: bool = False) -> list[str]:
    return [
        sys.executable,
        "-m",
        "gemma_tune.runs.supervisor",
        str(run_path),
        *(["--adopt"] if adopt else []),
    ]


def supervisor_environment(token: str | None) -> dict[str, str]:
    environment = _python_environment()
    environment.pop(RUN_VARIABLE, None)
    if token:
        environment["HF_TOKEN"] = token
    return environment


def worker_command() -> list[str]:
    """What the run's folder and the checkpoint are appended to."""
    if injected := os.environ.get(WORKER_COMMAND_VARIABLE):
        return json.loads(injected)
    launcher = "accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
    cpu = [] if has_accelerator() else ["--cpu"]
    return [sys.executable, "-m", *launcher.split(), *cpu, "-m", "gemma_tune.workers.train"]


def worker_environment(run_path: Path) -> dict[str, str]:
    """Marks every process of the run (RUN_VARIABLE) and shows one GPU only: Trainer would use DataParallel on more."""
    environment = _python_environment() | {
        RUN_VARIABLE: str(run_path),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    if len(Sampler().gpus()) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return environment


def _python_environment() -> dict[str, str]:
    """Ours, in which children find this package, and no module that happens to lie in the current folder."""
    paths = [str(PACKAGE_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONSAFEPATH": "1"}
