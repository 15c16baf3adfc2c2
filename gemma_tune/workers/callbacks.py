"""What a run tells and asks while it trains: events, whole checkpoints, a stop on request, an end at NaN.

The trainer calls these between steps, so everything here must be cheap (`benchmarks/overhead.py`). With several
processes every rank calls them; only the first one writes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from gemma_tune.errors import RunError
from gemma_tune.runs.checkpoints import write_marker
from gemma_tune.runs.folder import RunFolder
from gemma_tune.workers.validation import ValidationStopped

log = logging.getLogger(__name__)

Write = Callable[..., None]  # EventWriter.write, or nothing on the other ranks
STOP_MODES = (None, "keep", "now")
NO_MEASURE = frozenset(
    [
        "loss",
        "learning_rate",
        "grad_norm",
        "epoch",
        "num_tokens",
        "num_input_tokens_seen",
        "runtime",
        "step_time",
        "samples_per_second",
        "steps_per_second",
        "train_tokens_per_second",
    ]
)  # told in fields of their own, or not at all


class StoppedNow(Exception):
    """The user wants the process to end without saving."""


class NanLossError(RunError):
    """The loss or its gradient is no longer a number."""

    cause = "nan_loss"  # of the event


class EventCallback(TrainerCallback):
    """Writes plan, metrics, evaluated and checkpoint events, and ends the run where a number is none.

    Tokens are counted by TRL without padding; the sum over resumed attempts is kept in the trainer's own state.
    """

    def __init__(self, run: RunFolder, write: Write) -> None:
        self._run = run
        self._write = write
        self._earlier_tokens = 0
        self._step_began = 0.0
        self._training_seconds = 0.0
        self._last_logged_step = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self._earlier_tokens = state.num_input_tokens_seen
        self._last_logged_step = state.global_step
        self._write(
            "plan",
            max_steps=state.max_steps,
            num_train_epochs=state.num_train_epochs,
            parameters=sum(p.numel() for p in model.parameters()),
            trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            device=_device_name(args.device),
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        )

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._step_began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self._training_seconds += time.perf_counter() - self._step_began
        if control.should_save or control.should_evaluate:
            control.should_log = (
                True  # looks at the loss before a checkpoint is written, counts its tokens into it
            )
        return control

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not logs or "loss" not in logs:
            return  # of a validation, or the summary at the end
        refuse_nan(state.global_step, logs)
        if "num_tokens" in logs:  # not every trainer of TRL counts them
            state.num_input_tokens_seen = self._earlier_tokens + int(logs["num_tokens"])
        steps = max(state.global_step - self._last_logged_step, 1)
        fields = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "epoch": state.epoch,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "tokens": state.num_input_tokens_seen if "num_tokens" in logs else None,
            "step_seconds": self._training_seconds / steps,
            "measures": measures(logs),
        }
        self._training_seconds, self._last_logged_step = 0.0, state.global_step
        self._write("metrics", **fields)
        if state.is_world_process_zero:
            log.info(
                "step %d/%d  loss %.4f  learning rate %.2e  %.2f s",
                state.global_step, state.max_steps, logs["loss"], logs["learning_rate"], fields["step_seconds"],
            )  # fmt: skip

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        if metrics and "eval_loss" in metrics:
            self._write(
                "evaluated",
                step=state.global_step,
                eval_loss=metrics["eval_loss"],
                seconds=metrics["eval_runtime"],
                measures=measures({name.removeprefix("eval_"): value for name, value in metrics.items()}),
            )
            log.info(
                "step %d/%d  validation loss %.4f", state.global_step, state.max_steps, metrics["eval_loss"]
            )

    def on_save(self, args, state, control, **kwargs) -> None:
        PartialState().wait_for_everyone()  # each rank adds its own random state to the checkpoint
        if not args.should_save:  # one process of each host that keeps checkpoints
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        size = write_marker(folder)
        path = folder.relative_to(self._run.path).as_posix()
        self._write("checkpoint", step=state.global_step, path=path, bytes=size)
        log.info("checkpoint %s, %.1f MB", path, size / 1e6)


class StopCallback(TrainerCallback):
    """Looks for the user's stop after each step and within a validation; all ranks stop at the same one."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.stopped = False

    def on_step_end(self, args, state, control, **kwargs):
        if stop_mode(self._run):
            self._keep(control)  # a validation that is due still begins: it draws from the random numbers
            control.should_log = True
        return control

    def on_prediction_step(self, args, state, control, **kwargs) -> None:
        if stop_mode(self._run):
            self._keep(control)
            raise ValidationStopped

    def _keep(self, control) -> None:
        self.stopped = True
        control.should_training_stop = control.should_save = True


def stop_mode(run: RunFolder) -> str | None:
    """ "keep" where the user asked for it, the same on every rank. Raises StoppedNow."""
    state = PartialState()
    mode = STOP_MODES.index(run.stop_mode()) if state.is_local_main_process else 0
    if state.num_processes > 1:
        shared = torch.tensor(mode, device=state.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        mode = int(shared)
    if STOP_MODES[mode] == "now":
        raise StoppedNow
    return STOP_MODES[mode]


def measures(logs: dict[str, object]) -> dict[str, float]:
    """What the objective's own trainer measures, such as rewards/accuracies, kl or reward."""
    return {
        name: value
        for name, value in logs.items()
        if name not in NO_MEASURE and isinstance(value, int | float) and math.isfinite(value)
    }


def refuse_nan(step: int, logs: dict[str, float]) -> None:
    """A gradient that is not finite has already spoilt the weights, though the loss shows it only one step later."""
    for name in ("loss", "grad_norm"):
        value = logs.get(name)
        if value is not None and not math.isfinite(value):
            raise NanLossError.at(
                f"step {step}", f"{name} {value}", "Training diverged: its numbers are no longer finite.",
                "Lower the learning rate (a third is a good start) and resume from the last checkpoint, or start anew.",
            )  # fmt: skip


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
