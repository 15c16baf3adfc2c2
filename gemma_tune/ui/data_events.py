"""What the data step does once there is a source: checks it in the background, shows what was found."""

from __future__ import annotations

import csv
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from gemma_tune import data, outlook
from gemma_tune.config import RunConfig
from gemma_tune.data.formats import FORMATS, convert
from gemma_tune.data.sources import HUB, TFDS, hub_size_bytes
from gemma_tune.errors import GemmaTuneError
from gemma_tune.ui import checks, data_rows, data_views, method_events, method_views, setup, views
from gemma_tune.ui.form import MAPPED, QUIET, SetUp
from gemma_tune.ui.reading import read_form

REJECTED_ROWS = 1_000
REJECTED_HEADERS = ["Source", "Row", "Field", "Found", "Rule", "Way out"]
LOOK_SECONDS = 0.3
HUB_AUTOMATIC_BYTES = (
    100_000_000  # larger sets are downloaded only when asked for; their first rows are streamed
)

COUNTED = "(...values) => [...values.slice(0, -1), (window.gtChecks = (window.gtChecks || 0) + 1)]"

log = logging.getLogger(__name__)
Updates = dict[gr.components.Component, Any]


def wire(tab: SetUp, picked: list) -> None:
    """`picked`: events of choosing a source after which it is checked."""
    parts, form = tab.parts, tab.form
    length = form.widgets["train.max_length"]
    changes = [length.submit, length.blur] + [
        widget.input
        for name, widget in form.widgets.items()
        if name.startswith(("data.", MAPPED)) and name not in ("data.source", "data.subset", "data.mix")
    ]
    gr.on(changes, api_name="recheck", **check_event(tab))
    for event in picked:
        event.then(api_name="check_picked", **check_event(tab))
    parts["check_all"].click(api_name="check_all", **check_event(tab, download=True))
    parts["cancel"].click(_stop, None, None, api_name="check_stop", **QUIET)
    gr.on(
        [parts["row"].change, parts["which"].input, parts["ids"].input],
        lambda number, which, ids, *raw: data_rows.show_row(tab, raw, number, which, ids),
        [parts["row"], parts["which"], parts["ids"], *tab.everything], [parts["row"], parts["sees"]],
        trigger_mode="always_last", api_name="show_row", **QUIET,
    )  # fmt: skip
    parts["data_next"].click(
        lambda *raw: _leave(tab, raw), tab.everything, [tab.steps, parts["summary"]], api_name="leave_data",
        api_visibility="private",
    )  # fmt: skip


# ---- the check -----------------------------------------------------------------------------------------------------
def outputs(tab: SetUp) -> list:
    names = (
        "summary", "cancel", "check_all", "views", "row", "sees", "read", "lengths", "findings", "findings_tab",
        "rejected_tab", "fixes", "nothing", "rejected", "download",
    )  # fmt: skip
    mapped = [widget for name, widget in tab.form.widgets.items() if name.startswith(MAPPED)]
    own = [*(tab.parts[name] for name in names), tab.form.widgets["data.split_column"], *mapped]
    return [*own, tab.form.widgets["objective.type"], tab.parts["left_out"], *method_events.outputs(tab)]


def check_event(tab: SetUp, download: bool = False) -> dict[str, Any]:
    """What an event that checks is wired with: a generator of updates while the check of this page goes on.

    The browser counts the checks that it asks for; on a busy machine they may arrive in another order.
    """

    def check(request: gr.Request, *raw: Any) -> Iterator[Updates]:
        *values, count = raw
        page = str(request.session_hash)
        if checks.is_newest(page, count):
            yield from check_data(tab, tuple(values), page, download=download)

    return {
        "fn": check,
        "inputs": [*tab.everything, tab.parts["asked"]],
        "outputs": outputs(tab),
        "js": COUNTED,
        "trigger_mode": "multiple",
        "concurrency_limit": 16,
        "show_progress": "hidden",
        "api_visibility": "private",
    }


def check_data(tab: SetUp, raw: tuple, page: str, *, download: bool = False) -> Iterator[Updates]:
    """Updates of `outputs`: the progress with the first rows, then the report. A later check of the page ends this one."""
    if not tab.value_of(raw, "data.source"):
        checks.forget(page)
        waiting = "Choose a file or a data set above; it is checked at once."
        if tab.value_of(raw, "data.mix"):
            waiting = "Choose the next data set of the mix above, or bring one back with Edit."
        yield _only_said(tab, views.notice("", "No data yet", waiting))
        return
    try:
        config, token = read_form(tab, raw)
        if not download and (size := _large_download(config, token)):
            yield _first_look(tab, config, token, size)
            return
    except GemmaTuneError as error:
        yield _unusable(tab, raw, error)
        return
    yield from _checked(tab, raw, page, config, token)


def _checked(tab: SetUp, raw: tuple, page: str, config: RunConfig, token: str | None) -> Iterator[Updates]:
    check = checks.begin(page, config, token)
    looked = False
    try:
        while not check.ended.wait(LOOK_SECONDS):
            if check.replaced:
                return
            first = {} if looked else _rows_as_read(tab, config, token)
            looked = True
            yield {
                **first,
                tab.parts["summary"]: data_views.progress(*check.progress),
                tab.parts["cancel"]: gr.update(visible=True),
            }
        if check.replaced:
            return
        if check.stopped:
            yield _only_said(
                tab,
                views.notice(
                    "warm", "Stopped", "The check was stopped. Change something or go on to check again."
                ),
            )
        elif isinstance(check.error, GemmaTuneError):
            yield _unusable(tab, raw, check.error)
        elif check.error:  # a bug of ours; the page must not wait for ever
            log.error("The check of the data failed.", exc_info=check.error)
            words = f"{type(check.error).__name__}: {check.error}. The app's log has the whole story; please report it."
            yield _only_said(tab, views.notice("bad", "The check failed through a fault of ours", words))
        else:
            yield from _judged(tab, raw, config, check.report, token)
    finally:
        checks.end(page, check)


def _judged(
    tab: SetUp, raw: tuple, config: RunConfig, report: data.Report, token: str | None
) -> Iterator[Updates]:
    """The report, for an objective that these data allow: another one is chosen where they do not."""
    kinds = method_events.kinds_of(report)
    shape = outlook.geometry_of(config.model.id, config.model.revision)
    model_type = shape.generation if shape else ""
    objective = method_views.fitting(config.objective.type, kinds, model_type)
    offered = method_events.offered(tab, kinds, model_type, objective)
    if objective != config.objective.type:
        changed = config.objective.model_copy(update={"type": objective})
        config = config.model_copy(update={"objective": changed})
        report = checks.report_for(config, token)  # rows and tokens are found again; only the verdict is new
        values = tab.form.values(raw[:-1]) | {"objective.type": objective}
        offered = {**method_events.advised(tab, values), **offered}
    yield {**_reported(tab, config, report, token), **offered}


def _stop(request: gr.Request) -> None:
    checks.stop(str(request.session_hash))


def _large_download(config: RunConfig, token: str | None) -> int:
    """Bytes of a Hub set that is not checked yet and too large to be downloaded without being asked; else 0."""
    if not config.data.source.startswith(HUB) or checks.known(config):
        return 0
    size = hub_size_bytes(config.data.source.removeprefix(HUB), token) or 0
    return size if size > HUB_AUTOMATIC_BYTES else 0


def _first_look(tab: SetUp, config: RunConfig, token: str | None, size: int) -> Updates:
    """The first rows, streamed, as the model would see them."""
    one = config.data
    table = data.read(one.source, one.subset, one.split, token, limit=data_rows.PREVIEW_ROWS)
    words = (
        f"These are the first {len(table.rows)} rows, streamed. To check every row, {views.size(size)} are downloaded; "
        "that is needed before the start."
    )
    return {
        **_only_said(tab, views.notice("", "A first look", words)),
        **_table_updates(tab, table),
        tab.parts["views"]: gr.Tabs(visible=True, selected="read"),
        tab.parts["check_all"]: gr.update(visible=True),
    }


def _rows_as_read(tab: SetUp, config: RunConfig, token: str | None) -> Updates:
    """The first rows while a large source is still being checked; nothing where they cannot be had at once."""
    one = config.data
    if one.source.startswith(TFDS):  # to look at its first rows would prepare it a second time
        return {}
    try:
        table = data.read(one.source, one.subset, one.split, token, limit=data_rows.PREVIEW_ROWS)
        rows, _ = convert(table, data.recognise(table, one.format, one.columns), frozenset(one.fixes))
    except GemmaTuneError:
        return {}  # the check itself will say so
    return {
        tab.parts["views"]: gr.Tabs(visible=True),
        tab.parts["sees"]: data_rows.rendered(config, rows[0], token) if rows else "",
        **_table_updates(tab, table),
    }


def _table_updates(tab: SetUp, table: data.Table, fields: list[str] | None = None) -> Updates:
    columns = table.columns[:500]
    mapped = {
        widget: gr.update(
            choices=[("automatic", ""), *columns],
            visible=fields is None or name.removeprefix(MAPPED) in fields,
        )
        for name, widget in tab.form.widgets.items()
        if name.startswith(MAPPED)
    }
    return {
        tab.parts["read"]: data_rows.as_read(table),
        tab.form.widgets["data.split_column"]: gr.update(choices=[("none", ""), *columns]),
        **(mapped if fields is not None else {}),
    }


def _reported(tab: SetUp, config: RunConfig, report: data.Report, token: str | None) -> Updates:
    parts, store = tab.parts, report.prepared.store
    opened = report.prepared.parts[0].opened
    schema = report.prepared.schema
    fields = [*FORMATS[schema.format].needs, *FORMATS[schema.format].may]
    updates = _table_updates(tab, data.first_rows(opened, data_rows.PREVIEW_ROWS), fields)
    for name in fields:
        widget = tab.form.widgets[MAPPED + name]
        found = schema.columns.get(name)
        updates[widget]["choices"][0] = (f"automatic: {found}" if found else "automatic: none", "")
    serious = sum(one.tone == "warm" for one in report.findings)
    return {
        **updates,
        **_left_out(tab, report),
        parts["summary"]: data_views.summary(report, config.objective.type),
        parts["cancel"]: gr.update(visible=False),
        parts["check_all"]: gr.update(visible=False),
        parts["views"]: gr.Tabs(visible=True) if len(store) else gr.Tabs(visible=True, selected="rejected"),
        parts["row"]: gr.update(maximum=max(2, len(store)), value=1, interactive=len(store) > 1),
        parts["sees"]: data_rows.rendered(config, store.row(0), token, store=store) if len(store) else "",
        parts["lengths"]: data_views.lengths(report.lengths, config.train.max_length),
        parts["findings"]: data_views.findings(report.findings),
        parts["findings_tab"]: gr.Tab(label=f"Findings ({serious})" if serious else "Findings"),
    }


def _left_out(tab: SetUp, report: data.Report) -> Updates:
    parts, rows = tab.parts, [*report.rejected, *report.limited][:REJECTED_ROWS]
    count = report.rows_rejected
    named = any(row.file for row in rows)
    shown = slice(0 if named else 1, None)
    headers, cells = REJECTED_HEADERS[shown], [_cells(row)[shown] for row in rows]
    none = views.notice(
        "good", "No row is left out", "Every row can be used, and fits into the maximum length."
    )
    return {
        parts["rejected_tab"]: gr.Tab(label=f"Left out ({count:,})" if count else "Left out"),
        parts["fixes"]: data_views.fixes(report.rejected),
        parts["nothing"]: "" if rows else none,
        parts["rejected"]: gr.update(value={"headers": headers, "data": cells}, visible=bool(rows)),
        parts["download"]: gr.update(value=_reasons_file(report), visible=bool(rows))
        if rows
        else gr.update(visible=False),
    }


def _reasons_file(report: data.Report) -> str:
    """Every row that is left out or cut, as CSV; cells that a spreadsheet would run are quoted."""
    folder = Path(tempfile.gettempdir()) / "gemma-tune"
    folder.mkdir(exist_ok=True)
    path = folder / f"left-out-{report.prepared.store.key[:12]}.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(str.lower, REJECTED_HEADERS))
        for row in (*report.prepared.store.rejected(), *report.limited):
            writer.writerow(
                [f"'{cell}" if str(cell)[:1] in "=+-@\t" and cell else cell for cell in _cells(row)]
            )
    return str(path)


def _cells(row: data.Rejected) -> list:
    """In the order of REJECTED_HEADERS."""
    return list(({"file": ""} | row.as_dict()).values())


def _unusable(tab: SetUp, raw: tuple, error: GemmaTuneError) -> Updates:
    """The faults; and the rows as read where there are any, so that columns can be mapped by hand."""
    said = _only_said(tab, views.fault_list(error.faults, "These data cannot be used yet"))
    try:
        config, token = read_form(tab, raw)
        table = data.read(
            config.data.source, config.data.subset, config.data.split, token, limit=data_rows.PREVIEW_ROWS
        )
    except GemmaTuneError:
        return said
    form = config.data.format if config.data.format != "auto" else "prompt_completion"
    fields = [*FORMATS[form].needs, *FORMATS[form].may]
    return {
        **said,
        **_table_updates(tab, table, fields),
        tab.parts["views"]: gr.Tabs(visible=True, selected="read"),
    }


def _only_said(tab: SetUp, words: str) -> Updates:
    """Words in place of a report."""
    parts = tab.parts
    return {
        parts["summary"]: words,
        parts["cancel"]: gr.update(visible=False),
        parts["check_all"]: gr.update(visible=False),
        parts["views"]: gr.Tabs(visible="hidden"),  # still there: a slider that is taken away sends no number
        **{parts[name]: "" for name in ("sees", "read", "lengths", "findings", "fixes", "nothing")},
        parts["rejected"]: gr.update(visible=False, value=None),
        parts["download"]: gr.update(visible=False),
        parts["findings_tab"]: gr.Tab(label="Findings"),
        parts["rejected_tab"]: gr.Tab(label="Left out"),
    }


# ---- on to the method ----------------------------------------------------------------------------------------------
def _leave(tab: SetUp, raw: tuple) -> list:
    try:
        config, token = read_form(tab, raw)
        if _large_download(config, token):
            words = "Press the button below: every row is downloaded and checked, so that nothing surprises later."
            return [gr.skip(), views.notice("warm", "Not checked yet", words)]
        report = checks.report_for(config, token)
    except GemmaTuneError as error:
        return [gr.skip(), views.fault_list(error.faults, "These data cannot be used yet")]
    if report.faults:
        return [gr.skip(), data_views.summary(report, config.objective.type)]
    return [gr.Walkthrough(selected=setup.METHOD), gr.skip()]
