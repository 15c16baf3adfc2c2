"""From events to the state of a run: a pure fold. No clock, no files; fold(a + b) == fold(b, fold(a)).

Unknown kinds and fields change nothing, and a field that is missing or of another type counts as unknown. Within a
fold the state lies open as a dictionary with lists (`Draft`); it is frozen again at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from gemma_tune.runs.state import OUTCOMES, State

PHASE_STATUS = {
    "downloading": "preparing",
    "tokenizing": "preparing",
    "loading": "preparing",
    "training": "training",
    "evaluating": "training",
    "saving": "saving",
}
PACE_POINTS = 20  # the latest metrics events that speed and remaining time are computed from
ENVELOPE = ("seq", "by", "time", "kind")

Draft = dict[str, Any]
NAMES = tuple(field.name for field in fields(State))
SERIES = tuple(name for name in NAMES if isinstance(getattr(State, name), tuple))


def fold(events: Iterable[dict], state: State = State()) -> State:
    """The state after further events. About 5 µs each."""
    draft = {name: getattr(state, name) for name in NAMES}
    for name in SERIES:
        draft[name] = list(draft[name])
    for event in events:
        handler = HANDLERS.get(event.get("kind"))
        if handler is None:
            continue
        handler(draft, event)
        time = _number(event, "time")
        if time is not None and event["kind"] != "ended":
            draft["last_time"] = max(time, draft["last_time"] or time)
    for name in SERIES:
        draft[name] = tuple(draft[name])
    return State(**draft)


def _created(draft: Draft, event: dict) -> None:
    for name in ("name", "model", "method", "objective", "source"):
        draft[name] = _text(event, name) or draft[name]
    draft["created_time"] = _number(event, "time")


def _queued(draft: Draft, event: dict) -> None:
    _forget_end(draft)
    draft["status"] = "stopping" if draft["stop_mode"] else "queued"
    draft["behind"] = _text(event, "behind") or None


def _started(draft: Draft, event: dict) -> None:
    _forget_end(draft)
    if (
        draft["started_time"] is not None
    ):  # again, without an end: the run ran out of memory and goes on smaller
        draft["spent_seconds"] += max((_number(event, "time") or 0.0) - draft["started_time"], 0.0)
        draft.update(cause=None, faults=[])
    step = _whole(event, "resume_step") or 0
    draft.update(
        status="stopping" if draft["stop_mode"] else "preparing",
        behind=None,
        attempt=_whole(event, "attempt") or draft["attempt"] + 1,
        resume_step=step,
        machine_rank=_whole(event, "machine_rank") or 0,
        started_time=_number(event, "time"),
        plan=None,
        trained_step=None,
        trained_stopped=None,
        saved=None,
        report=None,
        samples=[],
        pace_points=[],
    )
    for name in ("train_points", "eval_points", "measure_points", "checkpoints"):
        draft[name] = [point for point in draft[name] if point[0] <= step]
    last = draft["train_points"][-1] if draft["train_points"] else (0, None, None, None)
    draft.update(step=step, loss=last[1], learning_rate=last[2], grad_norm=last[3], epoch=None, tokens=None)
    losses = [loss for _, loss in draft["eval_points"]]
    draft.update(eval_loss=losses[-1] if losses else None, best_eval_loss=min(losses, default=None))


def _forget_end(draft: Draft) -> None:
    """A new attempt begins: what the last one ended with stays in the events only."""
    if draft["outcome"] is None:
        return
    if draft["started_time"] is not None and draft["ended_time"] is not None:
        draft["spent_seconds"] += max(draft["ended_time"] - draft["started_time"], 0.0)
    nothing = (
        "phase",
        "started_time",
        "ended_time",
        "stop_mode",
        "outcome",
        "exit_code",
        "cause",
        "message",
        "way_out",
    )
    draft.update(dict.fromkeys(nothing), log_tail=[], faults=[])


def _phase(draft: Draft, event: dict) -> None:
    draft["phase"] = _text(event, "name") or draft["phase"]
    _go(draft, PHASE_STATUS.get(draft["phase"]))


def _data(draft: Draft, event: dict) -> None:
    draft["data"] = _payload(event)


def _plan(draft: Draft, event: dict) -> None:
    draft["plan"] = _payload(event)
    draft["max_steps"] = _whole(event, "max_steps") or draft["max_steps"]


def _metrics(draft: Draft, event: dict) -> None:
    step = _whole(event, "step")
    if step is None:
        return
    _go(draft, "training")
    draft["step"] = step
    draft["max_steps"] = _whole(event, "max_steps") or draft["max_steps"]
    for name in ("epoch", "loss", "learning_rate", "grad_norm"):
        draft[name] = _number(event, name)
    tokens, time = _whole(event, "tokens"), _number(event, "time")
    draft["tokens"] = draft["tokens"] if tokens is None else tokens
    for name in ("train_points", "measure_points"):
        while draft[name] and draft[name][-1][0] >= step:
            draft[name].pop()  # another host had no later checkpoint, so all went further back
    if draft["loss"] is not None:
        draft["train_points"].append((step, draft["loss"], draft["learning_rate"], draft["grad_norm"], time))
    if measures := _measures(event):
        draft["measure_points"].append((step, measures))
    if time is not None:
        draft["pace_points"].append((time, step, tokens, _number(event, "step_seconds")))
        del draft["pace_points"][:-PACE_POINTS]


def _measures(event: dict) -> dict[str, float]:
    """What the objective tells beside the loss, such as rewards/margins; nothing of another type."""
    told = event.get("measures")
    names = told if isinstance(told, dict) else {}
    return {name: value for name in names if (value := _number(told, name)) is not None}


def _evaluated(draft: Draft, event: dict) -> None:
    step, loss = _whole(event, "step"), _number(event, "eval_loss")
    if step is None or loss is None:
        return
    draft["eval_points"].append((step, loss))
    draft["eval_loss"] = loss
    best = draft["best_eval_loss"]
    draft["best_eval_loss"] = loss if best is None else min(loss, best)


def _report(draft: Draft, event: dict) -> None:
    draft["report"] = _payload(event)


def _sample(draft: Draft, event: dict) -> None:
    draft["samples"].append(_payload(event))


def _hardware(draft: Draft, event: dict) -> None:
    draft["hardware"] = _payload(event)
    gpus = event.get("gpus")
    gpus = [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    loads = [load for gpu in gpus if (load := _number(gpu, "utilization_percent")) is not None]
    memory = [used for gpu in gpus if (used := _whole(gpu, "memory_used_bytes")) is not None]
    draft["hardware_points"].append(
        (
            _number(event, "time"),
            _number(event, "cpu_percent"),
            _whole(event, "memory_used_bytes"),
            _whole(event, "worker_rss_bytes"),
            sum(loads) / len(loads) if loads else None,
            sum(memory) if memory else None,
        )
    )


def _checkpoint(draft: Draft, event: dict) -> None:
    step = _whole(event, "step")
    if step is not None:
        others = [point for point in draft["checkpoints"] if point[0] != step]
        draft["checkpoints"] = [*others, (step, _whole(event, "bytes"))]


def _warning(draft: Draft, event: dict) -> None:
    message = _text(event, "message")
    if message and message not in draft["warnings"]:
        draft["warnings"].append(message)


def _stop_requested(draft: Draft, event: dict) -> None:
    if draft["outcome"] is not None:
        return  # it came too late: the run had ended by itself
    draft["stop_mode"] = "now" if "now" in (event.get("mode"), draft["stop_mode"]) else "keep"
    draft["status"] = "stopping"


def _error(draft: Draft, event: dict) -> None:
    faults = event.get("faults")
    draft["cause"] = _text(event, "cause")
    draft["faults"] = (
        [fault for fault in faults if isinstance(fault, dict)] if isinstance(faults, list) else []
    )


def _trained(draft: Draft, event: dict) -> None:
    draft["trained_step"] = _whole(event, "step")
    draft["trained_stopped"] = event.get("stopped") is True


def _saved(draft: Draft, event: dict) -> None:
    draft["saved"] = _payload(event)


def _ended(draft: Draft, event: dict) -> None:
    outcome = event.get("outcome")
    if outcome not in OUTCOMES or draft["outcome"] is not None:
        return
    tail = event.get("log_tail")
    draft.update(
        status=outcome,
        outcome=outcome,
        behind=None,
        ended_time=draft["last_time"] if outcome == "lost" else _number(event, "time"),
        exit_code=_whole(event, "exit_code"),
        cause=_text(event, "cause"),
        message=_text(event, "message"),
        way_out=_text(event, "way_out"),
        log_tail=[line for line in tail if isinstance(line, str)] if isinstance(tail, list) else [],
    )


def _unreadable(draft: Draft, event: dict) -> None:
    draft["unreadable"] += 1


HANDLERS: dict[Any, Callable[[Draft, dict], None]] = {
    "created": _created,
    "queued": _queued,
    "started": _started,
    "phase": _phase,
    "data": _data,
    "plan": _plan,
    "metrics": _metrics,
    "evaluated": _evaluated,
    "report": _report,
    "sample": _sample,
    "hardware": _hardware,
    "checkpoint": _checkpoint,
    "warning": _warning,
    "stop_requested": _stop_requested,
    "error": _error,
    "trained": _trained,
    "saved": _saved,
    "ended": _ended,
    "unreadable": _unreadable,
}


def _go(draft: Draft, status: str | None) -> None:
    """On to a status of a live run; a requested stop outshines it."""
    if status and draft["outcome"] is None and not draft["stop_mode"]:
        draft["status"] = status


def _payload(event: dict) -> dict:
    return {name: value for name, value in event.items() if name not in ENVELOPE}


def _number(event: dict, name: str) -> float | None:
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _whole(event: dict, name: str) -> int | None:
    value = _number(event, name)
    return None if value is None else int(value)


def _text(event: dict, name: str) -> str | None:
    value = event.get(name)
    return value if isinstance(value, str) else None
