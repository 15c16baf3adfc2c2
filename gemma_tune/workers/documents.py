"""Attention within each document of a batch that has no padding.

A micro-batch is one row of whole documents, one after the other: (1, T) tokens whose positions restart at 0. Attention
is called once per document, so that none sees another and no mask over all T × T pairs is ever made. Used under two
names of Transformers' attention functions, which have no mask function and so get no mask.
Shapes: T tokens, H query heads, K key heads, G = H / K, D numbers per head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedConfig

PER_DOCUMENT = {"sdpa": "sdpa_per_document", "eager": "eager_per_document"}  # model's own attention -> ours
VARLEN_HEAD_SIZE = 256  # the largest that PyTorch's flash kernels take


@contextmanager
def attending(config: PreTrainedConfig, implementation: str | None) -> Iterator[None]:
    """The model of this configuration computes attention so within the block; None leaves its own.

    Backward passes belong into the block too: gradient checkpointing calls the attention again there.
    """
    own = config._attn_implementation
    if implementation:
        config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = own


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: tuple[int, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    implementation: str,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Query (1, H, T, D), key and value (1, K, T, D) to (1, T, H, D). The lengths, in tokens, add up to T."""
    if _varlen_fits(query, softcap, dropout) and implementation == "sdpa":
        return _varlen(query, key, value, document_lengths, scaling, sliding_window), None
    one = partial(
        _scores_kept if implementation == "eager" else _fused,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout,
        softcap=softcap,
    )
    key_heads, window = key.shape[1], sliding_window or sum(document_lengths)
    grouped = query[0].unflatten(0, (key_heads, -1))  # (K, G, T, D): heads that share keys, side by side
    parts = zip(
        grouped.split(document_lengths, 2),
        key[0].unsqueeze(1).split(document_lengths, 2),
        value[0].unsqueeze(1).split(document_lengths, 2),
        strict=True,
    )
    outputs = [piece for part in parts for piece in _document(*part, window, one)]
    return torch.cat(outputs, 2).flatten(0, 1).transpose(0, 1).unsqueeze(0), None


def _document(query: Tensor, key: Tensor, value: Tensor, window: int, one) -> Iterator[Tensor]:
    """A document in pieces as long as the window: each sees itself and at most one piece before it."""
    length = query.shape[2]
    for start in range(0, length, window):
        end, first = min(start + window, length), max(0, start - window + 1)
        mask = _band(window, end - start, query.device) if start else None
        yield one(query[:, :, start:end], key[:, :, first:end], value[:, :, first:end], mask)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling, dropout, softcap
) -> Tensor:
    """`scaled_dot_product_attention`; causal where there is no mask. Keys are shared by stride, not copied."""
    if softcap is not None:
        raise ValueError("Fused attention cannot soft-cap its scores")
    shape = (-1, query.shape[1], -1, -1)
    return F.scaled_dot_product_attention(
        query,
        key.expand(shape),
        value.expand(shape),
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        scale=scaling,
    )


def _scores_kept(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling, dropout, softcap
) -> Tensor:
    """What the eager attention of Transformers' Gemmas computes, soft cap included."""
    scores = (query @ key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = _causal(query.shape[2], query.device)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return F.dropout(weights, dropout) @ value


def _varlen_fits(query: Tensor, softcap: float | None, dropout: float) -> bool:
    """Whether PyTorch's flash attention over documents of any length can be called: on a GPU, in half precision."""
    return (
        query.is_cuda
        and query.shape[-1] <= VARLEN_HEAD_SIZE
        and not softcap
        and not dropout
        and _half(query) is not None
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _half(query: Tensor) -> torch.dtype | None:
    """The 16-bit type in which attention is computed here, if it is one."""
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scaling, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    dtype = _half(query)
    query, key, value = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))
    ends = _ends(lengths, query.device)
    output = varlen_attn(
        query, key, value, ends, ends, max(lengths), max(lengths),
        scale=scaling, window_size=(window - 1 if window else -1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return output.unsqueeze(0)


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def _band(window: int, length: int, device: torch.device) -> Tensor:
    """(length, window - 1 + length): query i sees keys i to i + window - 1, of which the last is itself."""
    return _whole_band(window, device)[:length, : window - 1 + length]


@lru_cache(maxsize=4)
def _whole_band(window: int, device: torch.device) -> Tensor:
    return torch.ones(window, 2 * window - 1, dtype=torch.bool, device=device).triu().tril(window - 1)


@lru_cache(maxsize=4)
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor((0, *lengths), device=device).cumsum(0).to(torch.int32)


for own, name in PER_DOCUMENT.items():
    AttentionInterface.register(name, partial(attend, implementation=own))
