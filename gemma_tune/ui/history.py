"""The Runs tab: every run on this disk, with what can be done next."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gradio as gr

from gemma_tune.runs import engine
from gemma_tune.runs.folder import list_runs
from gemma_tune.ui import live

FOLDER = Path(__file__).parent


def rows(query: Any = None) -> list[dict]:
    """One entry per run, newest first, as the table shows it."""
    return [_row(folder) for folder in list_runs()]


def _row(folder) -> dict:
    state = engine.read_state(folder.id)
    label, tone = live.STATUS.get(state.status, (state.status, "live"))
    card = live.report(state)
    result = (
        "; ".join(f"{name.lower()} {base} → {tuned}" for name, base, tuned in card["rows"]) if card else ""
    )
    return {
        "run": folder.id,
        "name": state.name or folder.id,
        "label": label,
        "tone": tone,
        "what": live.about(state),
        "when": time.strftime("%Y-%m-%d %H:%M", time.localtime(state.created_time))
        if state.created_time
        else "",
        "step": f"{state.step:,} / {state.max_steps:,}" if state.max_steps else "–",
        "loss": f"{state.eval_loss or state.loss:.3f}" if (state.eval_loss or state.loss) else "–",
        "result": result,
        "live": state.is_live,
        "can_resume": state.can_resume,
        "can_compare": state.can_compare,
        "path": str(folder.path),
    }


def choices() -> list[tuple[str, str]]:
    """Runs for a drop-down: name and time; newest first."""
    return [(f"{row['name']} · {row['when']}", row["run"]) for row in rows()]


def table() -> gr.HTML:
    """The table. Its event `run_action` carries {action, run}."""
    return gr.HTML(
        value="",
        html_template='<div class="gt-runs" data-at="runs"></div>',
        js_on_load=(FOLDER / "history.js").read_text(encoding="utf-8"),
        server_functions=[rows],
        apply_default_css=False,
        elem_id="runs-table",
    )
