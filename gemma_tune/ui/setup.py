"""The Set up tab: four guided steps, each laid out in a file of its own; what happens on a click stands in `steps.py`."""

from __future__ import annotations

import gradio as gr

from gemma_tune.ui import data_step, method_step, model_step
from gemma_tune.ui.form import SetUp

MODEL, DATA, METHOD, REVIEW = 1, 2, 3, 4


def build() -> SetUp:
    tab = SetUp()
    tab.saved = gr.BrowserState(None, storage_key="gemma-tune-form", secret="gemma-tune-form")
    with gr.Walkthrough(selected=MODEL, elem_id="steps") as tab.steps:
        with gr.Step("Model", id=MODEL, elem_id="step-model"):
            model_step.build(tab)
        with gr.Step("Data", id=DATA, elem_id="step-data"):
            data_step.build(tab)
        with gr.Step("Method", id=METHOD, elem_id="step-method"):
            method_step.build(tab)
        with gr.Step("Review", id=REVIEW, elem_id="step-review"):
            _review_step(tab)
    return tab


def _review_step(tab: SetUp) -> None:
    form, parts = tab.form, tab.parts
    form.add("output.name")
    parts["review"] = gr.HTML(elem_id="review-card", min_height=90)
    parts["review_forecast"] = gr.HTML("", elem_id="review-forecast")
    with gr.Accordion("The exact configuration, as YAML", open=False, elem_id="review-yaml"):
        gr.HTML(
            '<p class="gt-note">The same run from the command line: save this as <b>run.yaml</b> and call '
            "<b>gemma-tune train run.yaml</b>.</p>"
        )
        parts["yaml"] = gr.Code(language="yaml", show_label=False, interactive=False, elem_id="yaml")
    with gr.Row(elem_classes="gt-nav"):
        parts["review_back"] = gr.Button("Back", elem_id="review-back")
        parts["start"] = gr.Button("Start", variant="primary", interactive=False, elem_id="start")
