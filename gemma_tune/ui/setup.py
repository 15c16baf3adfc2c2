"""The Set up tab: four guided steps. Layout only; what happens on a click stands in `steps.py`."""

from __future__ import annotations

import os

import gradio as gr

from gemma_tune.catalog import MODELS, POCKET_ID
from gemma_tune.config import settings
from gemma_tune.ui import data_step, views
from gemma_tune.ui.form import ADVANCED, Form, SetUp

MODEL, DATA, METHOD, REVIEW = 1, 2, 3, 4
OWN_MODEL = "own"
IN_FRONT = [name for name, info in settings() if info.json_schema_extra["front"]]
TRAIN_FRONT = [name for name in IN_FRONT if name.startswith("train.") and name != "train.max_length"]
LORA_FRONT = ["method.r", "method.lora_alpha"]


def build() -> SetUp:
    tab = SetUp()
    tab.saved = gr.BrowserState(None, storage_key="gemma-tune-form", secret="gemma-tune-form")
    with gr.Walkthrough(selected=MODEL, elem_id="steps") as tab.steps:
        with gr.Step("Model", id=MODEL, elem_id="step-model"):
            _model_step(tab)
        with gr.Step("Data", id=DATA, elem_id="step-data"):
            data_step.build(tab)
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
    with gr.Accordion(
        "Hugging Face token, licence, revision and number format", open=False, elem_id="model-more"
    ):
        parts["token"] = gr.Textbox(
            label="Hugging Face token",
            info="For models behind a licence. It goes to the worker's environment and is never stored."
            + (" One is set on this machine already." if os.environ.get("HF_TOKEN") else ""),
            type="password",
            elem_id="token",
        )
        parts["access_ask"] = gr.Button("Check token and licence", elem_id="access-ask", size="sm")
        with gr.Row():
            form.add("model.revision")
            form.add("model.dtype")
    parts["model_access"] = gr.HTML("", elem_id="model-access")
    parts["model_faults"] = gr.HTML("", elem_id="model-faults")
    with gr.Row(elem_classes="gt-nav"):
        parts["model_next"] = gr.Button("Next: data", variant="primary", elem_id="model-next")


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
            ("objective", "Objective"),
            ("eval", "Evaluation"),
            ("output", "Saving"),
            ("devices", "Devices"),
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
                info="Further arguments of TRL's trainer configuration (trainer:) and PEFT's LoraConfig (lora:), in YAML.",
                placeholder="trainer:\n  adam_beta2: 0.95",
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
