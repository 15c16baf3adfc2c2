"""The page, whole: four tabs in the order of the work. Rules live in the floors below; here things are arranged."""

from __future__ import annotations

import gradio as gr

from gemma_tune.errors import GemmaTuneError
from gemma_tune.runs import engine
from gemma_tune.runs.folder import find_run
from gemma_tune.ui import api, compare, history, setup, steps, theme, watch
from gemma_tune.ui.form import QUIET, SetUp
from gemma_tune.ui.reading import token_of

TABS = ("setup", "watch", "compare", "runs")
# Gradio selects the first tab before the link is read, so the address is kept only after that.
LINK_IS_OPEN = "() => { window.gemmaTuneOpen = true; }"
REMEMBER_TAB = """() => { if (!window.gemmaTuneOpen) return;
  const u = new URL(location); u.searchParams.set('tab', '%s'); history.replaceState(null, '', u); }"""
REMEMBER_RUN = """(run) => { const u = new URL(location);
  u.searchParams.set('run', run || ''); history.replaceState(null, '', u); return [run]; }"""


def build() -> gr.Blocks:
    """The application, not yet launched."""
    with gr.Blocks(
        title="Gemma Tune", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True
    ) as demo:
        gr.HTML(theme.HEADER)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Set up", id="setup", elem_id="tab-setup") as setup_tab:
                form = setup.build()
            with gr.Tab("Watch", id="watch", elem_id="tab-watch") as watch_tab:
                watching = watch.build()
            with gr.Tab("Compare", id="compare", elem_id="tab-compare") as compare_tab:
                comparing = compare.build()
            with gr.Tab("Runs", id="runs", elem_id="tab-runs") as runs_tab:
                table = history.table()

        shown = {"tabs": tabs, "monitor": watching["monitor"], "picker": watching["picker"]}
        steps.wire(form, shown)
        compare.wire(comparing)
        _wire_tabs((setup_tab, watch_tab, compare_tab, runs_tab), watching, comparing)
        _wire_actions((watching["monitor"], table), shown, comparing, form)
        _wire_load(demo, shown, comparing, form)
        api.expose()
    return demo


def _wire_tabs(tabs: tuple, watching: dict, comparing: dict) -> None:
    for name, tab in zip(TABS, tabs, strict=True):
        tab.select(None, None, None, js=REMEMBER_TAB % name)
    for tab, picker in ((tabs[1], watching["picker"]), (tabs[2], comparing["picker"])):
        tab.select(
            _fresh_choices, picker, picker, api_name=f"choices_{picker.elem_id.replace('-', '_')}", **QUIET
        )
    tabs[2].select(
        compare.offer, comparing["picker"], compare.offered(comparing), api_name="compare_offer", **QUIET
    )
    watching["picker"].input(
        lambda run: gr.HTML(run=run or ""), watching["picker"], watching["monitor"], api_name="watch_run",
        js=REMEMBER_RUN,
        **QUIET,
    )  # fmt: skip


def _fresh_choices(current: str | None):
    known = history.choices()
    return gr.Dropdown(choices=known, value=current if current in [run for _, run in known] else None)


def _wire_actions(panels: tuple, shown: dict, comparing: dict, form: SetUp) -> None:
    outputs = [
        *shown.values(),
        comparing["picker"],
        form.steps,
        *steps.helper_outputs(form),
    ]

    def act(event: gr.EventData) -> dict:
        try:
            return _act(str(event.action), find_run(str(event.run)).id, shown, comparing, form)
        except GemmaTuneError as error:
            raise gr.Error(str(error), title="That did not work", print_exception=False) from None

    for panel, name in zip(panels, ("act_watch", "act_runs"), strict=True):
        panel.run_action(act, None, outputs, api_name=name, api_visibility="private", show_progress="hidden")


def _act(action: str, run_id: str, shown: dict, comparing: dict, form: SetUp) -> dict:
    """One action on one run; answers with the updates that show its result."""
    if action == "compare":
        return {
            shown["tabs"]: gr.Tabs(selected="compare"),
            comparing["picker"]: gr.Dropdown(choices=history.choices(), value=run_id),
        }
    if action == "reuse":
        return {
            shown["tabs"]: gr.Tabs(selected="setup"),
            form.steps: gr.Walkthrough(selected=setup.MODEL),
            **steps.fill(form, find_run(run_id).config()),
        }
    if action == "delete":
        engine.delete_run(run_id)
        return {
            shown["picker"]: gr.Dropdown(choices=history.choices(), value=None),
            shown["monitor"]: gr.HTML(run=""),
        }
    if action in ("stop_keep", "stop_now"):
        engine.stop(run_id, now=action == "stop_now")
    elif action == "resume":
        compare.make_room()
        engine.resume(run_id, token_of(None))
    return dict(zip(shown.values(), watch.open_run(run_id), strict=True))


def _wire_load(demo: gr.Blocks, shown: dict, comparing: dict, form: SetUp) -> None:

    def open_link(request: gr.Request) -> list:
        tab, run = (request.query_params.get(name) or "" for name in ("tab", "run"))
        known = history.choices()
        ids = [run_id for _, run_id in known]
        chosen = run if run in ids else ids[0] if ids else None
        return [
            gr.Tabs(selected=tab if tab in TABS else "setup"),
            gr.HTML(run=chosen or ""),
            gr.Dropdown(choices=known, value=chosen),
            gr.Dropdown(choices=known, value=chosen),
        ]

    demo.load(open_link, None, [*shown.values(), comparing["picker"]], api_name="open_link", **QUIET).then(
        None, None, None, js=LINK_IS_OPEN
    )
    demo.load(
        lambda saved: steps.restore(form, saved), form.saved, steps.helper_outputs(form),
        api_name="restore", **QUIET,
    )  # fmt: skip
