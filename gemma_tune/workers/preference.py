"""The rows of every objective but supervised training, as columns of tokens that TRL's trainers take.

Torch-free. DPO and KTO cut their answers themselves; what would be cut away whole is left out before (`data.lengths`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from gemma_tune import data
from gemma_tune.config import RunConfig
from gemma_tune.data.rendering import NOT_LEARNED, ChatTokenizer

IDS = pa.list_(pa.int32())
Rows = Iterator[dict[str, object]]


def pairs(store: data.Store, tokens: data.Tokens, indices: np.ndarray, *rest: object) -> Rows:
    for index in indices:
        prompt, chosen, rejected = tokens.sides(index)
        yield {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def scored_pairs(store: data.Store, tokens: data.Tokens, indices: np.ndarray, *rest: object) -> Rows:
    """Both sides whole, as a reward model reads them."""
    for index in indices:
        prompt, chosen, rejected = tokens.sides(index)
        yield {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}


def labelled(
    store: data.Store, tokens: data.Tokens, indices: np.ndarray, config: RunConfig, chat: ChatTokenizer
) -> Rows:
    """Each with the answer of the row before it in its batch: from prompts with foreign answers KTO estimates its KL."""
    batch = config.train.per_device_train_batch_size
    for start in range(0, len(indices), batch):
        rows = [(index, *tokens.sides(index)) for index in indices[start : start + batch]]
        answers = [answer for _, _, answer, _ in rows]
        for (index, prompt, answer, _), foreign in zip(rows, [answers[-1], *answers[:-1]], strict=True):
            yield {
                "prompt_ids": prompt,
                "completion_ids": answer,
                "KL_completion_ids": foreign,
                "label": bool(store.facts["label"][index]),
            }


def odds(
    store: data.Store, tokens: data.Tokens, indices: np.ndarray, config: RunConfig, chat: ChatTokenizer
) -> Rows:
    """As ORPOTrainer.tokenize_row makes them: each answer ends with the end of text and is cut at the end."""
    limit = config.train.max_length
    for index in indices:
        prompt, *answers = tokens.sides(index)
        row: dict[str, object] = {}
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            ended = answer if answer[-1] == chat.eos_id else [*answer, chat.eos_id]
            ids = (prompt + ended)[:limit]
            row[f"{name}_input_ids"] = ids
            row[f"{name}_attention_mask"] = [1] * len(ids)
            row[f"{name}_labels"] = [NOT_LEARNED] * len(prompt) + ids[len(prompt) :]
        yield row


def prompts(
    store: data.Store, tokens: data.Tokens, indices: np.ndarray, config: RunConfig, chat: ChatTokenizer
) -> Rows:
    """A prompt and the row's own answer, which a reward may ask for; of a call as the model writes it."""
    calls = config.objective.reward == "tool_call"
    for index, row in zip(indices, store.rows(indices), strict=True):
        prompt, answer, _ = tokens.sides(index)
        wanted = chat.decode(answer, skip_special_tokens=False) if calls else row.messages[-1]["content"]
        yield {"prompt": prompt, "answer": wanted}


COLUMNS: dict[str, tuple[Callable[..., Rows], pa.Schema]] = {
    "dpo": (pairs, pa.schema([(name, IDS) for name in ("prompt_ids", "chosen_ids", "rejected_ids")])),
    "reward": (scored_pairs, pa.schema([("chosen_ids", IDS), ("rejected_ids", IDS)])),
    "kto": (
        labelled,
        pa.schema([*((name, IDS) for name in ("prompt_ids", "completion_ids", "KL_completion_ids")), ("label", pa.bool_())]),
    ),
    "orpo": (
        odds,
        pa.schema([(f"{side}_{name}", IDS) for side in ("chosen", "rejected") for name in ("input_ids", "attention_mask", "labels")]),
    ),
    "grpo": (prompts, pa.schema([("prompt", IDS), ("answer", pa.string())])),
}  # fmt: skip


def in_training_order(indices: np.ndarray, config: RunConfig) -> np.ndarray:
    """KTO's trainer takes the rows as they stand, so that batches stay together: mixed here, the same on every start."""
    if config.objective.type != "kto":
        return indices
    return np.random.default_rng(config.train.seed).permutation(indices)
