"""What is not offered, and why: the one source for the page, the data check and the workers.

`docs/support.md` is the record behind it: every family, objective and method, trained at tiny size. No torch.
"""

from __future__ import annotations

from gemma_tune.errors import Fault
from gemma_tune.sections import RunConfig

# Transformers has a class for sequence classification of these, which a reward model is.
REWARD_MODEL_TYPES = ("gemma", "gemma2", "gemma3_text", "gemma3")
# Whose whole model is loaded and reads images. Gemma 3n's vision tower needs timm, and Transformers has no image processor
# for gemma4_unified without torchvision.
IMAGE_MODEL_TYPES = ("gemma3", "gemma4")
IMAGE_ATTENTION = (
    "auto",
    "sdpa",
    "eager",
)  # an image's tokens see each other both ways, which others do not mask
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


def fault_of(
    config: RunConfig, model_type: str, has_gpu: bool | None = None, images: bool = False
) -> Fault | None:
    """The same of a whole configuration. `images`: whether its rows hold some."""
    method = config.method
    if images and (found := _image_fault(config, model_type)):
        return found
    return fault(
        model_type,
        config.objective.type,
        method.type,
        init_lora_weights=method.init_lora_weights,
        use_dora=method.use_dora,
        has_gpu=has_gpu,
    )


# ---- rows with images ------------------------------------------------------------------------------------------------
def _image_fault(config: RunConfig, model_type: str) -> Fault | None:
    """Why rows with images cannot be learned from; None where they can."""
    if model_type and model_type not in IMAGE_MODEL_TYPES:
        return Fault(
            "model.id", f"{config.model.id}, {model_type}", "The rows hold images, and this kind of model reads none here.",
            f"Choose Gemma 3 from 4B on or Gemma 4 (model types {', '.join(IMAGE_MODEL_TYPES)}), or turn data.read_images off.",
        )  # fmt: skip
    if config.objective.type != "sft":
        return Fault("objective.type", config.objective.type, "Only answers are learned from rows with images.",
                     "Choose sft, or turn data.read_images off.")  # fmt: skip
    if config.train.packing:
        return Fault("train.packing", "True", "Rows with images are not packed: each image masks its own row.",
                     "Turn packing off.")  # fmt: skip
    if config.devices.distributed_type != "ddp":
        return Fault("devices.distributed_type", config.devices.distributed_type,
                     "Sharing out a model with a vision tower was never tried here.",
                     "Set it to ddp; where the model does not fit, choose the method qlora.")  # fmt: skip
    attention = config.model.attn_implementation
    if attention not in IMAGE_ATTENTION:
        return Fault("model.attn_implementation", attention,
                     "The tokens of an image see each other both ways, which it does not mask.",
                     "Choose auto, sdpa or eager.")  # fmt: skip
    return None
