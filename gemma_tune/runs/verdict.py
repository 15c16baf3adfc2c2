"""How a run ended, judged from what the worker said, its exit code and its log. Pure.

The worker's own `error` event comes first, then what is written down as done, then our own request to stop, then the
exit code and the log.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from gemma_tune.runs.evidence import Evidence
from gemma_tune.runs.state import State

TAIL_LINES = 40  # of the log go into the `ended` event
DISK_FULL_BYTES = 1_000_000
MEMORY_FULL_SHARE = 0.95  # of the machine's memory in the last sample before a SIGKILL
SIGKILL_CODES = (-signal.SIGKILL, 128 + signal.SIGKILL)
KILLED_CODES = (*SIGKILL_CODES, -signal.SIGTERM, 128 + signal.SIGTERM)

LOG_CAUSES = (  # the first that matches counts
    ("disk", re.compile(r"No space left on device|\[Errno 28\]|Disk quota exceeded")),
    (
        "out_of_memory",
        re.compile(r"out of memory|OutOfMemoryError|an't allocate memory|\bMemoryError\b", re.I),
    ),
    ("licence", re.compile(r"GatedRepoError|403 (Client Error|Forbidden)|access to .* is restricted", re.I)),
    (
        "token",
        re.compile(r"401 (Client Error|Unauthorized)|Invalid user token|LocalTokenNotFoundError", re.I),
    ),
)
EXIT_STATUS = re.compile(r"returned non-zero exit status (-?\d+)")  # said by `accelerate launch` of its child
EXIT_SIGNAL = re.compile(r"died with <Signals\.(SIG\w+): \d+>")
RANK_EXIT = re.compile(r"\bexitcode *: *(-?\d+)")  # said by torchrun of the rank that ended first
RANK_FAILED = re.compile(r"torch/distributed/elastic.* failed \(exitcode: ")
PEER_LOST = re.compile(
    r"Connection (closed|reset) by (remote )?peer|Connection refused|Broken pipe|Socket Timeout", re.I
)

ADVICE = {  # cause -> (what happened, what to do)
    "out_of_memory": (
        "The memory was not enough.",
        "Lower the batch size or the maximum length, keep gradient checkpointing on, or take a smaller model.",
    ),
    "disk": ("The disk is full.", "Free some space, then resume: the complete checkpoints are untouched."),
    "licence": (
        "The model's licence is not accepted for this account.",
        "Open the model's page on huggingface.co, accept its terms, then resume.",
    ),
    "token": (
        "The Hub did not accept the access token.",
        "Give a valid token of huggingface.co, then resume.",
    ),
    "data": ("The data cannot be trained on.", "Mend the rows named, then start a new run."),
    "config": ("The settings do not fit together.", "Mend the settings named, then start a new run."),
    "nan_loss": (
        "The loss became infinite or not a number.",
        "Lower the learning rate (a tenth is a good try) and start a new run.",
    ),
    "killed": (
        "The worker was killed from outside.",
        "The system may have run out of memory: lower the batch size, close other programs, then resume.",
    ),
    "peer": (
        "Another process or host of this run ended or cannot be reached, so this one could not go on.",
        "See the record of the other host and the log, then resume the run on every host.",
    ),
    "bug": (
        "The worker ended with an error that Gemma Tune does not know.",
        "The last lines of the log say more; if they do not help, report them.",
    ),
}


def judge(evidence: Evidence) -> dict:
    """The fields of the `ended` event."""
    code = worker_exit_code(evidence)
    verdict = {"exit_code": code, "log_tail": _workers_lines(evidence.log)[-TAIL_LINES:]}
    state = evidence.state
    if state.cause:
        return verdict | _failed(state.cause, state)
    if state.saved and code in (0, None):
        return verdict | (_stopped_and_kept(state) if state.trained_stopped else _finished(state))
    silent = code == 0 or (code is None and not _crashed(evidence.log))
    if state.machine_rank and state.trained_step is not None and code == 0:
        return verdict | _done_elsewhere(state)
    if evidence.stop_mode and (evidence.forced or evidence.stop_mode == "now" or silent):
        return verdict | _stopped(evidence)
    return verdict | _failed(_cause(evidence, code), state, _signal_text(code))


def lost(evidence: Evidence) -> dict:
    """The verdict when supervisor and worker are both gone: lost, unless the events or the log know better."""
    verdict = judge(evidence)
    known = evidence.state.cause or evidence.state.saved or evidence.stop_mode
    if known or _crashed(evidence.log):
        return verdict
    return verdict | {
        "outcome": "lost",
        "cause": None,
        "message": "The run and its supervisor are gone without a word: both were killed, or the machine restarted.",
        "way_out": _resume_text(evidence.checkpoint_step),
    }


def worker_exit_code(evidence: Evidence) -> int | None:
    """The worker's own code (negative: a signal), read from the launcher's last words where it has one."""
    if not evidence.exit_code:
        return evidence.exit_code
    for line in reversed(evidence.log):
        if match := EXIT_STATUS.search(line) or RANK_EXIT.search(line):
            return int(match[1])
        if match := EXIT_SIGNAL.search(line):
            return -signal.Signals[match[1]]
    return evidence.exit_code


def _workers_lines(log: Sequence[str]) -> list[str]:
    """The log without torchrun's own traceback and table, longer than the tail that is kept, after a rank's failure."""
    ends = (number for number, line in enumerate(log, 1) if RANK_FAILED.search(line))
    return list(log[: next(ends, len(log))])


def _cause(evidence: Evidence, code: int | None) -> str:
    if cause := _log_cause(evidence.log):
        return cause
    if evidence.free_bytes is not None and evidence.free_bytes < DISK_FULL_BYTES:
        return "disk"  # the log itself could not be written
    if code in KILLED_CODES or (code is None and not _crashed(evidence.log)):
        return (
            "out_of_memory"
            if code not in (-signal.SIGTERM, 128 + signal.SIGTERM) and _was_full(evidence)
            else "killed"
        )
    return "peer" if any(map(PEER_LOST.search, evidence.log)) else "bug"


def _was_full(evidence: Evidence) -> bool:
    """Whether the kernel ends processes for lack of memory: it counts them, and the memory was full in the last sample."""
    sample = evidence.state.hardware or {}
    used, total = sample.get("memory_used_bytes"), sample.get("memory_total_bytes")
    return evidence.oom_kills > 0 or bool(used and total and used >= MEMORY_FULL_SHARE * total)


def _crashed(log: Sequence[str]) -> bool:
    return any(line.startswith("Traceback (most recent call last)") for line in log) or bool(_log_cause(log))


def _log_cause(log: Sequence[str]) -> str | None:
    text = "\n".join(log)
    return next((cause for cause, pattern in LOG_CAUSES if pattern.search(text)), None)


def _failed(cause: str, state: State, detail: str = "") -> dict:
    message, way_out = ADVICE.get(cause, ADVICE["bug"])
    if state.faults:
        message = " ".join(fault.get("rule", "") for fault in state.faults) or message
        way_out = " ".join(fault.get("way_out", "") for fault in state.faults) or way_out
    return {"outcome": "failed", "cause": cause, "message": f"{message}{detail}", "way_out": way_out}


def _finished(state: State) -> dict:
    message = f"Finished after step {state.trained_step or state.step}; the model is saved."
    return {
        "outcome": "finished",
        "cause": None,
        "message": message,
        "way_out": "Compare it with the base model.",
    }


def _stopped_and_kept(state: State) -> dict:
    message = f"Stopped after step {state.trained_step or state.step}, as asked; the model is saved."
    return {
        "outcome": "stopped",
        "cause": None,
        "message": message,
        "way_out": "Compare it, or resume the training.",
    }


def _done_elsewhere(state: State) -> dict:
    """On a host that keeps no model itself."""
    outcome = "stopped" if state.trained_stopped else "finished"
    message = f"This host's part is done after step {state.trained_step}; the model is on host 0."
    return {"outcome": outcome, "cause": None, "message": message, "way_out": "See the run on host 0."}


def _stopped(evidence: Evidence) -> dict:
    message = "Stopped, as asked."
    if evidence.stop_mode == "keep" and evidence.forced and evidence.state.plan:
        message = "The worker did not finish its step and save in time, so it was ended."
    elif not evidence.state.step:
        message = "Stopped before the first step, as asked; there was nothing to keep."
    return {
        "outcome": "stopped",
        "cause": None,
        "message": message,
        "way_out": _resume_text(evidence.checkpoint_step),
    }


def _resume_text(step: int) -> str:
    return (
        f"Resume it: it goes on after step {step}." if step else "Resume it: it begins again from the start."
    )


def _signal_text(code: int | None) -> str:
    if code is None or code >= 0:
        return ""
    names = {known.value: known.name for known in signal.Signals}
    return f" (It was ended by {names.get(-code, f'signal {-code}')}.)"
