"""What is not offered, and why: the one source for the page, the data check and the workers.

`docs/support.md` is the record behind it: every family, objective and method, trained at tiny size. No torch.
"""

from __future__ import annotations

from gemma_tune.errors import Fault
from gemma_tune.sections import RunConfig

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
    has_gpu: bool | None = None,
) -> Fault | None:
    """Why this cannot be trained here; None where it can. Arguments are the settings' own values.

    `model_type`: the checkpoint's. It may be empty, and `has_gpu` None, while it is not known; then nothing is refused
    on its account. What does not apply to the method is ignored.
    """
    if objective == "reward" and model_type and model_type not in REWARD_MODEL_TYPES:
        return Fault(
            "objective.type", f"reward, with {model_type}", "Transformers has no reward model of this architecture.",
            f"Choose a model of one of these types: {', '.join(REWARD_MODEL_TYPES)}.",
        )  # fmt: skip
    if method_type == "full" or init_lora_weights not in TAKES_FROM_BASE:
        return None
    return _start_fault(method_type, init_lora_weights, use_dora, has_gpu)


def _start_fault(method_type: str, start: str, use_dora: bool, has_gpu: bool | None) -> Fault | None:
    where = "method.init_lora_weights"
    if method_type == "qlora":
        return Fault(where, start, "It needs the unquantized weights of the base.",
                     "Choose default or gaussian, or the method lora.")  # fmt: skip
    if start == "loftq" and has_gpu is False:
        return Fault(where, start, "PEFT computes it on a GPU only.", "Choose pissa or default.")
    if use_dora:
        return Fault("method.use_dora", "True",
                     f"The result of {start} is saved as a plain adapter, and DoRA's magnitudes have no place in one.",
                     "Turn DoRA off, or choose the LoRA start default.")  # fmt: skip
    return None


def refusal(model_type: str, objective: str = "sft", method_type: str = "lora", **more: object) -> str:
    """Why this cannot be trained here, one sentence; empty where it can. Arguments as in `fault`."""
    found = fault(model_type, objective, method_type, **more)
    return found.rule if found else ""


def fault_of(config: RunConfig, model_type: str, has_gpu: bool | None = None) -> Fault | None:
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
