"""Checks against what Transformers, PEFT, TRL and bitsandbytes let pass, and then spoil without a word.

A guard refuses with an error of ours, or changes something and gives back the plain sentence to tell about it; empty
where there is nothing to tell.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from torch import nn

from gemma_tune.config import RunConfig
from gemma_tune.errors import ConfigError, ModelError

# Gemma 3's and 3n's text models have these in the tokenizer, without an embedding.
MULTIMODAL_TOKENS = {"<image_soft_token>", "<audio_soft_token>"}
FLASH_HEAD_DIM = 256  # the widest head that flash attention 2 computes
LEAKY_PACKING = "wrapped"  # cuts documents anywhere and lets each see the one before it
SCORE_HEAD = "score.weight"  # a reward model's own layer, which no checkpoint of a language model has


# ---- weights and tokens ----------------------------------------------------------------------------------------------
def refuse_random_weights(folder: Path, loading: dict) -> None:
    """Transformers fills what it does not find with random numbers and goes on."""
    missing = sorted(set(loading["missing_keys"]) - {SCORE_HEAD}) + sorted(
        map(str, loading["mismatched_keys"])
    )
    if missing:
        raise ModelError.at(
            str(folder), ", ".join(missing[:3]),
            f"The checkpoint lacks {len(missing)} weights of the model; they would be random.",
            "Download it again, or choose a complete checkpoint.",
        )  # fmt: skip


def refuse_foreign_tokenizer(tokenizer, model: transformers.PreTrainedModel) -> None:
    """Every token must have an embedding, and the control tokens the ids that the model was trained with."""
    rows = embedded_tokens(model)
    beyond = [
        token
        for token, index in tokenizer.get_vocab().items()
        if index >= rows and token not in MULTIMODAL_TOKENS
    ]
    if beyond:
        raise ModelError.at(
            "tokenizer", ", ".join(beyond[:3]),
            f"{len(beyond)} of its tokens lie beyond the {rows:,} embeddings of the model.",
            "Use the tokenizer that belongs to the model.",
        )  # fmt: skip
    for name in ("bos_token_id", "pad_token_id"):
        ours, theirs = getattr(tokenizer, name), getattr(model.config.get_text_config(), name, None)
        if None not in (ours, theirs) and ours != theirs:
            raise ModelError.at(
                f"tokenizer.{name}", ours, f"The model was trained with {theirs}.",
                "Use the tokenizer that belongs to the model.",
            )  # fmt: skip


def embedded_tokens(model: transformers.PreTrainedModel) -> int:
    """How many ids the model can read: Gemma 3n's table of embeddings per layer is shorter than the main one."""
    tables = [module for name, module in model.named_modules() if name.endswith("embed_tokens_per_layer")]
    return min(table.weight.shape[0] for table in [model.get_input_embeddings(), *tables])


# ---- number formats --------------------------------------------------------------------------------------------------
def refuse_float16(dtype: torch.dtype) -> None:
    """Gemma's activations pass 65,504, the largest number of float16: losses become NaN."""
    if dtype == torch.float16:
        raise ConfigError.at(
            "model.dtype", "float16", "Gemma's activations overflow in float16.", "Use bfloat16 or float32."
        )


def float16_note(config: transformers.PreTrainedConfig, dtype: torch.dtype) -> str:
    if config.dtype != torch.float16:
        return ""
    name = str(dtype).removeprefix("torch.")
    return (
        f"The checkpoint is stored in float16, in which Gemma's activations overflow; it is loaded as {name}."
    )


# ---- attention -------------------------------------------------------------------------------------------------------
def attention_of(config: transformers.PreTrainedConfig, asked: str = "auto") -> str:
    """The attention that the model's scores allow: `asked`, or the best one. Raises ConfigError where it would be wrong.

    `config` is the text model's.
    """
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if asked == "auto":
        return "eager" if capped else "sdpa"
    if asked == "sdpa" and capped:
        raise _wrong_attention(asked, "This model soft-caps its attention scores, which sdpa cannot.", "eager or flex_attention")  # fmt: skip
    if asked == "flash_attention_2" and (widest := widest_head(config)) > FLASH_HEAD_DIM:
        raise _wrong_attention(
            asked, f"This model has heads {widest} wide, and flash attention 2 stops at {FLASH_HEAD_DIM}.", "sdpa or flex_attention"
        )  # fmt: skip
    if asked in ("flash_attention_2", "flex_attention") and not torch.cuda.is_available():
        raise _wrong_attention(asked, "It needs a GPU to train.", "auto")
    if asked == "flash_attention_2" and not transformers.utils.is_flash_attn_2_available():
        raise _wrong_attention(asked, "The package flash-attn is not installed.", "auto")
    return asked


def widest_head(config: transformers.PreTrainedConfig) -> int:
    """Gemma 4's global layers have heads of their own width."""
    layers = getattr(config, "per_layer_config", None)
    if layers is None:
        return config.head_dim
    return max(layers[index].head_dim for index in range(config.num_hidden_layers))


def _wrong_attention(asked: str, rule: str, instead: str) -> ConfigError:
    return ConfigError.at("model.attn_implementation", asked, rule, f"Choose {instead}.")


# ---- training --------------------------------------------------------------------------------------------------------
def refuse_leaky_packing(config: RunConfig) -> None:
    if config.train.packing and config.advanced.trainer.get("packing_strategy") == LEAKY_PACKING:
        raise ConfigError.at(
            "advanced.trainer.packing_strategy", LEAKY_PACKING,
            "It lets documents that share a row read each other.", "Use bfd or bfd_split.",
        )  # fmt: skip


def refuse_other_task(config: RunConfig, adapter: Path) -> None:
    """An adapter of a reward model carries that model's head; any other one would leave a new head untrained."""
    task = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("task_type")
    scores, wanted = task == "SEQ_CLS", config.objective.type == "reward"
    if scores != wanted:
        raise ModelError.at(
            "model.id", config.model.id,
            "Its adapter gives scores and writes no answers." if scores else "Its adapter belongs to a model that answers.",
            "Go on from a run with the method full, or from another model.",
        )  # fmt: skip


def refuse_other_model(config: RunConfig, adapter: Path, images: bool) -> None:
    """An adapter of a whole multimodal model names its layers otherwise than one of the text model alone."""
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        return  # told where it is loaded
    with safe_open(weights, "pt") as file:
        of_whole = any(".language_model." in name for name in file.keys())  # noqa: SIM118 (not a mapping)
    if of_whole == images:
        return
    fits, now = ("the whole model", "hold no images") if of_whole else ("the text model alone", "hold images")
    raise ModelError.at(
        "model.id", config.model.id, f"Its adapter belongs to {fits}, and the rows of this run {now}.",
        "Go on from a run with the method full, or begin from the base.",
    )  # fmt: skip


def refuse_reentrant_checkpointing(config: RunConfig, model: nn.Module) -> None:
    """Layers that share keys and values get no gradient through them from a reentrant checkpoint, as TRL must use it here.

    Measured on Gemma 3n and 4: up to 59 % of the gradient of a key projection is lost, and the loss shows nothing.
    """
    adapter = config.method.type != "full"
    if adapter and config.devices.is_zero_3 and config.train.activation_checkpointing and shares_keys(model):
        raise ConfigError.at(
            "train.activation_checkpointing", True,
            "With DeepSpeed ZeRO-3 and an adapter it loses gradients in this model, whose layers share keys and values.",
            "Turn it off, or set devices.zero_stage to 2 or devices.distributed_type to fsdp.",
        )  # fmt: skip


def shares_keys(model: nn.Module) -> bool:
    return getattr(model.config.get_text_config(), "num_kv_shared_layers", 0) > 0


def expert_parameters(model: nn.Module) -> int:
    """Parameters of a mixture's experts: tensors of three dimensions, which neither LoRA's layers nor bitsandbytes see."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".experts." in name and parameter.dim() == 3
    )


def frozen_experts_note(model: nn.Module) -> str:
    """What LoRA leaves alone in a mixture of experts."""
    if not (experts := expert_parameters(model)):
        return ""
    return (
        f"The adapter trains attention and dense layers only: the {experts:,} parameters of the experts stay as they "
        "are. Name experts.gate_up_proj and experts.down_proj in advanced.lora.target_parameters to train them too."
    )


def unquantized_parameters(model: nn.Module) -> dict[str, int]:
    """How many numbers of a quantized model keep their full width: in embeddings, in experts, and elsewhere."""
    from bitsandbytes.nn import Int8Params, Params4bit

    counts = {"embeddings": 0, "experts": 0, "other": 0}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, Int8Params | Params4bit):
            continue
        embeds = "embed_tokens" in name or name.startswith("lm_head")
        kind = "embeddings" if embeds else "experts" if ".experts." in name else "other"
        counts[kind] += parameter.numel()
    return counts


def unquantized_experts_note(model: nn.Module) -> str:
    if not (experts := unquantized_parameters(model)["experts"]):
        return ""
    return (
        f"bitsandbytes does not quantize experts: {experts:,} parameters keep their full width and take "
        f"{experts * model.dtype.itemsize / 1e9:,.1f} GB."
    )
