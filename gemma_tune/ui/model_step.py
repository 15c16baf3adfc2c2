"""The model step: family, size, base or instruction-tuned; a run to go on from; any other Gemma. Layout only."""

from __future__ import annotations

import os
from typing import Any

import gradio as gr

from gemma_tune.catalog import MODELS, POCKET_ID
from gemma_tune.ui import model_views, models
from gemma_tune.ui.form import SetUp


class Choice(gr.Radio):
    """A Radio whose choices follow the page. What is sent is judged by the function that takes it, as a server that
    was restarted meanwhile does not know which choices the page shows."""

    is_template = True  # the page draws it as a Radio

    def preprocess(self, payload: Any) -> str | None:
        return payload if isinstance(payload, str) else None


class Pick(gr.Dropdown):
    """A Dropdown of the same kind."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return payload if isinstance(payload, str) else None


def build(tab: SetUp) -> None:
    parts = tab.parts
    pocket = MODELS[POCKET_ID]
    gr.HTML('<p class="gt-lead">Which Gemma do you want to make your own?</p>')
    parts["family"] = _cards(models.family_choices(), pocket.family, "model-family")
    parts["size"] = _cards(models.size_choices(pocket.family), pocket.size, "model-size", visible=False)
    parts["variant"] = _cards(
        models.variant_choices(pocket.family, pocket.size), pocket.variant, "model-variant", visible=False
    )
    parts["run_model"] = Pick(
        [], label="Finished run", info="Its model learns on: after answers, preferences for instance.",
        visible=False, elem_id="run-model",
    )  # fmt: skip
    with gr.Row(visible=False, elem_classes="gt-end", elem_id="own-row") as parts["own_row"]:
        parts["own_model"] = gr.Textbox(
            label="Hub id or folder",
            placeholder="google/gemma-3-1b-pt or /models/my-gemma",
            elem_id="own-model",
            scale=4,
        )
        parts["own_find"] = gr.Button("Look it up", elem_id="own-find", min_width=120)
    tab.form.add("model.id", visible=False)
    parts["model_facts"] = gr.HTML(model_views.facts_of_card(pocket, on_disk=True), elem_id="model-facts")
    _more(tab)
    parts["model_access"] = gr.HTML("", elem_id="model-access")
    parts["model_faults"] = gr.HTML("", elem_id="model-faults")
    with gr.Row(elem_classes="gt-nav"):
        parts["model_next"] = gr.Button("Next: data", variant="primary", elem_id="model-next")


def _cards(choices: list, value: str, elem_id: str, visible: bool = True) -> Choice:
    return Choice(
        choices, value=value, show_label=False, container=False, visible=visible, elem_id=elem_id,
        elem_classes=["gt-choices", "gt-compact"],
    )  # fmt: skip


def _more(tab: SetUp) -> None:
    parts, form = tab.parts, tab.form
    title = "Hugging Face token, licence, revision, number format and attention"
    with gr.Accordion(title, open=False, elem_id="model-more"):
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
            form.add("model.attn_implementation")
