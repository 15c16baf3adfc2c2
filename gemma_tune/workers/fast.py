"""Which ways to less work a run takes, and why not the others. Each computes what the plain trainer computes."""

from __future__ import annotations

import types
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel
from trl import SFTConfig

from gemma_tune.config import RunConfig
from gemma_tune.workers import modeling
from gemma_tune.workers.documents import PER_DOCUMENT

NATIVE_PACKING = ("flex_attention", "flash_attention_2")  # keep documents apart by themselves
WEIGHT_OFFSET = {  # what a Gemma's norm adds to its weight, by class
    "GemmaRMSNorm": 1.0,
    "Gemma2RMSNorm": 1.0,
    "Gemma3RMSNorm": 1.0,
    "Gemma3nRMSNorm": 0.0,
    "Gemma4RMSNorm": 0.0,
    "Gemma4UnifiedRMSNorm": 0.0,
}


CPU_BFLOAT16_PARAMETERS = 50_000_000


@dataclass(frozen=True)
class Levers:
    """What is switched on, and a sentence for the user on each thing that was asked for and is not."""

    padding_free: bool
    attention: str | None  # a name of Transformers' attention functions; None leaves the model's own
    fused_head: bool
    fast_norm: bool
    reasons: tuple[str, ...] = ()


def levers(config: RunConfig, args: SFTConfig, model: PreTrainedModel) -> Levers:
    """`model` is the plain one, not yet in PEFT's hands."""
    train = config.train
    wants_documents = train.padding_free or args.packing
    against_documents = wants_documents and _against_documents(args, model)
    against_head = train.fused_linear_cross_entropy and _against_fused_head(args, model)
    documents = wants_documents and not against_documents
    own = model.config._attn_implementation
    return Levers(
        padding_free=documents,
        attention=PER_DOCUMENT.get(own) if documents else None,
        fused_head=train.fused_linear_cross_entropy and not against_head,
        fast_norm=not (args.use_liger_kernel or args.torch_compile),
        reasons=tuple(reason for reason in (against_documents, against_head) if reason),
    )


def _against_documents(args: SFTConfig, model: PreTrainedModel) -> str | None:
    """Why the rows of a batch have to be padded."""
    text, own = model.config.get_text_config(), model.config._attn_implementation
    if own not in (*PER_DOCUMENT, *NATIVE_PACKING):
        return f"Rows are padded: the attention {own} does not keep the documents of a row apart."
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        return (
            "Rows are padded: this model's attention looks ahead, which is not cut at the end of a document."
        )
    if hasattr(model.config, "vision_config"):
        return "Rows are padded: a model with a vision tower masks its images itself."
    if args.neftune_noise_alpha and not args.packing:
        return "Rows are padded: NEFTune scales its noise by the length of a row."
    if args.torch_compile and own in PER_DOCUMENT:
        return "Rows are padded: torch.compile would compile anew for every mix of documents."
    return None


def _against_fused_head(args: SFTConfig, model: PreTrainedModel) -> str | None:
    """Why the loss is left to TRL."""
    head = model.get_output_embeddings()
    if args.loss_type != "nll" or args.label_smoothing_factor:
        return (
            "The loss is computed by TRL: the fused one knows neither loss_type nor label_smoothing_factor."
        )
    if args.router_aux_loss_coef or getattr(model.config.get_text_config(), "router_aux_loss_coef", None):
        return "The loss is computed by TRL: the fused one has no part for the balance of the experts."
    if type(head) is not nn.Linear or head.bias is not None:
        return f"The loss is computed by TRL: the output layer is a {type(head).__name__}, not a plain one."
    if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
        return "The loss is computed by TRL: ZeRO stage 3 shares out the output layer."
    return None


def computes_bfloat16_fast() -> bool:
    """Whether this device multiplies bfloat16 in hardware: any recent GPU, a CPU with AVX512-BF16 or AMX.

    Others emulate it: measured on an AVX2 CPU, products take 8 to 250 times as long as in float32.
    """
    if torch.cuda.is_available():
        return modeling.computes_bfloat16()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def gains_from_bfloat16(parameters: int) -> bool:
    """Whether a model of that size trains faster so. On a CPU small ones only lose: each step casts all weights."""
    return computes_bfloat16_fast() and (torch.cuda.is_available() or parameters >= CPU_BFLOAT16_PARAMETERS)


def use_fast_norms(model: nn.Module) -> int:
    """Lets every RMS norm of a Gemma compute in fewer passes over memory; how many there are."""
    norms = [module for module in model.modules() if type(module).__name__ in WEIGHT_OFFSET]
    for norm in norms:
        norm.forward = types.MethodType(_rms_norm, norm)
    return len(norms)


def _rms_norm(self, x: Tensor) -> Tensor:
    """As the eager one: in float32, and only then in the type that came in."""
    weight = self.weight.float() + WEIGHT_OFFSET[type(self).__name__] if hasattr(self, "weight") else None
    if x.device.type != "cpu":
        return F.rms_norm(x.float(), x.shape[-1:], weight, self.eps).type_as(x)  # one kernel there
    return _RmsNorm.apply(x.float(), weight, self.eps).type_as(x)


class _RmsNorm(torch.autograd.Function):
    """On a CPU PyTorch's own is made of many small steps. These are fewer and keep less, and round as those do to the bit."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return x * scale if weight is None else (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = (x * scale).mul_(gradient).sum_to_size(weight.shape)
        if weight is not None:
            gradient = gradient * weight
        products = gradient * x
        shared = products.sum(-1, keepdim=True).mul_(-0.5).mul_(scale.pow(3)).div_(x.shape[-1]).mul_(2)
        return (gradient * scale).add_(torch.mul(x, shared, out=products)), for_weight, None
