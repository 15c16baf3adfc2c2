"""What is known of a run, from its events alone (`folding`). No clock, no files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OUTCOMES = ("finished", "stopped", "failed", "lost")


@dataclass(frozen=True)
class State:
    status: str = "queued"  # queued preparing training saving stopping finished stopped failed lost
    phase: str | None = None
    name: str = ""
    model: str = ""
    method: str = ""
    objective: str = ""
    source: str = ""
    created_time: float | None = None
    started_time: float | None = None  # of the current attempt
    ended_time: float | None = None  # of a lost run: its last sign of life
    last_time: float | None = None
    spent_seconds: float = 0.0  # of earlier attempts
    attempt: int = 0
    resume_step: int = 0
    behind: str | None = None  # the run that this one waits for
    machine_rank: int = 0  # of this host; losses and report of the run are on host 0
    step: int = 0
    max_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    train_points: tuple[tuple, ...] = ()  # (step, loss, learning_rate, grad_norm, time)
    eval_points: tuple[tuple, ...] = ()  # (step, eval_loss)
    measure_points: tuple[tuple, ...] = ()  # (step, {the objective's own measure: number})
    hardware_points: tuple[
        tuple, ...
    ] = ()  # (time, cpu_percent, memory_used_bytes, worker_rss_bytes, gpu_percent,
    # gpu_memory_used_bytes); the last two None without GPU, mean and sum over several
    hardware: dict | None = None
    pace_points: tuple[tuple, ...] = ()  # (time, step, tokens, step_seconds)
    checkpoints: tuple[tuple, ...] = ()  # (step, bytes)
    warnings: tuple[str, ...] = ()
    samples: tuple[dict, ...] = ()
    report: dict | None = None
    data: dict | None = None
    plan: dict | None = None
    stop_mode: str | None = None
    trained_step: int | None = None
    trained_stopped: bool | None = None
    saved: dict | None = None
    outcome: str | None = None
    exit_code: int | None = None
    cause: str | None = None
    message: str | None = None
    way_out: str | None = None
    log_tail: tuple[str, ...] = ()
    faults: tuple[dict, ...] = ()
    unreadable: int = 0  # torn lines that killed writers left

    @property
    def is_over(self) -> bool:
        return self.outcome is not None

    @property
    def is_live(self) -> bool:
        return not self.is_over

    @property
    def can_resume(self) -> bool:
        return self.is_over and self.outcome != "finished"

    @property
    def can_compare(self) -> bool:
        """Whether there is anything tuned that answers: the saved model or a checkpoint. A reward model writes nothing."""
        return bool(self.saved or self.checkpoints) and self.objective != "reward"

    @property
    def progress(self) -> float:
        """Share of the steps done, 0 to 1."""
        if self.outcome == "finished":
            return 1.0
        return min(self.step / self.max_steps, 1.0) if self.max_steps else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Over the latest metrics events, pauses for validation and saving left out. None: not known yet."""
        tokens = seconds = 0.0
        for (time0, step0, tokens0, _), (time1, step1, tokens1, step_seconds) in self._pace():
            if tokens0 is None or tokens1 is None:
                continue
            tokens += tokens1 - tokens0
            seconds += (step1 - step0) * step_seconds if step_seconds else time1 - time0
        return tokens / seconds if seconds > 0 else None

    @property
    def remaining_seconds(self) -> float | None:
        """At the pace of the latest metrics events, pauses included. None: not known, or not training."""
        if self.status != "training" or self.trained_step is not None:
            return None
        if not self.max_steps or len(self.pace_points) < 2:
            return None
        first, last = self.pace_points[0], self.pace_points[-1]
        steps = last[1] - first[1]
        return (self.max_steps - self.step) * (last[0] - first[0]) / steps if steps > 0 else None

    def elapsed_seconds(self, now: float) -> float:
        """Time spent in all attempts; `now` (unix seconds) ends that of a live one."""
        if self.started_time is None:
            return self.spent_seconds
        end = self.ended_time if self.is_over and self.ended_time is not None else now
        return self.spent_seconds + max(end - self.started_time, 0.0)

    def _pace(self) -> Iterable[tuple[tuple, tuple]]:
        return zip(self.pace_points, self.pace_points[1:], strict=False)
