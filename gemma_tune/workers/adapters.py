"""The adapter of a run: put on, and brought into a plain form where it began with a part of the base's weights.

PiSSA and OLoRA take the main directions of each weight W out of the base and begin the adapter with them: W = rest + sBA.
Such an adapter means nothing on the base as others have it. The change s(B'A' - BA) is a plain adapter of twice the rank.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from gemma_tune import support
from gemma_tune.config import RunConfig
from gemma_tune.runs.folder import write_json
from gemma_tune.workers import arguments, modeling

Origin = dict[str, torch.Tensor]  # the adapter's tensors before the first step, by the names of its file


def adapter_config(config: RunConfig, model) -> LoraConfig | None:
    """Of a new adapter; None where there is none to make: full fine-tuning, or one that is trained further."""
    if config.method.type == "full" or isinstance(model, PeftModel):
        return None
    return arguments.lora_config(config, modeling.lora_targets(model, config.method.target_modules))


def takes_from_base(wanted: LoraConfig | None) -> bool:
    return wanted is not None and wanted.init_lora_weights in support.TAKES_FROM_BASE


def begun(model, wanted: LoraConfig) -> tuple[PeftModel, Origin]:
    """The model with an adapter that began with its weights.

    Its configuration says that nothing is taken: TRL makes a reference of it by a second adapter alike, which would take
    from the base again.
    """
    adapted = get_peft_model(model, wanted)
    adapted.peft_config["default"].init_lora_weights = True
    return adapted, {name: one.detach().clone() for name, one in get_peft_model_state_dict(adapted).items()}


def make_plain(folder: Path, origin: Origin) -> None:
    """Rewrites the adapter in a folder as one that fits the base as it was."""
    path = folder / "adapter_model.safetensors"
    tensors = {
        name: torch.cat([one, _beside(name, origin[name]).to(one)], dim=0 if "lora_A" in name else 1)
        for name, one in load_file(path).items()
    }
    save_file({name: one.contiguous() for name, one in tensors.items()}, path, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    growth = math.sqrt(2) if values.get("use_rslora") else 2  # keeps the scale, alpha / r or alpha / √r
    write_json(
        path,
        values
        | {
            "r": 2 * values["r"],
            "lora_alpha": growth * values["lora_alpha"],
            "rank_pattern": {name: 2 * rank for name, rank in values.get("rank_pattern", {}).items()},
            "alpha_pattern": {name: growth * one for name, one in values.get("alpha_pattern", {}).items()},
            "init_lora_weights": True,
            "loftq_config": {},
        },
    )


def _beside(name: str, begun_with: torch.Tensor) -> torch.Tensor:
    return begun_with if "lora_A" in name else -begun_with
