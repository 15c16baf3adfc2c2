"""The rows of the data step: one at a time as the model sees it, and the first ones as they were read."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
import numpy as np

from gemma_tune import data, hub
from gemma_tune.config import RunConfig
from gemma_tune.data.images import without_bytes
from gemma_tune.errors import GemmaTuneError
from gemma_tune.ui import checks, data_views, views
from gemma_tune.ui.form import SetUp
from gemma_tune.ui.reading import read_form
from gemma_tune.ui.thumbnails import thumbnails

PREVIEW_ROWS = 50
PREVIEW_COLUMNS = 20
PREVIEW_CHARACTERS = 400


def show_row(tab: SetUp, raw: tuple, number: int, which: str, ids: bool) -> list:
    """The row at a place among all, or among those that do not come whole to the model."""
    try:
        config, token = read_form(tab, raw)
    except GemmaTuneError:
        return [gr.skip(), gr.skip()]
    report = checks.known(config)
    if report is None or not len(report.prepared.store):
        return [gr.skip(), gr.skip()]  # a check is under way, or the summary above says why
    rows = _rows_to_show(report, config, which)
    if not len(rows):
        return [
            gr.update(interactive=False),
            views.notice("good", "Nothing to show", "Every row fits into the maximum length."),
        ]
    place = min(max(1, int(number or 1)), len(rows))
    slider = gr.update(maximum=max(2, len(rows)), value=place, interactive=len(rows) > 1)
    row = report.prepared.store.row(int(rows[place - 1]))
    return [slider, rendered(config, row, token, ids=ids, store=report.prepared.store)]


def _rows_to_show(report: data.Report, config: RunConfig, which: str) -> np.ndarray:
    if which == "all" or report.tokens is None:
        return np.arange(len(report.prepared.store))
    long = report.tokens.lengths > config.train.max_length
    return np.flatnonzero(long | (report.tokens.learned(config.train.max_length) == 0))


def rendered(
    config: RunConfig,
    row: data.Row,
    token: str | None,
    *,
    ids: bool = False,
    store: data.Store | None = None,
) -> str:
    """One row as the model reads it, its images from the store where there is one already."""
    limit, answers_only = config.train.max_length, config.train.assistant_only_loss
    try:
        chat = data.ChatTokenizer.from_folder(
            hub.tokenizer_folder(config.model.id, config.model.revision, token)
        )
        pieces = chat.pieces(row, limit, answers_only)
        answers_alone = config.objective.type == "sft"
        pictures = thumbnails([store.image_path(one["file"]) for one in row.images]) if store else []
        shown = data_views.rendered(
            pieces,
            row.number,
            row.file,
            ids=ids,
            label=row.label,
            left_alone=answers_alone and row.label is False,
            pictures=pictures,
        )
        if row.rejected_messages is None:
            return shown
        other = data.Row(row.number, [*row.messages[: row.prompt_turns], *row.rejected_messages], prompt_turns=row.prompt_turns, tools=row.tools)  # fmt: skip
        return shown + data_views.rendered(
            chat.pieces(other, limit, answers_only),
            row.number,
            row.file,
            ids=ids,
            title="With the rejected answer",
            left_alone=answers_alone,
        )
    except GemmaTuneError as error:
        return views.fault_list(error.faults, f"Row {row.number} cannot be shown as this model would read it")


def as_read(table: data.Table) -> str:
    def cell(value: Any) -> str:
        text = (
            without_bytes(value)
            if isinstance(value, str | bytes)
            else ""
            if value is None
            else json.dumps(without_bytes(value), ensure_ascii=False, default=str)
        )
        return text if len(text) <= PREVIEW_CHARACTERS else text[:PREVIEW_CHARACTERS] + "…"

    columns = table.columns[:PREVIEW_COLUMNS]
    rows = [
        [str(number), *(cell(row.get(one)) for one in columns)] for number, row in table.rows[:PREVIEW_ROWS]
    ]
    return views.table(["Row", *columns], rows)
