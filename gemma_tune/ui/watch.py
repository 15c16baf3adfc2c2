"""The Watch tab: a live panel that asks for what is new about once a second. Nothing of a run depends on it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from gemma_tune.errors import GemmaTuneError
from gemma_tune.runs.follower import follower
from gemma_tune.ui import asked_images, history, live
from gemma_tune.ui.theme import PLOTLY_PATH, PLOTLY_URL

FOLDER = Path(__file__).parent
FIRST_LOG_LINES = 300


def poll(query: Any) -> dict:
    """What is new in a run since the cursor in `query`. Read-only; any argument of any shape may arrive here."""
    if not isinstance(query, dict) or not isinstance(query.get("run"), str):
        return {"unknown": "No run is chosen."}
    try:
        following = follower(query["run"])
    except GemmaTuneError as error:
        return {"unknown": str(error), "live": False}
    state, version = following.snapshot()
    fresh = query.get("attempt") != state.attempt
    first = live.cursor(query, "log")
    log = following.log_lines(None if fresh else first, FIRST_LOG_LINES)
    pictures = partial(asked_images.small, query["run"])
    return live.answer(state, version, query, log, time.time(), pictures)


def monitor() -> gr.HTML:
    """The panel. Its `run` property names the run; its event `run_action` carries {action, run}."""
    return gr.HTML(
        value="",
        run="",
        html_template=(FOLDER / "watch.html").read_text(encoding="utf-8"),
        js_on_load=(FOLDER / "watch.js").read_text(encoding="utf-8").replace("PLOTLY_URL", PLOTLY_URL),
        server_functions=[poll],
        apply_default_css=False,
        elem_id="monitor",
    )


def build() -> dict[str, gr.components.Component]:
    """The tab's parts: the picker of a run and the monitor."""
    gr.set_static_paths([PLOTLY_PATH])
    picker = gr.Dropdown(
        [],
        value=None,
        label="Run",
        show_label=False,
        container=False,
        elem_id="watch-run",
        elem_classes="gt-picker",
    )
    return {"picker": picker, "monitor": monitor()}


def open_run(run_id: str) -> list:
    """Updates of tabs, monitor and picker that show a run."""
    return [
        gr.Tabs(selected="watch"),
        gr.HTML(run=run_id),
        gr.Dropdown(choices=history.choices(), value=run_id),
    ]
