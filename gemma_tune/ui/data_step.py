"""The data step: pick sources, map columns, see what the model will see. Layout only; `data_events.py` does the rest."""

from __future__ import annotations

import gradio as gr

from gemma_tune import hub
from gemma_tune.config import RunConfig
from gemma_tune.data.files import IMAGE_SUFFIXES, SUFFIXES
from gemma_tune.data.rows import MECHANICAL
from gemma_tune.data.sources import example_names
from gemma_tune.ui.data_views import FIX_WORDS
from gemma_tune.ui.form import MAPPED, SetUp

EXAMPLES = {
    "pocket-json": "Facts as JSON\nPocket Gemma answers with a compact JSON object",
    "pocket-orders": "Order lines\nTurns a spoken order into an order line",
    "pocket-polite": "A polite voice\nFrom curt answers to kind full sentences",
}
KINDS = [
    ("Built-in example", "example"),
    ("Upload", "upload"),
    ("Hugging Face Hub", "hub"),
    ("TensorFlow Datasets", "tfds"),
    ("Folder on the server", "folder"),
]
FILE_TYPES = [*SUFFIXES, ".gz", ".zip", *IMAGE_SUFFIXES]
# The fields of all schemas in the order of reading; a test holds them to `FORMATS`.
FIELDS = (
    "messages", "conversations", "instruction", "input", "output", "prompt", "completion", "chosen", "rejected", "label",
    "text", "system", "history", "tools", "images",
)  # fmt: skip
ROWS_SHOWN = [("all rows", "all"), ("rows that are too long", "limited")]
SHOWN_AS = [("text", False), ("text with token ids", True)]
MIX_SCRIPT = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (button) trigger("mix_action", { action: button.dataset.action, index: Number(button.dataset.index) });
});"""


class RowNumber(gr.Slider):
    """A slider that a browser may report before it was ever drawn: its value is then None, which Slider refuses."""

    is_template = True  # the page draws it as a Slider

    def preprocess(self, payload: float | None) -> float:
        return self.minimum if payload is None else super().preprocess(payload)


def build(tab: SetUp) -> None:
    gr.HTML(
        '<p class="gt-lead">What should it learn? Every row is checked now, before anything starts. '
        "Rows may hold images, for models that see: Gemma 3 from 4B on and Gemma 4.</p>"
    )
    _sources(tab)
    _settings(tab)
    _progress(tab)
    tab.parts["asked"] = gr.Number(visible=False)  # how many checks this page has asked for
    with gr.Tabs(elem_id="data-views") as tab.parts["views"]:
        _rows(tab)
        _reasons(tab)
    with gr.Row(elem_classes="gt-nav"):
        tab.parts["data_back"] = gr.Button("Back", elem_id="data-back")
        tab.parts["data_next"] = gr.Button("Next: method", variant="primary", elem_id="data-next")


def _sources(tab: SetUp) -> None:
    parts = tab.parts
    parts["kind"] = gr.Radio(KINDS, value="example", show_label=False, container=False, elem_id="data-kind")
    parts["example"] = gr.Radio(
        [(EXAMPLES.get(name, name), name) for name in example_names()],
        value=RunConfig().data.source.removeprefix("example:"),
        show_label=False,
        container=False,
        elem_id="data-example",
        elem_classes="gt-choices",
    )
    parts["upload"] = gr.File(
        label="JSON, JSONL, CSV, TSV, Parquet, text, gzip or zip; several at once if you like, with the images that they name",
        file_count="multiple",
        file_types=FILE_TYPES,
        visible=False,
        elem_id="data-upload",
        height=150,
    )
    _remote(tab)
    with gr.Row(visible=False, elem_id="data-folder-row") as parts["folder_row"]:
        roots = ", ".join(str(root) for root in hub.allowed_roots()[3:] or hub.allowed_roots()[:1])
        parts["folder"] = gr.Textbox(
            label="File, zip file or folder on the server",
            info=f"Under one of: {roots}. A folder of a prepared TensorFlow data set is understood too.",
            placeholder="/data/my-rows",
            elem_id="data-folder",
        )
    tab.form.add("data.source", visible=False)
    tab.form.add("data.mix", gr.JSON(value=[], visible=False))
    parts["mix"] = gr.HTML("", js_on_load=MIX_SCRIPT, apply_default_css=False, elem_id="data-mix")


def _remote(tab: SetUp) -> None:
    """The Hub and TFDS: a name, then subset and split as the repository has them."""
    parts, form = tab.parts, tab.form
    with gr.Row(visible=False, elem_id="data-remote", elem_classes="gt-end") as parts["remote"]:
        parts["remote_id"] = gr.Textbox(
            label="Data set on the Hub", placeholder="owner/name", elem_id="remote-id", scale=3, min_width=220
        )
        form.add(
            "data.subset",
            gr.Dropdown(
                [""], value="", label="Subset", allow_custom_value=True, min_width=130, elem_id="data-subset"
            ),
        )
        form.add(
            "data.split",
            gr.Dropdown(
                ["train"], value="train", label="Split or slice", allow_custom_value=True, min_width=150,
                elem_id="data-split",
            ),
        )  # fmt: skip
        parts["remote_find"] = gr.Button("Look it up", elem_id="remote-find", min_width=120)
    parts["remote_note"] = gr.HTML("", visible=False, elem_id="remote-note")
    parts["access"] = gr.HTML("", elem_id="data-access")


def _settings(tab: SetUp) -> None:
    form, parts = tab.form, tab.parts
    with gr.Row():
        form.add("train.max_length")
        form.add("data.validation_fraction")
    with gr.Accordion("Schema and columns", open=False, elem_id="data-more"):
        gr.HTML(
            '<p class="gt-note">Columns are found by their names. Choose here where they are named otherwise; the rows '
            "below follow at once.</p>"
        )
        with gr.Row():
            form.add("data.format")
            for name in FIELDS:
                form.add(
                    MAPPED + name,
                    gr.Dropdown(
                        [("automatic", "")], value="", label=f"Column for {name}", min_width=170,
                        allow_custom_value=True, visible=False, elem_id=f"column-{name}",
                    ),
                )  # fmt: skip
        form.add("data.read_images")
    with gr.Accordion("Validation rows", open=False, elem_id="data-split-more"), gr.Row():
        form.add("data.validation_rows")
        form.add(
            "data.split_column",
            gr.Dropdown(
                [("none", "")], value="", label="Split column", allow_custom_value=True, elem_id="data-split-column",
                info="A column that says train, or validation, dev, eval or test.",
            ),
        )  # fmt: skip
        form.add("data.validation_source")
        form.add("data.split_seed")
    with gr.Accordion("Mix several data sets", open=False, elem_id="data-mix-more"):
        gr.HTML(
            '<p class="gt-note">Keep the data chosen above as one part of the mix, then choose the next. Each part has its '
            "own columns and a weight: 2 learns each of its rows twice per epoch, 0.5 only half of them.</p>"
        )
        with gr.Row(elem_classes="gt-end"):
            form.add("data.weight")
            parts["mix_add"] = gr.Button(
                "Keep these data and add others", elem_id="mix-add", min_width=220, scale=0
            )


def _progress(tab: SetUp) -> None:
    parts = tab.parts
    parts["summary"] = gr.HTML(elem_id="data-summary", min_height=90)
    with gr.Row(elem_classes="gt-nav"):
        parts["cancel"] = gr.Button("Stop checking", elem_id="check-cancel", visible=False, size="sm")
        parts["check_all"] = gr.Button(
            "Download and check every row", elem_id="check-all", visible=False, size="sm", variant="primary"
        )


def _rows(tab: SetUp) -> None:
    parts = tab.parts
    with gr.Tab("What the model sees", id="sees"):
        with gr.Row():
            parts["row"] = RowNumber(1, 2, value=1, step=1, label="Row", elem_id="row-number", min_width=240)
            parts["which"] = gr.Dropdown(
                ROWS_SHOWN, value="all", label="Of", elem_id="row-which", min_width=170
            )
            parts["ids"] = gr.Dropdown(
                SHOWN_AS, value=False, label="Shown as", elem_id="row-ids", min_width=170
            )
        parts["sees"] = gr.HTML(elem_id="data-sees", min_height=140)
    with gr.Tab("Rows as read", id="read"):
        parts["read"] = gr.HTML(elem_id="data-read")
    with gr.Tab("Lengths", id="lengths"):
        parts["lengths"] = gr.HTML(elem_id="data-lengths")


def _reasons(tab: SetUp) -> None:
    parts = tab.parts
    with gr.Tab("Findings", id="findings", elem_id="tab-findings") as parts["findings_tab"]:
        parts["findings"] = gr.HTML(elem_id="data-findings")
    with gr.Tab("Left out", id="rejected", elem_id="tab-rejected") as parts["rejected_tab"]:
        tab.form.add(
            "data.fixes",
            gr.CheckboxGroup(
                [(f"{name}: {FIX_WORDS[name]}", name) for name in MECHANICAL],
                value=[],
                label="Mend what is mechanical",
                info="Nothing else of a row is changed. The table shows what each fix would make of the rows left out.",
                elem_id="data-fixes",
            ),
        )
        parts["fixes"] = gr.HTML(elem_id="data-fixed")
        parts["nothing"] = gr.HTML(elem_id="data-nothing")
        parts["rejected"] = gr.Dataframe(
            interactive=False,
            wrap=True,
            max_height=420,
            elem_id="data-rejected",
            column_widths=["80px", "180px", "200px", "330px", "336px"],
            show_label=False,
            visible=False,
        )
        parts["download"] = gr.DownloadButton(
            "Download all of them as CSV", elem_id="rejected-download", visible=False, size="sm"
        )
