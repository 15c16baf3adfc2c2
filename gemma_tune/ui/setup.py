"""The Set up tab: four guided steps. Layout only; what happens on a click stands in `steps.py`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import gradio as gr

from gemma_tune.catalog import MODELS, POCKET_ID
from gemma_tune.config import RunConfig, settings
from gemma_tune.data.formats import FORMATS
from gemma_tune.data.sources import example_names
from gemma_tune.ui import views
from gemma_tune.ui.form import ADVANCED, MAPPED, Form

MODEL, DATA, METHOD, REVIEW = 1, 2, 3, 4
OWN_MODEL = "own"
EXAMPLES = {
    "pocket-json": "Facts as JSON\nPocket Gemma answers with a compact JSON object",
    "pocket-orders": "Order lines\nTurns a spoken order into an order line",
    "pocket-polite": "A polite voice\nFrom curt answers to kind full sentences",
}
FIELDS = sorted({name for form in FORMATS.values() for name in (*form.needs, *form.may)})
IN_FRONT = [name for name, info in settings() if info.json_schema_extra["front"]]
TRAIN_FRONT = [name for name in IN_FRONT if name.startswith("train.") and name != "train.max_length"]
LORA_FRONT = ["method.r", "method.lora_alpha"]


@dataclass
class SetUp:
    """The widgets of the tab that its events need."""

    form: Form = field(default_factory=Form)
    saved: gr.BrowserState | None = None
    steps: gr.Walkthrough | None = None
    parts: dict[str, gr.components.Component] = field(default_factory=dict)


def build() -> SetUp:
    tab = SetUp()
    tab.saved = gr.BrowserState(None, storage_key="gemma-tune-form", secret="gemma-tune-form")
    with gr.Walkthrough(selected=MODEL, elem_id="steps") as tab.steps:
        with gr.Step("Model", id=MODEL, elem_id="step-model"):
            _model_step(tab)
        with gr.Step("Data", id=DATA, elem_id="step-data"):
            _data_step(tab)
        with gr.Step("Method", id=METHOD, elem_id="step-method"):
            _method_step(tab)
        with gr.Step("Review", id=REVIEW, elem_id="step-review"):
            _review_step(tab)
    return tab


def _model_step(tab: SetUp) -> None:
    form, parts = tab.form, tab.parts
    gr.HTML(
        '<p class="gt-lead">Which Gemma do you want to make your own? <b>Pocket Gemma</b> needs no download.</p>'
    )
    choices = [(views.model_choice(card), model_id) for model_id, card in MODELS.items()]
    choices.append(("Another Gemma\nA Hub id or a folder\nAny Gemma 2 or 3", OWN_MODEL))
    parts["model_choice"] = gr.Radio(
        choices,
        value=POCKET_ID,
        show_label=False,
        container=False,
        elem_id="model-choice",
        elem_classes="gt-choices",
    )
    parts["own_model"] = gr.Textbox(
        label="Hub id or folder",
        placeholder="google/gemma-3-1b-pt or /models/my-gemma",
        visible=False,
        elem_id="own-model",
    )
    form.add("model.id", visible=False)
    parts["model_facts"] = gr.HTML(views.model_facts(POCKET_ID, on_disk=True), elem_id="model-facts")
    with gr.Accordion("Hugging Face token, revision and number format", open=False):
        parts["token"] = gr.Textbox(
            label="Hugging Face token",
            info="For models behind a licence. It goes to the worker's environment and is never stored."
            + (" One is set on this machine already." if os.environ.get("HF_TOKEN") else ""),
            type="password",
            elem_id="token",
        )
        with gr.Row():
            form.add("model.revision")
            form.add("model.dtype")
    parts["model_faults"] = gr.HTML("", elem_id="model-faults")
    with gr.Row(elem_classes="gt-nav"):
        parts["model_next"] = gr.Button("Next: data", variant="primary", elem_id="model-next")


def _data_step(tab: SetUp) -> None:
    form, parts = tab.form, tab.parts
    gr.HTML('<p class="gt-lead">What should it learn? Every row is checked now, before anything starts.</p>')
    kinds = [("Built-in example", "example"), ("Upload a file", "upload"), ("Hugging Face Hub", "hub")]
    parts["kind"] = gr.Radio(kinds, value="example", show_label=False, container=False, elem_id="data-kind")
    examples = [(EXAMPLES.get(name, name), name) for name in example_names()]
    parts["example"] = gr.Radio(
        examples,
        value=RunConfig().data.source.removeprefix("example:"),
        show_label=False,
        container=False,
        elem_id="data-example",
        elem_classes="gt-choices",
    )
    parts["upload"] = gr.File(
        label="JSON, JSONL, CSV or TSV",
        file_types=[".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt"],
        visible=False,
        elem_id="data-upload",
        height=140,
    )
    with gr.Row(visible=False, elem_id="data-hub") as parts["hub"]:
        parts["hub_id"] = gr.Textbox(
            label="Data set on the Hub", placeholder="owner/name", elem_id="hub-id", scale=3
        )
        form.add(
            "data.subset", gr.Dropdown([""], value="", label="Subset", allow_custom_value=True, min_width=140)
        )
        form.add(
            "data.split",
            gr.Dropdown(["train"], value="train", label="Split", allow_custom_value=True, min_width=140),
        )
        parts["hub_find"] = gr.Button("Look it up", elem_id="hub-find", min_width=120)
    form.add("data.source", visible=False)
    with gr.Row():
        form.add("train.max_length")
        form.add("data.validation_fraction")
    with gr.Accordion("Schema, columns and split", open=False, elem_id="data-more"):
        with gr.Row():
            for name in ("data.format", "data.split_seed"):
                form.add(name)
        form.add("data.validation_source")
        gr.HTML(
            '<p class="gt-note">Columns are found by their names. Choose here where they are named otherwise.</p>'
        )
        with gr.Row():
            for name in FIELDS:
                form.add(
                    MAPPED + name,
                    gr.Dropdown([""], value="", label=name, min_width=150, allow_custom_value=True),
                )
    parts["summary"] = gr.HTML(elem_id="data-summary", min_height=90)
    with gr.Tabs(elem_id="data-views") as parts["views"]:
        with gr.Tab("What the model sees"):
            parts["row"] = gr.Slider(1, 2, value=1, step=1, label="Accepted row", elem_id="row-number")
            parts["sees"] = gr.HTML(elem_id="data-sees", min_height=140)
        with gr.Tab("Rows as read"):
            parts["read"] = gr.HTML(elem_id="data-read")
        with gr.Tab("Left out"):
            parts["rejected"] = gr.Dataframe(
                interactive=False,
                wrap=True,
                max_height=420,
                elem_id="data-rejected",
                column_widths=["70px", "120px", "22%", "30%", "30%"],
                show_label=False,
            )
        with gr.Tab("Lengths"):
            parts["lengths"] = gr.HTML(elem_id="data-lengths")
    with gr.Row(elem_classes="gt-nav"):
        parts["data_back"] = gr.Button("Back", elem_id="data-back")
        parts["data_next"] = gr.Button("Next: method", variant="primary", elem_id="data-next")


def _method_step(tab: SetUp) -> None:
    form, parts = tab.form, tab.parts
    gr.HTML(
        '<p class="gt-lead">How should it learn? The defaults fit the model; change what you know better.</p>'
    )
    methods = [
        ("LoRA\nTrains a small adapter beside the frozen model: little memory, hard to break", "lora"),
        ("Full\nTrains every weight: most memory, for larger changes", "full"),
    ]
    form.add(
        "method.type",
        gr.Radio(
            methods,
            value="lora",
            show_label=False,
            container=False,
            elem_id="method-type",
            elem_classes="gt-choices",
        ),
    )
    with gr.Row():
        form.add_all(TRAIN_FRONT)
    with gr.Row() as parts["lora_front"]:
        form.add_all(LORA_FRONT)
    with gr.Accordion("All other settings", open=False, elem_id="all-settings"):
        for section, title in (
            ("train", "Training"),
            ("method", "Adapter"),
            ("eval", "Evaluation"),
            ("output", "Saving"),
        ):
            gr.HTML(f'<div class="gt-plain"><h3>{title}</h3></div>')
            for switches in (False, True):
                names = _folded(form, section, switches=switches)
                if names:
                    with gr.Row():
                        form.add_all(names)
        form.add(
            ADVANCED,
            gr.Textbox(
                label="Advanced",
                info="Further arguments of TRL's SFTConfig (sft:) and PEFT's LoraConfig (lora:), in YAML.",
                placeholder="sft:\n  adam_beta2: 0.95",
                lines=3,
                elem_id="advanced",
            ),
        )
    parts["method_faults"] = gr.HTML("", elem_id="method-faults")
    with gr.Row(elem_classes="gt-nav"):
        parts["method_back"] = gr.Button("Back", elem_id="method-back")
        parts["method_next"] = gr.Button("Next: review", variant="primary", elem_id="method-next")


def _folded(form: Form, section: str, *, switches: bool) -> list[str]:
    """The settings of a section that have no widget yet; on-off switches stand in a row of their own."""
    return [
        name
        for name, info in settings()
        if name.startswith(section + ".")
        and name not in form.widgets
        and name != "output.name"
        and (info.annotation is bool) == switches
    ]


def _review_step(tab: SetUp) -> None:
    form, parts = tab.form, tab.parts
    form.add("output.name")
    parts["review"] = gr.HTML(elem_id="review-card", min_height=90)
    with gr.Accordion("The exact configuration, as YAML", open=False, elem_id="review-yaml"):
        gr.HTML(
            '<p class="gt-note">The same run from the command line: save this as <b>run.yaml</b> and call '
            "<b>gemma-tune train run.yaml</b>.</p>"
        )
        parts["yaml"] = gr.Code(language="yaml", show_label=False, interactive=False, elem_id="yaml")
    with gr.Row(elem_classes="gt-nav"):
        parts["review_back"] = gr.Button("Back", elem_id="review-back")
        parts["start"] = gr.Button("Start", variant="primary", interactive=False, elem_id="start")
