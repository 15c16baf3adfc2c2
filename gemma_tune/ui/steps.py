"""What the Set up tab does: reads the form, calls one function, shows the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from gemma_tune import hub, hub_access
from gemma_tune.catalog import MODELS, POCKET_ID
from gemma_tune.config import field_of, parse
from gemma_tune.data.sources import EXAMPLE, HUB, TFDS
from gemma_tune.errors import AccessError, GemmaTuneError
from gemma_tune.runs import engine
from gemma_tune.ui import checks, compare, data_events, data_sources, data_views, setup, views, watch
from gemma_tune.ui.form import QUIET, SetUp
from gemma_tune.ui.reading import read_form, token_of


def wire(tab: SetUp, went: dict[str, Any]) -> None:
    """Connect the events. `went`: the components that show a started run, by the names of `open_run`'s answer."""
    parts, form, everything = tab.parts, tab.form, tab.everything
    _wire_model(tab)
    data_events.wire(tab, picked=data_sources.wire(tab))
    method_outputs = [*form.inputs, parts["lora_front"]]
    form.widgets["method.type"].input(
        lambda *raw: _recommend(form, raw), form.inputs, method_outputs, api_name="recommend", **QUIET
    )
    parts["method_next"].click(
        lambda *raw: _to_review(tab, raw), everything, _review_outputs(tab),
        validator=lambda *raw: _validate(tab, raw), api_name="review", api_visibility="private",
    )  # fmt: skip
    form.widgets["output.name"].change(
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
    gr.on(
        [widget.change for widget in form.inputs],
        lambda *raw: dict(zip(form.widgets, raw, strict=True)),
        form.inputs, tab.saved, trigger_mode="always_last", api_name="remember", **QUIET,
    )  # fmt: skip


def _wire_model(tab: SetUp) -> None:
    parts, form, everything = tab.parts, tab.form, tab.everything
    chosen = [parts["own_model"], form.widgets["model.id"], parts["model_facts"]]
    gr.on(
        [parts["model_choice"].input, parts["own_model"].input],
        _choose_model, [parts["model_choice"], parts["own_model"]], chosen, api_name="choose_model", **QUIET,
    ).then(lambda *raw: _recommend(form, raw), form.inputs, [*form.inputs, parts["lora_front"]],
           api_name="recommend_for_model", **QUIET)  # fmt: skip
    parts["model_next"].click(
        lambda *raw: _leave_model(tab, raw), everything, [tab.steps, parts["model_faults"], parts["model_access"]],
        api_name="leave_model", api_visibility="private",
    ).then(
        data_events.check_event(tab), everything, data_events.outputs(tab), api_name="check_form",
        api_visibility="private", show_progress="hidden", concurrency_limit=16,
    )  # fmt: skip
    parts["access_ask"].click(
        _ask_access, [form.widgets["model.id"], parts["token"]], [parts["model_access"], parts["model_faults"]],
        api_name="model_access",
        api_visibility="private",
    )  # fmt: skip


# ---- the model -----------------------------------------------------------------------------------------------------
def _choose_model(choice: str, own: str):
    own_chosen = choice == setup.OWN_MODEL
    model_id = own.strip() if own_chosen else choice
    shown = views.model_facts(model_id, on_disk=hub.is_on_disk(model_id))
    return gr.update(visible=own_chosen), model_id, shown


def _leave_model(tab: SetUp, raw: tuple):
    *values, token = raw
    try:
        model = tab.form.read(tuple(values))["model"]
        hub.inspect_model(model["id"], model["revision"], token_of(token))
    except GemmaTuneError as error:
        asked = data_views.access(_access(model["id"], token)) if isinstance(error, AccessError) else ""
        return gr.skip(), views.fault_list(error.faults, "This model cannot be used yet"), asked
    return gr.Walkthrough(selected=setup.DATA), "", ""


def _ask_access(model_id: str, token: str | None) -> tuple[str, str]:
    """The three questions of a gated model, before anything is downloaded; what was said before is taken off."""
    if not (asked := _access(model_id, token)):
        return views.notice("good", "No token needed", "This model is on this machine already."), ""
    return data_views.access(asked), ""


def _access(model_id: str, token: str | None) -> list[hub_access.Check]:
    """None for a model that is no repository of the Hub."""
    try:
        return [] if hub.local_folder(model_id) else hub_access.access(model_id, "model", token_of(token))
    except GemmaTuneError:
        return []


def _recommend(form, raw: tuple) -> list:
    """The catalogue's settings for this model and method; everything else stays as it is."""
    values = dict(zip(form.widgets, raw, strict=True))
    card = MODELS.get(values["model.id"])
    advice = card.recommended.get(values["method.type"], {}) if card else {}
    updates = [gr.update(value=advice[name]) if name in advice else gr.skip() for name in form.widgets]
    return [*updates, gr.update(visible=values["method.type"] == "lora")]


# ---- method, review, start -----------------------------------------------------------------------------------------
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
    return [tab.parts[name] for name in ("review", "yaml", "start", "method_faults")] + [tab.steps]


def _to_review(tab: SetUp, raw: tuple) -> list:
    try:
        config, token = read_form(tab, raw)
        report = checks.report_for(config, token)
    except GemmaTuneError as error:
        faults = views.fault_list(error.faults)
        return [faults, gr.skip(), gr.update(interactive=False), faults, gr.skip()]
    shown = views.review(config, report) + views.fault_list(report.faults)
    ready = gr.update(interactive=not report.faults)
    return [shown, config.to_yaml(), ready, "", gr.Walkthrough(selected=setup.REVIEW)]


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


def restore(tab: SetUp, saved: dict | None) -> list:
    """Updates for every widget of the form and its helpers from what this browser remembers, or for a first visit."""
    remembered = saved if isinstance(saved, dict) else MODELS[POCKET_ID].recommended["lora"]
    values = [
        gr.update(value=remembered[name]) if name in remembered else gr.skip() for name in tab.form.widgets
    ]
    model_id, source, method, mixed = (
        remembered.get(name) or field_of(name).default
        for name in ("model.id", "data.source", "method.type", "data.mix")
    )
    return [*values, *helpers(model_id, source, method, mixed)]


def helper_outputs(tab: SetUp) -> list:
    names = (
        "model_choice", "own_model", "model_facts", "kind", "example", "upload", "remote", "remote_note", "folder_row",
        "remote_id", "folder", "mix", "lora_front",
    )  # fmt: skip
    return [tab.parts[name] for name in names]


def helpers(model_id: str, source: str, method: str, mixed: list[dict]) -> list:
    """The widgets that are not settings themselves but choose one."""
    own = model_id not in MODELS
    kind = _kind_of(source)
    name = source.partition(":")[2]
    return [
        setup.OWN_MODEL if own else model_id,
        gr.update(visible=own, value=model_id if own else ""),
        views.model_facts(model_id, on_disk=hub.is_on_disk(model_id)),
        kind,
        gr.update(visible=kind == "example", **({"value": name} if kind == "example" else {})),
        gr.update(visible=kind == "upload"),
        gr.update(visible=kind in ("hub", "tfds")),
        gr.update(visible=kind == "tfds"),
        gr.update(visible=kind == "folder"),
        name if kind in ("hub", "tfds") else "",
        source if kind == "folder" else "",
        data_views.mix(mixed),
        gr.update(visible=method == "lora"),
    ]


def _kind_of(source: str) -> str:
    """Which way of choosing data a source was chosen by."""
    for prefix, kind in ((EXAMPLE, "example"), (HUB, "hub"), (TFDS, "tfds")):
        if source.startswith(prefix):
            return kind
    uploaded = not source or Path(source).is_relative_to(hub.home() / "uploads")
    return "upload" if uploaded else "folder"
