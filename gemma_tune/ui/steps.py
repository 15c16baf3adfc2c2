"""What the Set up tab does: reads the form, calls one function, shows the result."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr

from gemma_tune import data, hub
from gemma_tune.catalog import MODELS, POCKET_ID
from gemma_tune.config import RunConfig, field_of, parse
from gemma_tune.errors import GemmaTuneError
from gemma_tune.runs import engine
from gemma_tune.ui import compare, setup, views, watch
from gemma_tune.ui.form import MAPPED

PREVIEW_ROWS = 50
PREVIEW_CHARACTERS = 400
REJECTED_ROWS = 1000
REPORTS_KEPT = 4
REJECTED_HEADERS = ["Row", "Field", "Found", "Rule", "Way out"]

_reports: OrderedDict[str, Any] = OrderedDict()
_reports_lock = Lock()


def wire(tab: setup.SetUp, went: dict[str, Any]) -> None:
    """Connect the events. `went`: the components that show a started run, by the names of `open_run`'s answer."""
    parts, form = tab.parts, tab.form
    everything = [*form.inputs, parts["token"]]
    quiet = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    _wire_model(tab, everything, quiet)
    _wire_data(tab, everything, quiet)
    method_outputs = [*form.inputs, parts["lora_front"]]
    form.widgets["method.type"].input(
        lambda *raw: _recommend(form, raw), form.inputs, method_outputs, api_name="recommend", **quiet
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
            lambda step=step: gr.Walkthrough(selected=step), None, tab.steps, api_name=name, **quiet
        )
    parts["start"].click(
        lambda *raw: _start(tab, raw), everything, [parts["review"], *went.values()],
        api_name="start_form", api_visibility="private", concurrency_limit=4,
    )  # fmt: skip
    gr.on(
        [widget.change for widget in form.inputs],
        lambda *raw: dict(zip(form.widgets, raw, strict=True)),
        form.inputs, tab.saved, trigger_mode="always_last", api_name="remember", **quiet,
    )  # fmt: skip


def _wire_model(tab: setup.SetUp, everything: list, quiet: dict) -> None:
    parts, form = tab.parts, tab.form
    chosen = [parts["own_model"], form.widgets["model.id"], parts["model_facts"]]
    gr.on(
        [parts["model_choice"].input, parts["own_model"].input],
        _choose_model, [parts["model_choice"], parts["own_model"]], chosen, api_name="choose_model", **quiet,
    ).then(lambda *raw: _recommend(form, raw), form.inputs, [*form.inputs, parts["lora_front"]],
           api_name="recommend_for_model", **quiet)  # fmt: skip
    parts["model_next"].click(
        lambda *raw: _leave_model(tab, raw), everything, [tab.steps, parts["model_faults"]],
        api_name="leave_model", api_visibility="private",
    ).then(lambda *raw: _check_data(tab, raw), everything, _data_outputs(tab), api_name="check_form",
           api_visibility="private")  # fmt: skip


def _wire_data(tab: setup.SetUp, everything: list, quiet: dict) -> None:
    parts, form = tab.parts, tab.form
    source = form.widgets["data.source"]
    groups = [parts["example"], parts["upload"], parts["hub"]]
    parts["kind"].input(
        _show_kind, [parts["kind"], parts["example"]], [*groups, source], api_name="data_kind", **quiet
    )
    parts["example"].input(
        lambda name: f"example:{name}", parts["example"], source, api_name="choose_example", **quiet
    )
    parts["upload"].upload(
        _keep_upload, parts["upload"], source, api_name="upload_data", api_visibility="private"
    )
    hub_outputs = [source, form.widgets["data.subset"], form.widgets["data.split"], parts["summary"]]
    gr.on(
        [parts["hub_find"].click, parts["hub_id"].submit], _look_up, [parts["hub_id"], parts["token"]], hub_outputs,
        api_name="look_up", api_visibility="private",
    )  # fmt: skip
    subset_inputs = [form.widgets["data.subset"], parts["hub_id"], parts["token"]]
    form.widgets["data.subset"].input(
        _splits_of, subset_inputs, form.widgets["data.split"], api_name="splits", **quiet
    )
    length = form.widgets["train.max_length"]
    rechecks = [source.change, length.submit, length.blur] + [
        widget.input
        for name, widget in form.widgets.items()
        if name.startswith(("data.", MAPPED)) and name != "data.source"
    ]
    gr.on(
        rechecks, lambda *raw: _check_data(tab, raw), everything, _data_outputs(tab), trigger_mode="always_last",
        api_name="recheck", api_visibility="private",
    )  # fmt: skip
    parts["row"].change(
        lambda number, *raw: _show_row(tab, raw, number), [parts["row"], *everything], parts["sees"],
        trigger_mode="always_last", api_name="show_row", **quiet,
    )  # fmt: skip
    parts["data_next"].click(
        lambda *raw: _leave_data(tab, raw), everything, [tab.steps, parts["summary"]], api_name="leave_data",
        api_visibility="private",
    )  # fmt: skip


# ---- the model -----------------------------------------------------------------------------------------------------
def _choose_model(choice: str, own: str):
    own_chosen = choice == setup.OWN_MODEL
    model_id = own.strip() if own_chosen else choice
    shown = views.model_facts(model_id, on_disk=hub.is_on_disk(model_id))
    return gr.update(visible=own_chosen), model_id, shown


def _leave_model(tab: setup.SetUp, raw: tuple):
    *values, token = raw
    try:
        model = tab.form.read(tuple(values))["model"]
        hub.inspect_model(model["id"], model["revision"], token_of(token))
    except GemmaTuneError as error:
        return gr.skip(), views.fault_list(error.faults, "This model cannot be used yet")
    return gr.Walkthrough(selected=setup.DATA), ""


def _recommend(form, raw: tuple) -> list:
    """The catalogue's settings for this model and method; everything else stays as it is."""
    values = dict(zip(form.widgets, raw, strict=True))
    card = MODELS.get(values["model.id"])
    advice = card.recommended.get(values["method.type"], {}) if card else {}
    updates = [gr.update(value=advice[name]) if name in advice else gr.skip() for name in form.widgets]
    return [*updates, gr.update(visible=values["method.type"] == "lora")]


# ---- the data ------------------------------------------------------------------------------------------------------
def _show_kind(kind: str, example: str):
    visible = [gr.update(visible=kind == name) for name in ("example", "upload", "hub")]
    return [*visible, f"example:{example}" if kind == "example" else ""]


def _keep_upload(path: str | None) -> str:
    return str(data.keep_upload(Path(path))) if path else ""


def _look_up(repo: str, token: str):
    try:
        choices = data.hub_choices(repo.strip(), token_of(token))
    except GemmaTuneError as error:
        return gr.skip(), gr.skip(), gr.skip(), views.fault_list(error.faults, "This data set cannot be read")
    subset = next(iter(choices), "")
    splits = choices.get(subset, ["train"])
    split = "train" if "train" in splits else splits[0]
    return (
        f"hub:{repo.strip()}",
        gr.update(choices=list(choices), value=subset),
        gr.update(choices=splits, value=split),
        gr.skip(),
    )


def _splits_of(subset: str, repo: str, token: str):
    try:
        splits = data.hub_choices(repo.strip(), token_of(token)).get(subset, ["train"])
    except GemmaTuneError:
        return gr.skip()  # the check that follows says what is wrong
    return gr.update(choices=splits, value="train" if "train" in splits else splits[0])


def _data_outputs(tab: setup.SetUp) -> list:
    names = ("summary", "views", "row", "sees", "read", "rejected", "lengths")
    mapped = [widget for name, widget in tab.form.widgets.items() if name.startswith(MAPPED)]
    return [*(tab.parts[name] for name in names), *mapped]


def _check_data(tab: setup.SetUp, raw: tuple) -> list:
    mapped = [name for name in tab.form.widgets if name.startswith(MAPPED)]
    if not dict(zip(tab.form.widgets, raw, strict=False))["data.source"]:
        waiting = views.notice("", "No data yet", "Choose a file or a data set above; it is checked at once.")
        return _only_said(waiting, len(mapped))
    try:
        config, token = _read(tab, raw)
        report = report_for(config, token)
        rows = _accepted(report)
        seen = _rendered(config, rows, 1, token)
    except GemmaTuneError as error:
        return _unusable(tab, raw, error, len(mapped))
    choices = ["", *report.prepared.table.columns]
    return [
        views.data_summary(report),
        gr.Tabs(visible=True),
        gr.update(maximum=max(2, len(rows)), value=1, interactive=len(rows) > 1),
        seen,
        _as_read(report.prepared.table),
        {
            "headers": REJECTED_HEADERS,
            "data": [list(r.as_dict().values()) for r in report.rejected[:REJECTED_ROWS]],
        },
        views.lengths(report.lengths, config.train.max_length),
        *[gr.update(choices=choices)] * len(mapped),
    ]


def _unusable(tab: setup.SetUp, raw: tuple, error: GemmaTuneError, mapped: int) -> list:
    """The faults; and the rows as read where there are any, so that columns can be mapped by hand."""
    faults = views.fault_list(error.faults, "These data cannot be used yet")
    try:
        config, token = _read(tab, raw)
        table = data.read(config.data.source, config.data.subset, config.data.split, token)
    except GemmaTuneError:
        return _only_said(faults, mapped)
    columns = [gr.update(choices=["", *table.columns])] * mapped
    return [
        faults,
        gr.Tabs(visible=True),
        gr.skip(),
        "",
        _as_read(table),
        gr.update(value=None),
        "",
        *columns,
    ]


def _only_said(words: str, mapped: int) -> list:
    return [
        words,
        gr.Tabs(visible=False),
        gr.skip(),
        "",
        "",
        gr.update(value=None),
        "",
        *[gr.skip()] * mapped,
    ]


def _show_row(tab: setup.SetUp, raw: tuple, number: int) -> str:
    try:
        config, token = _read(tab, raw)
        return _rendered(config, _accepted(report_for(config, token)), int(number or 1), token)
    except GemmaTuneError:
        return ""  # the summary above says why


def _rendered(config: RunConfig, rows: list, number: int, token: str | None) -> str:
    if not rows:
        return ""
    row = rows[min(number, len(rows)) - 1]
    tokenizer = data.ChatTokenizer.from_folder(
        hub.tokenizer_folder(config.model.id, config.model.revision, token)
    )
    pieces = tokenizer.pieces(list(row.messages), config.train.max_length, config.train.assistant_only_loss)
    return views.rendered(pieces, row.number)


def _accepted(report) -> list:
    """Accepted rows in the order of the source, those of validation among them."""
    return sorted([*report.prepared.train, *report.prepared.validation], key=lambda row: row.number)


def _as_read(table) -> str:
    def cell(value: Any) -> str:
        text = (
            value
            if isinstance(value, str)
            else ""
            if value is None
            else json.dumps(value, ensure_ascii=False)
        )
        return text if len(text) <= PREVIEW_CHARACTERS else text[:PREVIEW_CHARACTERS] + "…"

    rows = [
        [str(number), *(cell(row.get(c)) for c in table.columns)] for number, row in table.rows[:PREVIEW_ROWS]
    ]
    return views.table(["Row", *table.columns], rows)


def _leave_data(tab: setup.SetUp, raw: tuple):
    try:
        config, token = _read(tab, raw)
        report = report_for(config, token)
    except GemmaTuneError as error:
        return gr.skip(), views.fault_list(error.faults, "These data cannot be used yet")
    if report.faults:
        return gr.skip(), views.data_summary(report)
    return gr.Walkthrough(selected=setup.METHOD), gr.skip()


# ---- method, review, start -----------------------------------------------------------------------------------------
def _validate(tab: setup.SetUp, raw: tuple) -> list:
    """One verdict per input, so that each fault stands at its field."""
    *values, _ = raw
    wrong: dict[str, str] = {}
    try:
        parse(tab.form.read(tuple(values)))
    except GemmaTuneError as error:
        wrong = {fault.where: f"{fault.rule} {fault.way_out}" for fault in error.faults}
    names = [*tab.form.widgets, "token"]
    return [gr.validate(name not in wrong, wrong.get(name, "")) for name in names]


def _review_outputs(tab: setup.SetUp) -> list:
    return [tab.parts[name] for name in ("review", "yaml", "start", "method_faults")] + [tab.steps]


def _to_review(tab: setup.SetUp, raw: tuple) -> list:
    try:
        config, token = _read(tab, raw)
        report = report_for(config, token)
    except GemmaTuneError as error:
        faults = views.fault_list(error.faults)
        return [faults, gr.skip(), gr.update(interactive=False), faults, gr.skip()]
    shown = views.review(config, report) + views.fault_list(report.faults)
    ready = gr.update(interactive=not report.faults)
    return [shown, config.to_yaml(), ready, "", gr.Walkthrough(selected=setup.REVIEW)]


def _start(tab: setup.SetUp, raw: tuple) -> list:
    try:
        config, token = _read(tab, raw)
        report = report_for(config, token)
        if report.faults:
            return [views.fault_list(report.faults), *[gr.skip()] * 3]
        compare.make_room()
        run_id = engine.start(config, token)
    except GemmaTuneError as error:
        return [views.fault_list(error.faults, "The run was not started"), *[gr.skip()] * 3]
    return [gr.skip(), *watch.open_run(run_id)]


def restore(tab: setup.SetUp, saved: dict | None) -> list:
    """Updates for every widget of the form and its helpers from what this browser remembers, or for a first visit."""
    remembered = saved if isinstance(saved, dict) else MODELS[POCKET_ID].recommended["lora"]
    values = [
        gr.update(value=remembered[name]) if name in remembered else gr.skip() for name in tab.form.widgets
    ]
    model_id, source, method = (
        remembered.get(name) or field_of(name).default for name in ("model.id", "data.source", "method.type")
    )
    return [*values, *helpers(model_id, source, method)]


def helper_outputs(tab: setup.SetUp) -> list:
    names = (
        "model_choice",
        "own_model",
        "model_facts",
        "kind",
        "example",
        "upload",
        "hub",
        "hub_id",
        "lora_front",
    )
    return [tab.parts[name] for name in names]


def helpers(model_id: str, source: str, method: str) -> list:
    """The widgets that are not settings themselves but choose one."""
    own = model_id not in MODELS
    kind = source.split(":", 1)[0] if source.startswith(("example:", "hub:")) else "upload"
    name = source.split(":", 1)[-1]
    return [
        setup.OWN_MODEL if own else model_id,
        gr.update(visible=own, value=model_id if own else ""),
        views.model_facts(model_id, on_disk=hub.is_on_disk(model_id)),
        kind,
        gr.update(visible=kind == "example", **({"value": name} if kind == "example" else {})),
        gr.update(visible=kind == "upload"),
        gr.update(visible=kind == "hub"),
        name if kind == "hub" else "",
        gr.update(visible=method == "lora"),
    ]


def report_for(config: RunConfig, token: str | None):
    """The doctor's report; the last few are kept, so that paging through rows reads nothing again."""
    digest = config.model_copy(update={"output": RunConfig().output}).digest()
    with _reports_lock:
        if digest in _reports:
            return _reports[digest]
    report = data.check(config, token)
    with _reports_lock:
        _reports[digest] = report
        while len(_reports) > REPORTS_KEPT:
            _reports.popitem(last=False)
    return report


def _read(tab: setup.SetUp, raw: tuple) -> tuple[RunConfig, str | None]:
    *values, token = raw
    return parse(tab.form.read(tuple(values))), token_of(token)


def token_of(typed: str | None) -> str | None:
    return (typed or "").strip() or os.environ.get("HF_TOKEN") or None
