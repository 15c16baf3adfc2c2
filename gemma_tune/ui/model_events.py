"""What the model step does: a choice becomes `model.id`, and its facts are shown."""

from __future__ import annotations

from typing import Any

import gradio as gr

from gemma_tune import hub, hub_access, outlook
from gemma_tune.catalog import MODELS, POCKET_ID
from gemma_tune.errors import AccessError, GemmaTuneError
from gemma_tune.hub_adapters import RUN_PREFIX
from gemma_tune.runs import engine
from gemma_tune.ui import data_events, data_views, fitting, method_events, model_views, models, setup, views
from gemma_tune.ui.form import QUIET, SetUp
from gemma_tune.ui.reading import token_of

SHOWN = ("size", "variant", "run_model", "own_row", "model_facts")


def wire(tab: SetUp) -> None:
    parts, everything = tab.parts, tab.everything
    picks = [parts[name] for name in ("family", "size", "variant", "run_model", "own_model")]
    outputs = [*(parts[name] for name in SHOWN), tab.form.widgets["model.id"]]
    chosen = gr.on(
        [parts["family"].input, parts["size"].input, parts["variant"].input, parts["run_model"].input],
        _choose, picks, outputs, api_name="choose_model", **QUIET,
    )  # fmt: skip
    found = gr.on(
        [parts["own_find"].click, parts["own_model"].submit, parts["own_model"].blur],
        _look_up, [parts["own_model"], tab.form.widgets["model.revision"], parts["token"]],
        [tab.form.widgets["model.id"], parts["model_facts"], parts["model_access"], parts["model_faults"]],
        api_name="look_up_model", api_visibility="private",
    )  # fmt: skip
    for event in (chosen, found):
        method_events.advise_after(tab, event, "recommend_for_model")
    parts["model_next"].click(
        lambda *raw: _leave(tab, raw), everything, [tab.steps, parts["model_faults"], parts["model_access"]],
        api_name="leave_model", api_visibility="private",
    ).then(api_name="check_form", **data_events.check_event(tab))  # fmt: skip
    parts["access_ask"].click(
        _ask_access, [tab.form.widgets["model.id"], parts["token"]], [parts["model_access"], parts["model_faults"]],
        api_name="model_access", api_visibility="private",
    )  # fmt: skip


def _choose(family: str, size: str | None, variant: str | None, run: str | None, own: str | None) -> list:
    """Updates of SHOWN, and the id."""
    if family == models.OWN:
        model_id = (own or "").strip()
    elif family == models.RUN:
        known = [run_id for _, run_id in models.finished_runs()]
        model_id = run if run in known else next(iter(known), "")
    else:
        model_id = models.pick(family, size, variant).id if family in _families() else POCKET_ID
    return [*shown(model_id, family), model_id]


def _families() -> set[str]:
    return {card.family for card in MODELS.values()}


def family_of(model_id: str) -> str:
    """Under which choice an id stands."""
    if model_id.startswith(RUN_PREFIX):
        return models.RUN
    card = MODELS.get(model_id)
    return card.family if card else models.OWN


def shown(model_id: str, family: str) -> list:
    """Updates of SHOWN for a model under a family."""
    card = MODELS.get(model_id)
    sizes, variants = [], []
    if card:
        sizes, variants = models.size_choices(card.family), models.variant_choices(card.family, card.size)
    return [
        gr.update(choices=sizes, value=card.size if card else None, visible=len(sizes) > 1),
        gr.update(choices=variants, value=card.variant if card else None, visible=len(variants) > 1),
        _run_picker(model_id, family),
        gr.update(visible=family == models.OWN),
        facts(model_id),
    ]


def _run_picker(model_id: str, family: str) -> Any:
    if family != models.RUN:
        return gr.update(visible=False)
    return gr.update(choices=models.finished_runs(), value=model_id or None, visible=True)


def facts(model_id: str) -> str:
    """What is known of an id without asking the network."""
    fits = fitting.of_machine(model_id)
    if card := MODELS.get(model_id):
        return model_views.facts_of_card(card, on_disk=hub.is_on_disk(model_id), fits=fits)
    if model_id.startswith(RUN_PREFIX):
        return _facts_of_run(model_id, fits)
    if not model_id:
        return model_views.asked_for(
            "Any Gemma", "Write an id of the Hub or a folder on this machine, then look it up."
        )
    return model_views.asked_for(
        "A model of your own", "Look it up, or go on: its configuration is read then."
    )


def _facts_of_run(model_id: str, fits: list) -> str:
    try:
        state = engine.read_state(model_id.removeprefix(RUN_PREFIX))
    except GemmaTuneError as error:
        return views.fault_list(error.faults, "This run cannot be learned on")
    card = outlook.card_of(model_id)
    base = card.label if card else outlook.base_of(model_id)
    return model_views.facts_of_run(state.name, base, card.parameters if card else None, fits=fits)


def _look_up(own: str | None, revision: str, token: str | None) -> list:
    """id, facts, access, faults of a model of one's own; a quick request where it is on the Hub."""
    model_id = (own or "").strip()
    if not model_id:
        return ["", facts(""), "", ""]
    if model_id in MODELS:
        return [model_id, facts(model_id), "", ""]
    try:
        found = hub.inspect_model(model_id, revision or "main", token_of(token))
    except GemmaTuneError as error:
        asked = data_views.access(_access(model_id, token)) if isinstance(error, AccessError) else ""
        return [
            model_id,
            facts(model_id),
            asked,
            views.fault_list(error.faults, "This model cannot be used yet"),
        ]
    fits = fitting.of_machine(model_id, revision or "main")
    return [model_id, model_views.facts_of_model(found, fits=fits), "", ""]


def _leave(tab: SetUp, raw: tuple) -> list:
    *values, token = raw
    try:
        model = tab.form.read(tuple(values))["model"]
        hub.inspect_model(model["id"], model["revision"], token_of(token))
    except GemmaTuneError as error:
        asked = data_views.access(_access(model["id"], token)) if isinstance(error, AccessError) else ""
        return [gr.skip(), views.fault_list(error.faults, "This model cannot be used yet"), asked]
    return [gr.Walkthrough(selected=setup.DATA), "", ""]


def _ask_access(model_id: str, token: str | None) -> tuple[str, str]:
    """The three questions of a gated model, before anything is downloaded; what was said before is taken off."""
    if not (asked := _access(model_id, token)):
        return views.notice("good", "No token needed", "This model is on this machine already."), ""
    return data_views.access(asked), ""


def _access(model_id: str, token: str | None) -> list[hub_access.Check]:
    """Nothing for a model that is no repository of the Hub."""
    base = outlook.base_of(model_id)
    try:
        return [] if hub.local_folder(base) else hub_access.access(base, "model", token_of(token))
    except GemmaTuneError:
        return []
