"""What is not offered, and why: the one source for the page, the data check and the workers.

`docs/support.md` is the record behind it: every model, objective and method, trained at tiny size. No torch.
"""

from __future__ import annotations

from gemma_tune.catalog import MODEL_TYPES
from gemma_tune.config import RunConfig
from gemma_tune.errors import Fault, shown

# Transformers has a class for sequence classification of these, which a reward model is.
REWARD_MODEL_TYPES = ("gemma", "gemma2", "gemma3_text", "gemma3")
# Starts of an adapter that take a part of the base's weights out of the base.
TAKES_FROM_BASE = ("pissa", "olora", "loftq")


def fault(
    model_type: str,
    objective: str = "sft",
    method_type: str = "lora",
    *,
    init_lora_weights: str = "default",
    use_dora: bool = False,
    has_gpu: bool = False,
) -> Fault | None:
    """Why this cannot be trained here; None where it can. Arguments are the settings' own values.

    `model_type` is the checkpoint's; empty while it is not known, and then nothing of it is judged. Settings that do not
    apply to the method are ignored.
    """
    if model_type and model_type not in MODEL_TYPES:
        return Fault("model.id", shown(model_type), "No model of this type was tried here.",
                     f"Choose a model of one of these types: {', '.join(MODEL_TYPES)}.")  # fmt: skip
    if objective == "reward" and model_type and model_type not in REWARD_MODEL_TYPES:
        return Fault("objective.type", objective, f"Transformers has no reward model of the architecture {model_type}.",
                     f"Choose a model of one of these types: {', '.join(REWARD_MODEL_TYPES)}.")  # fmt: skip
    if method_type == "full":
        return None
    return _start_fault(method_type, init_lora_weights, use_dora, has_gpu)


def _start_fault(method_type: str, start: str, use_dora: bool, has_gpu: bool) -> Fault | None:
    if start not in TAKES_FROM_BASE:
        return None
    if method_type == "qlora":
        return Fault("method.init_lora_weights", start, "It needs the unquantized weights of the base.",
                     "Choose default or gaussian, or the method lora.")  # fmt: skip
    if start == "loftq" and not has_gpu:
        return Fault("method.init_lora_weights", start, "PEFT computes it on a GPU only.", "Choose pissa or default.")  # fmt: skip
    if use_dora:
        return Fault("method.use_dora", "True",
                     f"The result of {start} is saved as a plain adapter, and DoRA's magnitudes have no place in one.",
                     "Turn DoRA off, or choose the LoRA start default.")  # fmt: skip
    return None


def refusal(model_type: str, objective: str = "sft", method_type: str = "lora", **more: object) -> str:
    """Why this cannot be trained here, one sentence; empty where it can. Arguments as in `fault`."""
    found = fault(model_type, objective, method_type, **more)
    return found.rule if found else ""


def fault_of(config: RunConfig, model_type: str, has_gpu: bool) -> Fault | None:
    """The same of a whole configuration."""
    method = config.method
    return fault(
        model_type,
        config.objective.type,
        method.type,
        init_lora_weights=method.init_lora_weights,
        use_dora=method.use_dora,
        has_gpu=has_gpu,
    )
