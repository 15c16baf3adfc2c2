"""The forecast beside the settings: follows every change, offers ways to make a run fit, measures two real steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from gemma_tune import outlook
from gemma_tune.config import RunConfig
from gemma_tune.errors import GemmaTuneError
from gemma_tune.ui import fitting, forecast_views, measuring, method_events, views
from gemma_tune.ui.form import QUIET, SetUp
from gemma_tune.ui.reading import read_form

FOLDER = Path(__file__).parent
LOOK_SECONDS = 0.3
APPLY_SCRIPT = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-changes]");
  if (button) trigger("apply", { changes: button.dataset.changes });
});"""


def build(tab: SetUp) -> None:
    parts = tab.parts
    parts["forecast"] = gr.HTML(
        forecast_views.unknown("Counted as soon as the data are checked."), elem_id="forecast"
    )
    parts["ways"] = gr.HTML("", js_on_load=APPLY_SCRIPT, apply_default_css=False, elem_id="ways")
    with gr.Row(elem_id="measure-row"):
        parts["measure"] = gr.Button("Measure two real steps", size="sm", elem_id="measure")
        parts["measure_stop"] = gr.Button(
            "Stop", size="sm", visible=False, elem_id="measure-stop", min_width=80
        )
    parts["measuring"] = gr.HTML("", elem_id="measuring")


def wire(tab: SetUp) -> None:
    parts, form = tab.parts, tab.form

    def apply(event: gr.EventData, *raw: Any) -> dict:
        return _apply(tab, str(event.changes), raw)

    parts["ways"].apply(
        apply, form.inputs, [*form.inputs, *method_events.beside(tab)], api_name="make_it_fit",
        api_visibility="private", show_progress="hidden", queue=False,
    )  # fmt: skip
    parts["measure"].click(
        partial(_measure, tab), tab.everything,
        [parts["forecast"], parts["ways"], parts["measuring"], parts["measure"], parts["measure_stop"]],
        api_name="measure", api_visibility="private", show_progress="hidden", concurrency_limit=4,
    )  # fmt: skip
    parts["measure_stop"].click(lambda: measuring.stop(), None, None, api_name="measure_stop", **QUIET)


def follow(tab: SetUp, config: RunConfig | None, error: GemmaTuneError | None = None) -> dict:
    """Updates for a configuration, or for why there is none."""
    forecast, ways = shown(config) if config else (forecast_views.unknown(f"Not yet: {_first(error)}"), "")
    return {tab.parts["forecast"]: forecast, tab.parts["ways"]: ways}


def _first(error: GemmaTuneError) -> str:
    fault = error.faults[0]
    label = views.place(fault.where)
    return fault.rule if label in fault.rule else f"{label}: {fault.rule}"


def shown(config: RunConfig) -> list[str]:
    """The card and the ways to make it fit."""
    found = fitting.forecast_of(config)
    if found is None:
        return [
            forecast_views.unknown("The shape of this model is known once its configuration was read."),
            "",
        ]
    fits = found.fits
    return [card(config), forecast_views.choices(fitting.ways(config), fits=fits)]


def card(config: RunConfig) -> str:
    found = fitting.forecast_of(config)
    if found is None:
        return ""
    count, name = config.devices.num_processes, outlook.device_of(config).name
    where = f"for each of {count} processes on {name}" if count > 1 else f"on {name}"
    return forecast_views.panel(found, where, measured=measuring.known(config) is not None)


def _apply(tab: SetUp, text: str, raw: tuple) -> dict:
    """The settings of a way, into the form; what is no setting of it is left out."""
    changes = {name: value for name, value in json.loads(text).items() if name in tab.form.widgets}
    return method_events.arranged(tab, tab.form.values(raw) | changes, set(changes))


# ---- measuring -----------------------------------------------------------------------------------------------------
def _measure(tab: SetUp, *raw: Any) -> Iterator[dict]:
    parts = tab.parts
    idle = {parts["measure"]: gr.update(interactive=True), parts["measure_stop"]: gr.update(visible=False)}
    busy = {parts["measure"]: gr.update(interactive=False), parts["measure_stop"]: gr.update(visible=True)}
    try:
        config, token = read_form(tab, raw)
        for phase in measuring.measure(config, token):
            yield {**busy, parts["measuring"]: forecast_views.measuring(phase)}
    except GemmaTuneError as error:
        yield {**idle, parts["measuring"]: views.fault_list(error.faults, "Not measured")}
        return
    forecast, ways = shown(config)
    yield {**idle, parts["measuring"]: "", parts["forecast"]: forecast, parts["ways"]: ways}
