"""What the Set up tab does: reads the form, calls one function, shows the result."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from gemma_tune import hub, outlook
from gemma_tune.config import RunConfig, field_of, parse, settings
from gemma_tune.data.sources import EXAMPLE, HUB, TFDS
from gemma_tune.errors import GemmaTuneError
from gemma_tune.runs import engine
from gemma_tune.ui import (
    checks,
    compare,
    data_events,
    data_sources,
    data_views,
    forecast_panel,
    method_events,
    method_views,
    model_events,
    models,
    setup,
    views,
    watch,
)
from gemma_tune.ui.form import CONDITIONAL, QUIET, SetUp
from gemma_tune.ui.reading import read_form

SETTINGS = {name for name, _ in settings()}


def wire(tab: SetUp, went: dict[str, Any]) -> None:
    """Connect the events. `went`: the components that show a started run, by the names of `open_run`'s answer."""
    parts, form, everything = tab.parts, tab.form, tab.everything
    model_events.wire(tab)
    data_events.wire(tab, picked=data_sources.wire(tab))
    method_events.wire(tab)
    forecast_panel.wire(tab)
    parts["method_next"].click(
        lambda *raw: _to_review(tab, raw), everything, _review_outputs(tab),
        validator=lambda *raw: _validate(tab, raw), api_name="review", api_visibility="private",
    )  # fmt: skip
    form.widgets["output.name"].input(
        lambda *raw: _to_review(tab, raw)[:-1], everything, _review_outputs(tab)[:-1],
        trigger_mode="always_last", api_name="review_name", api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    for name, step in (
        ("data_back", setup.MODEL),
        ("method_back", setup.DATA),
        ("review_back", setup.METHOD),
    ):
        parts[name].click(
            lambda step=step: gr.Walkthrough(selected=step), None, tab.steps, api_name=name, **QUIET
        )
    parts["start"].click(
        lambda *raw: _start(tab, raw), everything, [parts["review"], *went.values()],
        api_name="start_form", api_visibility="private", concurrency_limit=4,
    )  # fmt: skip
    # One listener for everything that follows the form: of several "always_last" ones on the same change Gradio calls
    # each anew when another ends, and never comes to rest.
    gr.on(
        [widget.change for widget in form.inputs], partial(_follow, tab), everything, followers(tab),
        trigger_mode="always_last", api_name="follow", **QUIET,
    )  # fmt: skip
    parts["data_next"].click(
        partial(_follow, tab), everything, followers(tab), api_name="follow_data", **QUIET
    )


def followers(tab: SetUp) -> list:
    return [tab.saved, *(tab.parts[name] for name in ("advice", "forecast", "ways", "hosts_note", "hosts"))]


def _follow(tab: SetUp, *raw: Any) -> dict:
    """What stands beside the form and in the browser's memory, after a change."""
    values = tab.form.values(raw[:-1])
    config = error = None
    try:
        config, _ = read_form(tab, raw)
    except GemmaTuneError as caught:
        error = caught
    return {
        tab.saved: values,
        tab.parts["advice"]: method_events.advice_of(values),
        **forecast_panel.follow(tab, config, error),
        **method_events.hosts(tab, config),
    }


# ---- review and start ----------------------------------------------------------------------------------------------
def _validate(tab: SetUp, raw: tuple) -> list:
    """One verdict per input, so that each fault stands at its field."""
    *values, _ = raw
    wrong: dict[str, str] = {}
    try:
        parse(tab.form.read(tuple(values)))
    except GemmaTuneError as error:
        wrong = {fault.where: f"{fault.rule} {fault.way_out}" for fault in error.faults}
    names = [*tab.form.widgets, "token"]
    return [gr.validate(name not in wrong, wrong.get(name, "")) for name in names]


def _review_outputs(tab: SetUp) -> list:
    names = ("review", "review_forecast", "yaml", "start", "method_faults")
    return [tab.parts[name] for name in names] + [tab.steps]


def _to_review(tab: SetUp, raw: tuple) -> list:
    try:
        config, token = read_form(tab, raw)
        report = checks.report_for(config, token)
    except GemmaTuneError as error:
        faults = views.fault_list(error.faults)
        return [faults, "", gr.skip(), gr.update(interactive=False), faults, gr.skip()]
    shown = views.review(config, report) + views.fault_list(report.faults)
    ready = gr.update(interactive=not report.faults)
    memory = forecast_panel.card(config)
    return [shown, memory, config.to_yaml(), ready, "", gr.Walkthrough(selected=setup.REVIEW)]


def _start(tab: SetUp, raw: tuple) -> list:
    try:
        config, token = read_form(tab, raw)
        report = checks.report_for(config, token)
        if report.faults:
            return [views.fault_list(report.faults), *[gr.skip()] * 3]
        compare.make_room()
        run_id = engine.start(config, token)
    except GemmaTuneError as error:
        return [views.fault_list(error.faults, "The run was not started"), *[gr.skip()] * 3]
    return [gr.skip(), *watch.open_run(run_id)]


def restore(tab: SetUp, saved: dict | None) -> dict:
    """Updates for every widget of the form and its helpers from what this browser remembers, or for a first visit."""
    remembered = dict(saved) if isinstance(saved, dict) else {}
    values = {name: field_of(name).default for name in tab.form.widgets if name in SETTINGS} | remembered
    if not remembered:
        advice = method_views.recommended("sft", "lora", outlook.card_of(values["model.id"]))
        values |= {name: one.value for name, one in advice.items()}
    written = {
        widget: gr.update(value=values[name]) for name, widget in tab.form.widgets.items() if name in values
    }
    return written | helpers(tab, values)


def fill(tab: SetUp, config: RunConfig) -> dict:
    """Updates that show a configuration in the form."""
    updates = tab.form.write(config)
    values = {name: update["value"] for name, update in zip(tab.form.widgets, updates, strict=True)}
    return dict(zip(tab.form.inputs, updates, strict=True)) | helpers(tab, values)


def helper_outputs(tab: SetUp) -> list:
    names = (
        "family", *model_events.SHOWN, "own_model", "kind", "example", "upload", "remote", "remote_note", "folder_row",
        "remote_id", "folder", "mix",
    )  # fmt: skip
    own = [*(tab.parts[name] for name in names), *tab.form.inputs, *method_events.outputs(tab)]
    return list(dict.fromkeys(own))


def helpers(tab: SetUp, values: dict[str, Any]) -> dict:
    """The widgets that are not settings themselves but choose one, and which settings are shown."""
    model_id, source = values["model.id"], values["data.source"]
    kind, name = _kind_of(source), source.partition(":")[2]
    family = model_events.family_of(model_id)
    shown = dict(zip(model_events.SHOWN, model_events.shown(model_id, family), strict=True)) | {
        "family": gr.update(choices=models.family_choices(), value=family),
        "own_model": model_id if family == models.OWN else "",
        "kind": kind,
        "example": gr.update(visible=kind == "example", **({"value": name} if kind == "example" else {})),
        "upload": gr.update(visible=kind == "upload"),
        "remote": gr.update(visible=kind in ("hub", "tfds")),
        "remote_note": gr.update(visible=kind == "tfds"),
        "folder_row": gr.update(visible=kind == "folder"),
        "remote_id": name if kind in ("hub", "tfds") else "",
        "folder": source if kind == "folder" else "",
        "mix": data_views.mix(values.get("data.mix") or []),
    }
    arranged = method_events.arranged(tab, values, CONDITIONAL)
    return {tab.parts[part]: update for part, update in shown.items()} | arranged


def _kind_of(source: str) -> str:
    """Which way of choosing data a source was chosen by."""
    for prefix, kind in ((EXAMPLE, "example"), (HUB, "hub"), (TFDS, "tfds")):
        if source.startswith(prefix):
            return kind
    uploaded = not source or Path(source).is_relative_to(hub.home() / "uploads")
    return "upload" if uploaded else "folder"
