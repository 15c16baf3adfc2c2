"""How long each row is for an objective, and whether anything of it is left to learn within the maximum length.

What is cut and what is left out is as TRL's trainers do it: DPO, KTO and ORPO cut the answers at the end, a reward model
leaves out a pair with a side that is too long, GRPO reads prompts only. A cut never goes through an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gemma_tune.config import RunConfig
from gemma_tune.data.tokens import Tokens

NO_LIMIT = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Lengths:
    """Of every row of a store, in tokens; each (n,)."""

    longest: np.ndarray  # of a pair the prompt with its longer answer, uncut
    prompt: np.ndarray  # before anything that is learned
    used: np.ndarray  # what the model reads of both sides, within the maximum length
    learned: np.ndarray  # of them those with loss; none where answers are generated
    usable: np.ndarray  # of bool: the others are left out
    cut: np.ndarray  # of bool


def lengths_of(tokens: Tokens, config: RunConfig) -> Lengths:
    limit = config.train.max_length
    kind = config.objective.type
    if kind == "sft":
        return _supervised(tokens, limit)
    if kind == "grpo":
        return _prompts(tokens, limit)
    prompt, sides = tokens.prompt_lengths, [tokens.lengths]
    if kind != "kto":
        sides.append(tokens.other_lengths)
    longest = np.max(sides, axis=0)
    used = np.sum(np.minimum(sides, limit), axis=0)
    learned = np.sum([np.clip(np.minimum(side, limit) - prompt, 0, None) for side in sides], axis=0)
    usable = (np.min(sides, axis=0) > prompt) & (prompt < limit)
    if kind == "reward":
        usable &= longest <= limit
        return Lengths(longest, prompt, used, learned * usable, usable, np.zeros(len(longest), bool))
    return Lengths(longest, prompt, used, learned * usable, usable, longest > limit)


def _supervised(tokens: Tokens, limit: int) -> Lengths:
    whole = tokens.image_ends <= limit  # of every row, those of its images
    learned = tokens.learned(limit) * whole
    used = np.minimum(tokens.lengths, limit)
    return Lengths(
        tokens.lengths, tokens.before_learned(), used, learned, learned > 0, tokens.lengths > limit
    )


def _prompts(tokens: Tokens, limit: int) -> Lengths:
    prompt = tokens.prompt_lengths
    usable = (prompt > 0) & (prompt < limit)
    none = np.zeros(len(prompt), np.int32)
    return Lengths(prompt, prompt, np.minimum(prompt, limit), none, usable, none.astype(bool))
