"""Which rows an objective can learn from, and what to choose where it can learn from none of them."""

from __future__ import annotations

import numpy as np

from gemma_tune.config import RunConfig
from gemma_tune.data.facts import KINDS
from gemma_tune.errors import Fault
from gemma_tune.objectives import OBJECTIVES

WORDS = {
    "messages": "conversations",
    "pair": "pairs of a chosen and a rejected answer",
    "label": "answers labelled as good or bad",
    "text": "plain texts",
}


def fitting(facts: np.ndarray, objective: str) -> np.ndarray:
    """(n,) of bool. Supervised training takes the chosen answers of pairs and the good ones of labelled answers."""
    kinds = [KINDS.index(kind) for kind in OBJECTIVES[objective].rows]
    fits = np.isin(facts["kind"], kinds)
    return fits & (facts["label"] != 0) if objective == "sft" else fits


def misfits(facts: np.ndarray, rows: np.ndarray, config: RunConfig) -> tuple[list[Fault], list[Fault]]:
    """(faults, warnings) over the kinds of the rows, which are given by their index."""
    objective = config.objective.type
    kinds = np.bincount(facts["kind"][rows], minlength=len(KINDS))
    wanted = OBJECTIVES[objective].rows
    other = {
        kind: int(count) for kind, count in zip(KINDS, kinds, strict=True) if count and kind not in wanted
    }
    if not other:
        return _reward_faults(facts, rows, config), _label_warnings(facts, rows, objective)
    met = " and ".join(f"{count:,} {WORDS[kind]}" for kind, count in other.items())
    learns = f"{OBJECTIVES[objective].label} learns from {_listed(wanted)}"
    if sum(other.values()) < len(rows):
        return [], [Fault("objective.type", objective, f"{learns}; {met} are not used.", _way_out(other))]
    return [Fault("objective.type", objective, f"{learns}, but the data hold {met}.", _way_out(other))], []


def _listed(kinds: tuple[str, ...]) -> str:
    return " or ".join(WORDS[kind] for kind in kinds)


def _way_out(kinds: dict[str, int]) -> str:
    fit = [name for name, one in OBJECTIVES.items() if set(kinds) <= set(one.rows)]
    return f"Choose {' or '.join(fit)} for them, or map other columns (data.columns)."


def _label_warnings(facts: np.ndarray, rows: np.ndarray, objective: str) -> list[Fault]:
    labels = np.unique(facts["label"][rows])
    if objective != "kto" or len(labels) != 1:
        return []
    which, missing = ("good", "bad") if labels[0] else ("bad", "good")
    return [
        Fault("objective.type", objective, f"Every answer is labelled as {which}, so there is nothing to tell apart.",
              f"Add {missing} answers, or check the label column (data.columns.label).")
    ]  # fmt: skip


def _reward_faults(facts: np.ndarray, rows: np.ndarray, config: RunConfig) -> list[Fault]:
    goal = config.objective
    if goal.type != "grpo" or goal.reward != "tool_call" or not len(rows) or facts["tools"][rows].any():
        return []
    return [
        Fault("objective.reward", goal.reward, "No row has functions that could be called.",
              "Add a tools column, or choose another reward.")
    ]  # fmt: skip
