"""Endpoints without a widget, for `gradio_client` and scripts: the same engine as the page's buttons."""

from __future__ import annotations

import os

import gradio as gr
import yaml

from gemma_tune.config import parse
from gemma_tune.errors import ConfigError, GemmaTuneError
from gemma_tune.runs import engine
from gemma_tune.runs.folder import find_run
from gemma_tune.ui import history


def start_run(config: str) -> str:
    """Start the run that this YAML describes; answers with its id. The same YAML twice at once is one run."""
    return _told(lambda: engine.start(parse(_yaml(config)), os.environ.get("HF_TOKEN")))


def stop_run(run: str, now: bool = False) -> str:
    """Ask a run to stop: finish the step and save, or end at once."""
    return _told(lambda: engine.stop(find_run(run).id, now=now) or run)


def resume_run(run: str) -> str:
    """Go on from the last complete checkpoint."""
    return _told(lambda: engine.resume(find_run(run).id, os.environ.get("HF_TOKEN")) or run)


def run_status(run: str) -> dict:
    """State, step, losses and report card of a run."""

    def read() -> dict:
        state = engine.read_state(find_run(run).id)
        names = (
            "status",
            "phase",
            "step",
            "max_steps",
            "loss",
            "eval_loss",
            "tokens",
            "cause",
            "message",
            "report",
        )
        return {name: getattr(state, name) for name in names}

    return _told(read)


def list_runs() -> list:
    """Every run, newest first."""
    return history.rows()


def expose() -> None:
    """Register the endpoints; call it within the Blocks."""
    for function in (start_run, stop_run, resume_run, run_status, list_runs):
        gr.api(function, api_name=function.__name__)


def _yaml(text: str):
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError.at("configuration", error, "It must be YAML.", "Mend the line named.") from None


def _told(call):
    try:
        return call()
    except GemmaTuneError as error:
        raise gr.Error(str(error), print_exception=False) from None
