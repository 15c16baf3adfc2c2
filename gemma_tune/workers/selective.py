"""Selective activation checkpointing: of each layer the costly results are kept, all else is computed again.

A number of a product's result costs as many multiplications as its input is wide. Kept are the results that cost the
most for their memory: those at most KEPT_WIDTH times as wide as their input. In a Gemma these are of the projections of
attention and of the MLP's way back; not the MLP's wide inner states, nor what an adapter adds.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from gemma_tune.geometry import KEPT_WIDTH


def arguments() -> dict:
    """For `activation_checkpointing_kwargs`."""
    return {"use_reentrant": False, "context_fn": _contexts}


def _contexts():
    return create_selective_checkpoint_contexts(_policy)


def _policy(context, operator, *args, **kwargs) -> CheckpointPolicy:
    if operator is torch.ops.aten.mm.default and args[1].shape[1] <= KEPT_WIDTH * args[0].shape[1]:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
