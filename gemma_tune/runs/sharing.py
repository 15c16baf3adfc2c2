"""How several processes share one run: Accelerate's own configuration, and what this host can take part in. Without torch.

The letters of Accelerate: `num_processes` counts those of all hosts, where our setting of that name counts one host's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_tune import support
from gemma_tune.errors import Fault, shown
from gemma_tune.runs.hardware import Sampler, has_accelerator

if TYPE_CHECKING:
    from gemma_tune.config import RunConfig

# MULTI_GPU is Accelerate's word for torchrun with DDP; on a CPU its --cpu would start a single process without a word.
DISTRIBUTED_TYPES = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}
FSDP2 = {
    "fsdp_version": 2,
    "fsdp_reshard_after_forward": True,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # by the model's own `_no_split_modules`
    "fsdp_state_dict_type": "FULL_STATE_DICT",  # one file, which loads anywhere; sharded ones save no model
    "fsdp_cpu_ram_efficient_loading": False,  # every rank loads the weights: they are checked for missing keys
    "fsdp_offload_params": False,
}


def launch_files(devices: Mapping[str, Any], config_path: Path) -> dict[Path, dict[str, Any]]:
    """What `accelerate launch --config_file config_path` reads for the section `devices`: contents by path."""
    config = accelerate_config(devices)
    if devices["distributed_type"] != "deepspeed":
        return {config_path: config | {"mixed_precision": "no"}}  # Trainer decides by its own arguments
    deepspeed_path = config_path.with_name("deepspeed.json")
    # DeepSpeed's file must hold alone what it holds at all: mixed precision is "auto" there.
    config["deepspeed_config"] = {
        "deepspeed_config_file": str(deepspeed_path),
        "deepspeed_multinode_launcher": "standard",
        "zero3_init_flag": False,
    }
    return {config_path: config, deepspeed_path: deepspeed_config(devices)}


def accelerate_config(devices: Mapping[str, Any]) -> dict[str, Any]:
    """Accelerate's configuration, mixed precision and DeepSpeed's part left out."""
    hosts = devices["num_machines"]
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": DISTRIBUTED_TYPES[devices["distributed_type"]],
        "num_processes": devices["num_processes"] * hosts,
        "num_machines": hosts,
        "machine_rank": devices["machine_rank"],
        "main_process_ip": devices["main_process_ip"] if hosts > 1 else None,
        "main_process_port": devices["main_process_port"] if hosts > 1 else 0,  # 0: a free one
        "rdzv_backend": "static",
        "gpu_ids": "all",  # of those that the environment shows
        "use_cpu": False,
        "main_training_function": "main",
        "dynamo_config": {"dynamo_backend": "NO"},
    }
    if devices["distributed_type"] == "fsdp":
        config["fsdp_config"] = dict(FSDP2)
    return config


def deepspeed_config(devices: Mapping[str, Any]) -> dict[str, Any]:
    """ZeRO of the stage asked for; "auto" takes Trainer's own arguments."""
    return {
        "zero_optimization": {
            "stage": devices["zero_stage"],
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "bf16": {"enabled": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,  # 8-bit Adam and the like
    }


def host_faults(config: RunConfig) -> list[Fault]:
    """What the section `devices` asks for and this host lacks, and what is computed on a GPU only."""
    devices = config.devices
    faults = []
    if devices.processes > 1 and devices.distributed_type != "ddp":
        faults = _sharing_faults(devices.distributed_type)
    gpus = [gpu["index"] for gpu in Sampler().gpus()]
    absent = [number for number in devices.gpu_ids.split(",") if number and int(number) not in gpus]
    if absent:
        there = ", ".join(map(str, gpus)) or "none that can be read"
        faults.append(
            Fault("devices.gpu_ids", devices.gpu_ids, f"This host has no GPU {', '.join(absent)}; there is {there}.",
                  "Name GPUs that are there, or leave it empty.")
        )  # fmt: skip
    elif gpus and devices.num_processes > len(gpus):
        faults.append(
            Fault("devices.num_processes", shown(devices.num_processes),
                  f"There is one process for each GPU, and this host has {len(gpus)}.",
                  f"Set it to {len(gpus)} or fewer.")
        )  # fmt: skip
    if unsupported := support.fault_of(config, model_type="", has_gpu=has_accelerator()):
        faults.append(unsupported)
    return faults


def _sharing_faults(distributed_type: str) -> list[Fault]:
    where, way_out = "devices.distributed_type", "Choose ddp."
    if not has_accelerator():
        rule = "The model is shared out between GPUs only, and this host has none; without one Accelerate would ignore it."
        return [Fault(where, distributed_type, rule, way_out)]
    if distributed_type == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        return [
            Fault(where, distributed_type, "The package deepspeed is not installed.",
                  "Install it (pip install deepspeed), or choose fsdp, which needs nothing more.")
        ]  # fmt: skip
    return []
