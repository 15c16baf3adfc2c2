"""The method step: what is learned, how, with which settings, and beside it the forecast. Layout only."""

from __future__ import annotations

import gradio as gr

from gemma_tune import outlook
from gemma_tune.config import settings
from gemma_tune.ui import forecast_panel, method_views
from gemma_tune.ui.form import ADVANCED, Form, SetUp
from gemma_tune.ui.model_step import Choice

FOLDED = (
    ("train", "Training"), ("method", "Adapter"), ("objective", "Objective"), ("eval", "Evaluation"),
    ("output", "Saving"),
)  # fmt: skip
OWN_PLACE = ("objective.type", "method.type", "train.max_length", "output.name", "model.id", "data.source")


def build(tab: SetUp) -> None:
    parts = tab.parts
    with gr.Row(elem_id="method-columns", elem_classes="gt-aside"):
        with gr.Column(scale=17, min_width=320):
            _choices(tab)
            _front(tab.form)
            parts["advice"] = gr.HTML(elem_id="advice")
            with gr.Accordion("All other settings", open=False, elem_id="all-settings"):
                _fold(tab)
            _devices(tab)
        with gr.Column(scale=9, min_width=300, elem_classes="gt-sticky"):
            forecast_panel.build(tab)
    parts["method_faults"] = gr.HTML("", elem_id="method-faults")
    with gr.Row(elem_classes="gt-nav"):
        parts["method_back"] = gr.Button("Back", elem_id="method-back")
        parts["method_next"] = gr.Button("Next: review", variant="primary", elem_id="method-next")


def _choices(tab: SetUp) -> None:
    parts = tab.parts
    gr.HTML('<h2 class="gt-ask">What should it learn from your rows?</h2>')
    tab.form.add(
        "objective.type",
        Choice(
            method_views.objective_choices(), value="sft", show_label=False, container=False,
            elem_id="objective-type", elem_classes="gt-choices",
        ),
    )  # fmt: skip
    parts["left_out"] = gr.HTML("", elem_id="objectives-left-out")
    gr.HTML('<h2 class="gt-ask">How?</h2>')
    tab.form.add(
        "method.type",
        gr.Radio(
            method_views.METHODS, value="lora", show_label=False, container=False, elem_id="method-type",
            elem_classes="gt-choices",
        ),
    )  # fmt: skip


def _front(form: Form) -> None:
    """One grid, so that what applies closes the gaps of what does not."""
    with gr.Row(elem_id="front-settings"):
        form.add_all(
            name
            for section in ("objective", "train", "method")
            for name, info in settings()
            if name.startswith(section + ".") and info.json_schema_extra["front"] and name not in OWN_PLACE
        )


def _fold(tab: SetUp) -> None:
    form, groups = tab.form, tab.groups
    for section, title in FOLDED:
        with gr.Column(elem_classes="gt-group") as group:
            gr.HTML(f'<div class="gt-plain"><h3>{title}</h3></div>')
            for switches in (False, True):
                with gr.Row():
                    names = _folded(form, section, switches=switches)
                    form.add_all(names)
                    tab.folded.update(names)
        groups[section] = group
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


def _devices(tab: SetUp) -> None:
    """Open where there is something to choose; one quiet line where there is not."""
    gpus = outlook.gpu_names()
    names = f"{len(gpus)} × {gpus[0]}" if len(gpus) > 1 else gpus[0] if gpus else "the CPU of this machine"
    title = f"Devices: {names}" if len(gpus) > 1 else f"Trains on {names}. Several devices or hosts"
    with gr.Accordion(title, open=len(gpus) > 1, elem_id="devices"):
        for switches in (False, True):
            if names := _folded(tab.form, "devices", switches=switches):
                with gr.Row():
                    tab.form.add_all(names)
        tab.parts["hosts_note"] = gr.HTML("", elem_id="hosts-note")
        tab.parts["hosts"] = gr.Code(
            language="shell", show_label=False, interactive=False, visible=False, elem_id="hosts"
        )


def _folded(form: Form, section: str, *, switches: bool) -> list[str]:
    """The settings of a section that have no widget yet; on-off switches stand in a row of their own."""
    return [
        name
        for name, info in settings()
        if name.startswith(section + ".")
        and name not in form.widgets
        and name not in OWN_PLACE
        and (info.annotation is bool) == switches
    ]
