"""What the method step does: shows what applies, and sets what is recommended when model, objective or method change."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from gemma_tune import outlook
from gemma_tune.config import RunConfig, applies
from gemma_tune.data.doctor import Report
from gemma_tune.data.facts import KINDS
from gemma_tune.runs.launch import host_commands
from gemma_tune.ui import method_views
from gemma_tune.ui.form import CONDITIONAL, CONTROLS, QUIET, SetUp

ADVISING = ("objective.type", "method.type")  # a change of these brings other recommended values
Updates = dict[gr.components.Component, Any]


def wire(tab: SetUp) -> None:
    form = tab.form
    gr.on(
        [form.widgets[name].input for name in ADVISING], partial(_advise, tab), form.inputs, outputs(tab),
        api_name="recommend", **QUIET,
    )  # fmt: skip
    gr.on(
        [form.widgets[name].input for name in CONTROLS if name not in ADVISING],
        lambda *raw: arranged(tab, form.values(raw)), form.inputs, outputs(tab), api_name="arrange", **QUIET,
    )  # fmt: skip


def advise_after(tab: SetUp, event, api_name: str) -> None:
    """Once another model is chosen, its recommended values are set."""
    event.then(partial(_advise_model, tab), tab.form.inputs, outputs(tab), api_name=api_name, **QUIET)


def outputs(tab: SetUp) -> list:
    names = dict.fromkeys(["method.type", *method_views.advisable(), *CONDITIONAL])
    return [*(tab.form.widgets[name] for name in names), *beside(tab)]


def beside(tab: SetUp) -> list:
    """What `arranged` updates beside the settings."""
    return [*tab.groups.values(), tab.parts["advice"]]


def _advise(tab: SetUp, *raw: Any) -> Updates:
    return advised(tab, tab.form.values(raw))


def _advise_model(tab: SetUp, *raw: Any) -> Updates:
    """Another model also brings the method that suits its size."""
    values = tab.form.values(raw)
    if card := outlook.card_of(values.get("model.id") or ""):
        values["method.type"] = card.methods[0]
    return {**advised(tab, values), tab.form.widgets["method.type"]: values["method.type"]}


def advised(tab: SetUp, values: dict[str, Any]) -> Updates:
    """What is recommended for these values is set, and what applies then is shown."""
    found = _recommended(values)
    return arranged(tab, values | {name: one.value for name, one in found.items()}, set(found))


def arranged(tab: SetUp, values: dict[str, Any], written: Collection[str] = ()) -> Updates:
    """What applies is shown, all else hidden; the values of `written` are set."""
    form = tab.form
    updates: Updates = {
        form.widgets[name]: gr.update(
            **({"visible": applies(name, values)} if name in CONDITIONAL else {}),
            **({"value": values[name]} if name in written else {}),
        )
        for name in dict.fromkeys([*CONDITIONAL, *written])
    }
    for section, group in tab.groups.items():
        names = [name for name in form.widgets if name in tab.folded and name.startswith(section + ".")]
        updates[group] = gr.update(visible=any(applies(name, values) for name in names))
    return {**updates, tab.parts["advice"]: advice_of(values)}


def _recommended(values: dict[str, Any]) -> dict:
    card = outlook.card_of(values.get("model.id") or "")
    return method_views.recommended(values["objective.type"], values["method.type"], card)


def advice_of(values: dict[str, Any]) -> str:
    return method_views.advice_lines(_recommended(values), values, applies)


# ---- what the data allow -------------------------------------------------------------------------------------------
def kinds_of(report: Report) -> tuple[str, ...]:
    """The kinds of rows that a report's data hold, and that they hold images."""
    store = report.prepared.store
    images = (method_views.IMAGES,) if store.has_images else ()
    return (*(KINDS[kind] for kind in np.unique(store.facts["kind"])), *images) if len(store.facts) else ()


def offered(tab: SetUp, kinds: Collection[str], model_type: str, objective: str) -> Updates:
    """The objectives that data and model allow, and why the others are not among them."""
    choices = method_views.objective_choices(kinds, model_type)
    return {
        tab.form.widgets["objective.type"]: gr.update(choices=choices, value=objective),
        tab.parts["left_out"]: method_views.left_out(kinds, model_type),
    }


# ---- several hosts -------------------------------------------------------------------------------------------------
def hosts(tab: SetUp, config: RunConfig | None) -> Updates:
    """What is to be started where; nothing for one host."""
    note, code = tab.parts["hosts_note"], tab.parts["hosts"]
    if config is None or config.devices.num_machines == 1:
        return {note: "", code: gr.update(visible=False)}
    commands = host_commands(config, "run.yaml")
    words = (
        '<p class="gt-note">Save the configuration of the Review step as <b>run.yaml</b> on every host, where the data '
        "and the model are found under the same names, and give each its command, in any order.</p>"
    )
    text = "\n".join(f"{command}  # host {rank}" for rank, command in enumerate(commands))
    return {note: words, code: gr.update(value=text, visible=True)}
