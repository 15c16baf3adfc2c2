"""What the very first step must show: labels to learn from, and a loss near what is expected. Else the run ends there."""

from __future__ import annotations

import math

import torch
from transformers import TrainerCallback

from gemma_tune.config import RunConfig
from gemma_tune.data.rendering import NOT_LEARNED
from gemma_tune.errors import RunError

GUESSING = 1.5  # times the loss of a model that knows nothing: ln of the vocabulary
DPO_MARGIN = 0.02  # of the first loss; bfloat16 rounds two passes over the same weights differently


class FirstLossError(RunError):
    """The first loss cannot be that of this model on these rows."""

    cause = "config"  # of the event


class NoLabelError(RunError):
    """The first batch holds nothing to learn."""

    cause = "data"


class FirstStepCallback(TrainerCallback):
    """Looks at a run's first batch and first loss; a run that is resumed has passed already."""

    def __init__(self, config: RunConfig) -> None:
        self._goal = config.objective
        self._hook = None

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if self._goal.type == "sft" and state.global_step == 0:
            self._hook = model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, model, inputs, named) -> None:
        self._remove_hook()
        labels = named.get("labels")
        if isinstance(labels, torch.Tensor) and not (labels != NOT_LEARNED).any():
            raise NoLabelError.at(
                "first batch", None, "None of its tokens is learned.",
                "Look at the rows in the data step: which of their words are answers?",
            )  # fmt: skip

    def on_log(self, args, state, control, logs=None, model=None, **kwargs) -> None:
        if state.global_step == 1 and logs and "loss" in logs:
            self._remove_hook()
            self._judge(logs["loss"], model.config.get_text_config().vocab_size)

    def _judge(self, loss: float, vocabulary: int) -> None:
        if not math.isfinite(loss):
            raise FirstLossError.at(
                "first loss", loss, "It is no number before anything was learned, so the weights or a setting spoil it.",
                "Set model.dtype to float32 and train.bf16 to off; if it stays so, download the model again.",
            )  # fmt: skip
        limit = GUESSING * math.log(vocabulary)
        if self._goal.type == "sft" and loss > limit:
            raise FirstLossError.at(
                "first loss", f"{loss:.2f}",
                f"Even a model that guesses at random has {math.log(vocabulary):.2f}; these weights are broken, or are not "
                "those of this model.",
                "Download the model again, or choose another attention (model.attn_implementation).",
            )  # fmt: skip
        if self._compares() and abs(loss - math.log(2)) > DPO_MARGIN:
            raise FirstLossError.at(
                "first loss", f"{loss:.4f}", f"DPO begins at ln 2 = {math.log(2):.4f}, since the model is its own reference.",
                "Leave advanced.trainer.disable_dropout on.",
            )  # fmt: skip

    def _compares(self) -> bool:
        """Whether the loss starts at ln 2 exactly."""
        goal = self._goal
        return goal.type == "dpo" and goal.loss_type in ("sigmoid", "robust") and not goal.sft_weight

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
