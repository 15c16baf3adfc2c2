"""How supervisor and worker are started: command lines and environments. Secrets go by environment only.

One process is started directly, with the variables that `accelerate launch` would set: the launcher imports torch only
to set them. Several processes, on this host or on several, are started by `accelerate launch` itself.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_tune.runs import sharing
from gemma_tune.runs.folder import RunFolder, write_json
from gemma_tune.runs.hardware import Sampler, has_accelerator, usable_cores
from gemma_tune.runs.processes import RUN_VARIABLE

if TYPE_CHECKING:
    from gemma_tune.config import RunConfig

WORKER_COMMAND_VARIABLE = (
    "GEMMA_TUNE_WORKER_COMMAND"  # a JSON list that replaces the worker's command (tests)
)
ALLOCATOR_VARIABLE = "GEMMA_TUNE_TCMALLOC"  # "0" leaves the system's memory allocator in place
ALLOCATOR = re.compile(r"^\s*(libtcmalloc(?:_minimal)?\.so\.\d+) ", re.M)  # in the list of `ldconfig -p`
HUGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"  # PyTorch's own; workers ask for them where it is not set
WORKER_MODULE = ["-m", "gemma_tune.workers.train"]
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


def worker_command(folder: RunFolder, values: Mapping[str, Any]) -> list[str]:
    """What the run's folder and the checkpoint are appended to. `values`: of `folder.values()`.

    For several processes Accelerate's configuration is written into the folder.
    """
    if injected := os.environ.get(WORKER_COMMAND_VARIABLE):
        return json.loads(injected)
    if process_count(values) == 1:
        return [sys.executable, *WORKER_MODULE]
    config = folder.path / "accelerate.json"
    for path, content in sharing.launch_files(values["devices"], config).items():
        write_json(path, content)
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *WORKER_MODULE]


def worker_environment(run_path: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """Marks every process of the run (RUN_VARIABLE) and shows only its GPUs: Trainer would take all that it sees."""
    devices = values.get("devices", {})
    processes = devices.get("num_processes", 1)
    environment = _python_environment() | {
        RUN_VARIABLE: str(run_path),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(usable_cores() // processes, 1)))
    if process_count(values) == 1:
        environment |= {
            "ACCELERATE_USE_CPU": str(not has_accelerator()),
            "ACCELERATE_MIXED_PRECISION": "no",  # Trainer decides by its own arguments
            "ACCELERATE_DYNAMO_BACKEND": "no",
        }
    environment |= _visible_gpus(devices, processes) | allocator()
    lora = values.get("method", {}).get("type") == "lora"
    if lora and "tcmalloc" in environment.get("LD_PRELOAD", ""):  # slower in huge pages: docs/benchmarks.md
        environment.setdefault(HUGE_PAGES_VARIABLE, "0")
    return environment


def process_count(values: Mapping[str, Any]) -> int:
    """Worker processes on all hosts; a run of before there was a choice has one."""
    devices = values.get("devices", {})
    return devices.get("num_processes", 1) * devices.get("num_machines", 1)


def host_commands(config: RunConfig, config_path: str = "config.yaml") -> list[str]:
    """The command for each host, host 0 first, to be given where the run's `config_path` lies; one where there is one."""
    train = f"gemma-tune train {shlex.quote(config_path)}"
    if config.devices.num_machines == 1:
        return [train]
    return [f"{train} devices.machine_rank={rank}" for rank in range(config.devices.num_machines)]


def _visible_gpus(devices: Mapping[str, Any], processes: int) -> dict[str, str]:
    count = len(Sampler().gpus())
    if not count:
        return {}
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # numbers them as nvidia-smi and NVML do
    if chosen := devices.get("gpu_ids"):
        return order | {"CUDA_VISIBLE_DEVICES": chosen}
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given is not None else [str(index) for index in range(count)]
    return (
        {"CUDA_VISIBLE_DEVICES": ",".join(visible[:processes])} | ({} if given else order)
        if len(visible) > processes
        else {}
    )


def allocator() -> dict[str, str]:
    """tcmalloc for the worker where it is installed: glibc's malloc gives every freed chunk's pages back at once."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    library = _tcmalloc()
    if os.environ.get(ALLOCATOR_VARIABLE) == "0" or library is None or "malloc" in preloaded:
        return {}
    return {"LD_PRELOAD": f"{library}:{preloaded}".rstrip(":")}


@cache
def _tcmalloc() -> str | None:
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin")
    if ldconfig is None:  # not Linux
        return None
    known = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
    found = ALLOCATOR.search(known)
    return found[1] if found else None


def _python_environment() -> dict[str, str]:
    """Ours, in which children find this package, and no module that happens to lie in the current folder."""
    paths = [str(PACKAGE_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONSAFEPATH": "1"}
