"""What the monitor shows, from a run's state: pure functions. Raw facts become words and figures only here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gemma_tune.catalog import MODELS
from gemma_tune.runs.state import State
from gemma_tune.ui.asked_images import spoken
from gemma_tune.ui.method_views import TUNERS
from gemma_tune.ui.views import source_label

Pictures = Callable[[tuple[str, ...]], list[str]]  # from the names of a sample's images to data URIs

POINTS_DRAWN = 4000  # more than a chart of this width can show
STATUS = {  # label, tone
    "queued": ("Waiting", "live"),
    "preparing": ("Preparing", "live"),
    "training": ("Training", "live"),
    "saving": ("Saving", "live"),
    "stopping": ("Stopping", "warm"),
    "finished": ("Finished", "good"),
    "stopped": ("Stopped", "warm"),
    "failed": ("Failed", "bad"),
    "lost": ("Lost", "bad"),
}
PHASES = {
    "downloading": "Downloading the model",
    "tokenizing": "Reading and tokenising the data",
    "loading": "Loading the model",
    "training": "Training",
    "evaluating": "Base and tuned answer held-out questions for the report card",
    "saving": "Saving the model",
}
CAUSES = {
    "out_of_memory": "Out of memory",
    "licence": "The licence of the model is not accepted",
    "token": "The Hugging Face token is missing or wrong",
    "data": "Something is wrong with the data",
    "config": "A setting does not work here",
    "disk": "The disk is full",
    "nan_loss": "The loss became infinite",
    "killed": "The worker was killed",
    "peer": "Another process or host was lost",
    "bug": "The worker failed",
}
CHARTS = {  # id -> its title and lines (name of a measure of TRL's: words)
    "pairs": {"id": "pairs", "title": "Better answer preferred", "share": True, "lines": {"rewards/accuracies": "share of pairs"}},
    "rewards": {"id": "rewards", "title": "Rewards", "share": False,
                "lines": {"rewards/chosen": "better", "rewards/rejected": "worse"}},
    "distance": {"id": "distance", "title": "Distance from the base (KL)", "share": False, "lines": {"kl": "KL"}},
    "ranked": {"id": "ranked", "title": "Better answer scored higher", "share": True, "lines": {"accuracy": "share of pairs"}},
    "margin": {"id": "margin", "title": "Margin between the scores", "share": False, "lines": {"margin": "margin"}},
    "earned": {"id": "earned", "title": "Reward of its own answers", "share": False, "lines": {"reward": "mean reward"}},
    "length": {"id": "length", "title": "Length of its answers", "share": False,
               "lines": {"completions/mean_length": "tokens"}},
}  # fmt: skip
CHARTS_OF = {
    "dpo": ("pairs", "rewards"),
    "orpo": ("pairs", "rewards"),
    "kto": ("rewards", "distance"),
    "reward": ("ranked", "margin"),
    "grpo": ("earned", "length"),
}
KEEP = ("stop_keep", "Stop and keep", "plain", "Finishes the step, saves a checkpoint and the model.", "")
NOW = ("stop_now", "Stop now", "plain", "Ends at once. Only saved checkpoints remain.", "Really stop now?")
CANCEL = ("stop_now", "Cancel", "plain", "Nothing is trained yet; the run ends at once.", "")
SKIP = ("stop_keep", "Skip the report", "plain", "The model is saved already.", "")
COMPARE = ("compare", "Compare base and tuned", "primary", "Ask both the same question.", "")
RESUME = ("resume", "Resume", "primary", "Goes on from the last checkpoint, as if it had never stopped.", "")
AGAIN = ("reuse", "Use these settings again", "plain", "Opens Set up with them.", "")


def answer(
    state: State,
    version: int,
    query: dict[str, Any],
    log: tuple[int, int, Sequence],
    now: float,
    pictures: Pictures = lambda names: [],
) -> dict:
    """What is new since the browser's cursor. `log`: first and next line number, and the lines between."""
    reset = query.get("attempt") != state.attempt or any(
        cursor(query, name) > len(series)
        for name, series in (
            ("train", state.train_points), ("evals", state.eval_points), ("measures", state.measure_points)
        )
    )  # fmt: skip
    elapsed = state.elapsed_seconds(now)
    first, following, lines = log
    if not reset and query.get("version") == version and not lines:
        return {"same": True, "live": state.is_live, "elapsed_seconds": elapsed}
    start = (lambda name: 0) if reset else (lambda name: cursor(query, name))
    return {
        "reset": reset,
        "live": state.is_live,
        "attempt": state.attempt,
        "version": version,
        "head": head(state, elapsed),
        "cards": cards(state),
        "notice": notice(state),
        "actions": [
            dict(zip(("id", "label", "kind", "help", "confirm"), a, strict=True)) for a in actions(state)
        ],
        "bars": bars(state),
        "train": series(state.train_points, start("train"), ("step", "loss", "rate", "norm"), (0, 1, 2, 3)),
        "evals": series(state.eval_points, start("evals"), ("step", "loss"), (0, 1)),
        "hardware": hardware(state, start("hardware")),
        "measures": measures(state, start("measures")),
        "report": report(state),
        "samples": [shown_sample(sample, pictures) for sample in state.samples],
        "log": {"from": first, "to": following, "lines": lines},
    }


def shown_sample(sample: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    """A question of the report; its pictures stand above its words."""
    if not sample.get("images"):
        return sample
    return sample | {"prompt": spoken(sample["prompt"]), "pictures": pictures(tuple(sample["images"]))}


def cursor(query: dict[str, Any], name: str) -> int:
    value = query.get(name)
    return value if isinstance(value, int) and value >= 0 else 0


def head(state: State, elapsed: float) -> dict:
    label, tone = STATUS.get(state.status, (state.status, "live"))
    return {
        "label": label,
        "tone": tone,
        "live": state.is_live,
        "busy": state.is_live and not state.step,
        "name": state.name or "",
        "about": about(state),
        "phase": phase(state),
        "progress": 1.0 if state.status == "finished" else state.progress,
        "elapsed_seconds": elapsed,
        "remaining_seconds": state.remaining_seconds if state.is_live else None,
    }


def about(state: State) -> str:
    """Model, method and data of a run in one line; on a further host also which one this is."""
    method = TUNERS.get(state.method, state.method)
    card = MODELS.get(state.model)
    model = card.label if card else state.model
    goal = state.objective.upper() if state.objective not in ("", "sft", "reward") else ""
    goal = "reward model" if state.objective == "reward" else goal
    host = f"host {state.machine_rank}" if state.machine_rank else ""
    return " · ".join(part for part in (model, goal, method, source_label(state.source), host) if part)


def phase(state: State) -> str:
    if state.status == "queued":
        return "Waits until the run before it has ended."
    if state.status == "stopping":
        kept = state.stop_mode == "keep"
        return "Finishing the step, then saving" if kept else "Ending the processes of this run"
    if state.is_over:
        at = (
            f"after step {state.step:,} of {state.max_steps:,}"
            if state.max_steps
            else "before the first step"
        )
        return f"{STATUS[state.status][0]} {at}."
    words = PHASES.get(state.phase or "", "Starting the worker")
    if state.phase == "training" and state.max_steps:
        return f"Epoch {state.epoch or 0:.2f}, step {state.step:,} of {state.max_steps:,}"
    return words + "…"


def cards(state: State) -> list[dict]:
    return [
        _card(
            "loss", "Training loss", _number(state.loss), *_trend([point[1] for point in state.train_points])
        ),
        _card("eval", "Validation loss", _number(state.eval_loss), *_best(state)),
        _card(
            "step", "Step", f"{state.step:,}", f"of {state.max_steps:,}" if state.max_steps else "not begun"
        ),
        _card("speed", "Speed", _speed(state), "tokens per second"),
        _card(
            "rate", "Learning rate", _tiny(state.learning_rate), f"gradient norm {_number(state.grad_norm)}"
        ),
        _card("memory", "Memory", *_memory(state)),
    ]


def _card(id: str, label: str, value: str, note: str, tone: str = "") -> dict:
    return {"id": id, "label": label, "value": value, "note": note, "tone": tone}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def _tiny(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"


def _speed(state: State) -> str:
    return "–" if not state.tokens_per_second else f"{state.tokens_per_second:,.0f}"


def _trend(losses: Sequence[float]) -> tuple[str, str]:
    """How far the mean of the last ten lies below that of the first ten."""
    if len(losses) < 2:
        return "no step yet" if not losses else "first step", ""
    width = min(10, len(losses) // 2)
    change = sum(losses[-width:]) / width - sum(losses[:width]) / width
    return (
        f"{'▼' if change <= 0 else '▲'} {abs(change):.3f} since the start",
        "good" if change <= 0 else "bad",
    )


def _best(state: State) -> tuple[str, str]:
    if state.eval_loss is None:
        return "not measured yet", ""
    if state.best_eval_loss is None or state.eval_loss <= state.best_eval_loss:
        return "best so far", "good"
    return f"best was {state.best_eval_loss:.3f}", "warm"


def _memory(state: State) -> tuple[str, str]:
    """What the run holds now; once it is over, the most that it held."""
    latest = state.hardware or {}
    if not latest:
        return "–", "not measured yet"
    gpus = latest.get("gpus") or []
    total = gpus[0]["memory_total_bytes"] if gpus else latest["memory_total_bytes"]
    held = [point[5] if gpus else point[3] for point in state.hardware_points]
    held = [amount for amount in held if amount is not None]
    used = (max(held) if state.is_over else held[-1]) if held else 0
    words = "at most, " if state.is_over else ""
    return f"{used / 2**30:.1f} GiB", f"{words}of {total / 2**30:.0f} GiB{' GPU' if gpus else ''}"


def bars(state: State) -> list[dict]:
    latest = state.hardware or {}
    if not latest:
        return []
    used, total = latest["memory_used_bytes"], latest["memory_total_bytes"]
    shown = [
        {"label": "CPU", "percent": latest["cpu_percent"], "text": f"{latest['cpu_percent']:.0f} %"},
        {
            "label": "Memory",
            "percent": 100 * used / total,
            "text": f"{used / 2**30:.1f} / {total / 2**30:.0f} GiB",
        },
    ]
    for gpu in latest.get("gpus") or []:
        heat, load = gpu.get("temperature_celsius"), gpu.get("utilization_percent") or 0
        text = f"{load:.0f} %" + (f" · {heat:.0f} °C" if heat else "")
        shown.append({"label": f"GPU {gpu['index']}", "percent": load, "text": text})
    return shown


def notice(state: State) -> dict | None:
    """What must be said now: the end, its cause and the way out, or warnings of a live run."""
    if state.status == "failed":
        faults = " ".join(f"{f['where']}: {f['rule']}" for f in state.faults) if state.faults else ""
        title = CAUSES.get(state.cause or "", CAUSES["bug"])
        return _notice("bad", title, faults or state.message or "", state.way_out or "", state.log_tail)
    if state.status == "lost":
        text = (
            state.message
            or "All processes of this run are gone without a last word; the machine may have restarted."
        )
        return _notice("bad", "This run was lost", text, state.way_out or "", state.log_tail)
    if state.status == "stopped":
        text = state.message or "It was stopped as asked."
        return _notice("warm", "Stopped", text, state.way_out or "")
    if state.status == "finished":
        text = "The model is saved and ready."
        if state.warnings:
            text += " " + " ".join(state.warnings[-3:])
        ask = "Ask base and tuned the same question and see the difference." if state.can_compare else ""
        return _notice("good", "Finished", text, ask)
    if state.warnings:
        return _notice("warm", "Please note", " ".join(state.warnings[-3:]), "")
    return None


def _notice(tone: str, title: str, text: str, way_out: str, log_tail: Sequence[str] = ()) -> dict:
    return {"tone": tone, "title": title, "text": text, "way_out": way_out, "log_tail": list(log_tail or ())}


def actions(state: State) -> list[tuple]:
    """What can be done next, the best first."""
    if state.status in ("queued", "preparing"):
        return [CANCEL]
    if state.is_live:
        if state.phase == "evaluating" and state.saved:
            return [SKIP, NOW]
        if state.status == "stopping":
            return [NOW] if state.stop_mode == "keep" else []
        return [KEEP, NOW]
    offered = []
    if state.can_compare:
        offered.append(
            COMPARE
            if state.status == "finished" or not state.can_resume
            else (*COMPARE[:2], "plain", *COMPARE[3:])
        )
    if state.can_resume:
        label = (
            RESUME
            if state.checkpoints
            else ("resume", "Start again", "primary", "No checkpoint was saved; it begins anew.", "")
        )
        offered.insert(0, label)
    return [*offered, AGAIN]


def report(state: State) -> dict | None:
    """The report card: held-out answers and loss, base against tuned."""
    facts = state.report
    if not facts:
        return None
    rows = []
    if facts.get("tuned_exact_match") is not None:
        rows.append(
            ["Exact answers", _percent(facts.get("base_exact_match")), _percent(facts["tuned_exact_match"])]
        )
    if facts.get("tuned_loss") is not None:
        rows.append(["Validation loss", _number(facts.get("base_loss")), _number(facts["tuned_loss"])])
    note = f"Measured on {facts.get('rows', 0):,} rows that were not trained on, answered greedily. Base → tuned."
    return {"rows": rows, "note": note}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def series(points: Sequence[tuple], start: int, names: Sequence[str], picks: Sequence[int]) -> dict:
    """Columns of the points from `start` on, thinned to what a chart can draw; `to` is the next cursor."""
    fresh = thin(points[start:], POINTS_DRAWN)
    columns = {name: [point[pick] for point in fresh] for name, pick in zip(names, picks, strict=True)}
    return {**columns, "to": len(points)}


def thin(points: Sequence[tuple], limit: int) -> Sequence[tuple]:
    """At most `limit` points: of each bucket the lowest and the highest second value, in their order."""
    if len(points) <= limit:
        return points
    buckets = limit // 2
    kept: list[tuple] = []
    for index in range(buckets):
        bucket = points[index * len(points) // buckets : (index + 1) * len(points) // buckets]
        ends = {min(bucket, key=_second), max(bucket, key=_second)}
        kept.extend(sorted(ends))
    return kept


def _second(point: tuple) -> float:
    return point[1] if point[1] is not None else 0.0


def measures(state: State, start: int) -> dict:
    """The charts of the objective's own measures, and their points from `start` on as columns by name."""
    charts = [CHARTS[name] for name in CHARTS_OF.get(state.objective, ())]
    names = [name for chart in charts for name in chart["lines"]]
    points = [(step, *map(told.get, names)) for step, told in state.measure_points[start:]]
    drawn = series(points, 0, ("step", *names), range(len(names) + 1))
    return {"charts": charts, "columns": drawn, "to": len(state.measure_points)}


def hardware(state: State, start: int) -> dict:
    """Shares in percent over time: CPU, memory, GPU (None without one)."""
    total = (state.hardware or {}).get("memory_total_bytes") or 1
    points = [
        (time, cpu, 100 * memory / total, gpu)
        for time, cpu, memory, _, gpu, *_ in state.hardware_points[start:]
    ]
    thinned = series(points, 0, ("time", "cpu", "memory", "gpu"), (0, 1, 2, 3))
    return {**thinned, "to": len(state.hardware_points)}
