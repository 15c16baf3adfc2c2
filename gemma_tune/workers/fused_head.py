"""The output layer and its cross-entropy in one, for learned tokens only, never keeping the scores of the vocabulary.

The scores of some tokens at a time are computed, turned into their part of the loss and of its gradient, and given up:
two matrix products instead of the three of a backward pass that computes the scores again.
Shapes: N learned tokens, n of them at a time, V words of the vocabulary, D numbers of a hidden state. Scores stand as
(V, n): the products then read the weight (V, D) as it lies in memory, a third faster on a CPU.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

SCORES_BYTES = {"cpu": 2**27}  # of one chunk; more gains a CPU little
SCORES_BYTES_GPU = 2**30
BLOCK_BYTES = 2**20  # scores between two passes over them on a CPU: they stay in its cache
IGNORED = -100


@dataclass
class HeadOutput(ModelOutput):
    """loss: summed over the learned tokens, with gradient. learned_tokens, correct_tokens: how many; no gradient."""

    loss: Tensor | None = None
    learned_tokens: Tensor | None = None
    correct_tokens: Tensor | None = None


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    softcap: float | None = None,
    table: TiedTable | None = None,
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of `hidden` (N, D) against `labels` (N,), and how many are the likeliest word.

    `weight` (V, D) gets a gradient where it needs one, by way of its `table` if it has one. Computes in autocast's type
    where that is on.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(
            hidden, weight, labels, softcap, dtype, torch.is_grad_enabled(), table
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, softcap, dtype, differentiable, table):
        ctx.table = table
        tokens, words = hidden.to(dtype), weight.to(dtype)
        ctx.for_hidden = torch.empty_like(hidden) if differentiable and ctx.needs_input_grad[0] else None
        ctx.for_weight = torch.zeros_like(weight) if differentiable and ctx.needs_input_grad[1] else None
        loss, correct = hidden.new_zeros((), dtype=torch.float32), labels.new_zeros(())
        for start in range(0, len(labels), step := _chunk_tokens(words)):
            chunk = slice(start, start + step)
            summed, hits = _chunk(ctx, chunk, tokens[chunk], words, labels[chunk], softcap)
            loss += summed
            correct += hits
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, _):
        for_hidden, for_weight = (
            each if each is None else each.mul_(gradient) for each in (ctx.for_hidden, ctx.for_weight)
        )
        ctx.for_hidden = ctx.for_weight = None
        if ctx.table and for_weight is not None:
            ctx.table.take(for_weight)
            for_weight = None
        return for_hidden, for_weight, None, None, None, None, None


def _chunk(ctx, chunk: slice, tokens: Tensor, words: Tensor, labels: Tensor, softcap: float | None):
    """Loss and hits of some tokens; their gradients go into `ctx`.

    With exponentials E = exp(score - best) and their sums S, the gradient of a score is E / S - [word is the label].
    S is divided out of the small factor of each product and the label's part is added apart, so that E is the only
    thing ever written at the size of the scores.
    """
    scores = words @ tokens.t()
    slope = None
    if softcap:
        scores.div_(softcap).tanh_().mul_(softcap)
    best = scores.amax(0).float()
    target = scores.gather(0, labels[None])[0].float()
    wanted = ctx.for_hidden is not None or ctx.for_weight is not None
    sums = _exponentials(scores, best, softcap if wanted else None)
    if softcap:
        slope = 1 - (target / softcap).square()
    if ctx.for_hidden is not None:
        gradient = (scores.t() @ words).float().div_(sums[:, None])
        label_part = words[labels].float()
        ctx.for_hidden[chunk] = gradient.sub_(label_part if slope is None else label_part * slope[:, None])
    if ctx.for_weight is not None:
        _add_to_weight(ctx.for_weight, scores, tokens, labels, sums, slope)
    return (sums.log() + best - target).sum(), (target >= best).sum()


def _exponentials(scores: Tensor, best: Tensor, softcap: float | None) -> Tensor:
    """Replaces scores by E, times the slope of the soft cap, block by block; their sums before that, in float32 (n,)."""
    sums = torch.zeros_like(best)
    rows = len(scores)
    if scores.device.type == "cpu":
        rows = max(1, BLOCK_BYTES // (scores.shape[1] * 4))
    for block in scores.split(rows):
        wide = block.float()  # the block itself where it is float32
        slope = 1 - (wide / softcap).square() if softcap else None
        wide.sub_(best).exp_()
        sums += wide.sum(0)
        if slope is not None:
            wide.mul_(slope)
        if wide is not block:
            block.copy_(wide)
    return sums


def _add_to_weight(
    gradient: Tensor, scores: Tensor, tokens: Tensor, labels: Tensor, sums: Tensor, slope
) -> None:
    states = (tokens.float() / sums[:, None]).to(tokens.dtype)
    if gradient.dtype == scores.dtype:
        gradient.addmm_(scores, states)
    else:
        for rows, some in zip(gradient.split(2**14), scores.split(2**14), strict=True):
            rows += some @ states
    label_part = tokens if slope is None else tokens * slope[:, None]
    gradient.index_add_(0, labels, label_part.to(gradient.dtype), alpha=-1)


def _chunk_tokens(words: Tensor) -> int:
    scores_bytes = SCORES_BYTES.get(words.device.type, SCORES_BYTES_GPU)
    return max(16, scores_bytes // (len(words) * words.element_size()))


def add_fused_head(model: PreTrainedModel, table: TiedTable | None = None) -> None:
    """Lets `model(…, labels=…, fused_linear_cross_entropy=True)` return a HeadOutput; other calls stay as they are.

    `table`: the model's, if the gradient may take its way (not where processes add up theirs, nor in a compiled model).
    Within `forward`, so that DDP, FSDP and PEFT around the model see an ordinary call.
    """
    ordinary, text = model.forward, model.config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None)

    @functools.wraps(ordinary)  # Transformers reads the signature
    def forward(self, *args, fused_linear_cross_entropy: bool = False, **kwargs):
        if not fused_linear_cross_entropy:
            return ordinary(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        states = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state[:, :-1]
        weight = output_weight(self)
        labels = labels.to(weight.device)
        learned = labels != IGNORED
        hidden = states.to(weight.device)[learned]
        own = table if kwargs.get("input_ids") is not None else None  # the embeddings have to be read
        loss, correct = linear_cross_entropy(hidden, weight, labels[learned], softcap, own)
        return HeadOutput(loss=loss, learned_tokens=learned.sum(), correct_tokens=correct)

    model.forward = types.MethodType(forward, model)


class TiedTable:
    """The gradient of a float32 weight that is embeddings and head at once, on a CPU.

    Autograd would make one of the table's size for the head, a second for the embeddings and a third of both. Here the head
    hands in its own, and the rows that the embeddings read are added to it. (In a narrower type each row would be rounded.)
    """

    def __init__(self, embeddings: nn.Embedding):
        self.of_head: Tensor | None = None
        embeddings.sparse = True
        embeddings.weight.register_post_accumulate_grad_hook(self._join)

    @classmethod
    def of(cls, model: PreTrainedModel) -> TiedTable | None:
        """None where the model has no such weight, or does not train it."""
        embeddings, weight = model.get_input_embeddings(), model.get_output_embeddings().weight
        tied = isinstance(embeddings, nn.Embedding) and embeddings.weight is weight and weight.requires_grad
        plain = weight.dtype == torch.float32 and weight.device.type == "cpu"
        return cls(embeddings) if tied and plain else None

    def take(self, gradient: Tensor) -> None:
        self.of_head = gradient if self.of_head is None else self.of_head.add_(gradient)

    def _join(self, weight: nn.Parameter) -> None:
        """After the backward pass; `weight.grad` is dense only if it holds an earlier micro-batch's."""
        head, self.of_head = self.of_head, None
        if weight.grad.is_sparse:
            weight.grad = weight.grad.to_dense() if head is None else head.add_(weight.grad)
        elif head is not None:
            weight.grad.add_(head)


def output_weight(model: PreTrainedModel) -> Tensor:
    """The weight (V, D) in use, whole on this process."""
    weight = model.get_output_embeddings().weight
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
