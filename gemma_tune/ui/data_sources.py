"""How the data step picks its sources: an example, uploads, the Hub, TFDS, a folder, and a mix of several."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import gradio as gr

from gemma_tune import data, hub_access
from gemma_tune.data.sources import EXAMPLE, HUB, TFDS
from gemma_tune.errors import GemmaTuneError
from gemma_tune.ui import data_views
from gemma_tune.ui.data_step import FIELDS
from gemma_tune.ui.form import MAPPED, QUIET, SetUp
from gemma_tune.ui.reading import token_of

_NOTHING = {"source": "", "subset": "", "split": "train", "format": "auto", "columns": {}, "weight": 1.0}


def wire(tab: SetUp) -> list:
    """Connects the events; gives those after which the data are to be checked, once all that they set has arrived."""
    return [*_wire_local(tab), *_wire_remote(tab), *_wire_mix(tab)]


def _columns(tab: SetUp) -> list:
    """The widgets that name columns, which mean nothing for other data."""
    mapped = [tab.form.widgets[MAPPED + name] for name in FIELDS]
    return [tab.form.widgets["data.format"], tab.form.widgets["data.split_column"], *mapped]


def _no_columns() -> list[str]:
    return ["auto", "", *[""] * len(FIELDS)]


def _wire_local(tab: SetUp) -> list:
    parts = tab.parts
    source = [tab.form.widgets["data.source"], *_columns(tab)]
    pick = [parts["kind"], parts["example"], parts["folder"]]
    shown = [
        parts[name]
        for name in ("example", "upload", "remote", "remote_note", "folder_row", "remote_id", "access")
    ]
    return [
        parts["kind"].input(_show_kind, pick, [*shown, *source], api_name="data_kind", **QUIET),
        parts["example"].input(
            lambda name: [f"{EXAMPLE}{name}", *_no_columns()], parts["example"], source, api_name="choose_example", **QUIET
        ),
        gr.on(
            [parts["upload"].upload, parts["upload"].delete], _keep_uploads, parts["upload"], source,
            api_name="upload_data", api_visibility="private",
        ),
        parts["upload"].clear(lambda: ["", *_no_columns()], None, source, api_name="clear_data", **QUIET),
        parts["folder"].submit(
            lambda path: [(path or "").strip(), *_no_columns()], parts["folder"], source, api_name="choose_folder", **QUIET
        ),
    ]  # fmt: skip


def _wire_remote(tab: SetUp) -> list:
    parts, form = tab.parts, tab.form
    source, subset, split = (form.widgets[f"data.{name}"] for name in ("source", "subset", "split"))
    return [
        gr.on(
            [parts["remote_find"].click, parts["remote_id"].submit], _look_up,
            [parts["kind"], parts["remote_id"], parts["token"]],
            [source, subset, split, parts["access"], *_columns(tab)], api_name="look_up", api_visibility="private",
        ),
        subset.input(
            _splits_of, [subset, source, parts["token"]], [source, split], api_name="splits", api_visibility="private"
        ),
    ]  # fmt: skip


def _wire_mix(tab: SetUp) -> list:
    parts, form = tab.parts, tab.form
    names = [
        "data.source",
        "data.subset",
        "data.split",
        "data.format",
        "data.weight",
        *(MAPPED + name for name in FIELDS),
    ]
    own = [form.widgets[name] for name in names]
    held = form.widgets["data.mix"]

    def act(event: gr.EventData, mixed: list, *current: Any) -> list:
        return _change_mix(str(event.action), int(event.index), mixed, current)

    held.change(
        lambda mixed: data_views.mix(mixed or []),
        held,
        parts["mix"],
        trigger_mode="multiple",
        api_name="mix_shown",
        **QUIET,
    )
    return [
        parts["mix_add"].click(
            _add_to_mix, [held, *own], [held, *own, parts["upload"]], api_name="mix_add", **QUIET
        ),
        parts["mix"].mix_action(act, [held, *own], [held, *own], api_name="mix_change", **QUIET),
    ]


def _show_kind(kind: str, example: str, folder: str) -> list:
    remote_kind = kind in ("hub", "tfds")
    names = {
        "hub": ("Data set on the Hub", "owner/name"),
        "tfds": ("TensorFlow data set", "name or name/config"),
    }
    label, placeholder = names.get(kind, names["hub"])
    source = {"example": f"{EXAMPLE}{example}", "folder": (folder or "").strip()}.get(kind, "")
    return [
        gr.update(visible=kind == "example"),
        gr.update(visible=kind == "upload"),
        gr.update(visible=remote_kind),
        gr.update(visible=kind == "tfds", value=_tfds_note()),
        gr.update(visible=kind == "folder"),
        gr.update(label=label, placeholder=placeholder),
        "",
        source,
        *_no_columns(),
    ]


def _tfds_note() -> str:
    if find_spec("tensorflow_datasets") is not None:
        return '<p class="gt-note">Read without TensorFlow, from array_record files; a set that is not prepared yet is downloaded.</p>'
    return (
        '<p class="gt-note">TensorFlow Datasets is not installed here. Stop the app, run '
        '<code>pip install "gemma-tune[tfds]"</code>, and start it again. TensorFlow itself is not needed.</p>'
    )


def _keep_uploads(paths: list[str] | None) -> list:
    try:
        return [str(data.keep_uploads(paths)) if paths else "", *_no_columns()]
    except GemmaTuneError as error:
        raise gr.Error(str(error), title="The upload was not kept", print_exception=False) from None


def _look_up(kind: str, name: str, token: str | None) -> list:
    """Subsets and splits as the repository has them. Where it cannot be read, which of token and licence is missing;

    the check that follows says the rest.
    """
    name = name.strip().removeprefix(HUB).removeprefix(TFDS)
    source = f"{HUB if kind == 'hub' else TFDS}{name}" if name else ""
    try:
        choices = data.choices_of(source, token_of(token)) if name else {}
    except GemmaTuneError:
        asked = hub_access.access(name, "dataset", token_of(token)) if kind == "hub" and "/" in name else []
        return [source, "", "train", data_views.access(asked), *_no_columns()]
    subset = "default" if "default" in choices else next(iter(choices), "")
    splits = choices.get(subset, ["train"])
    if kind == "tfds" and subset and "/" not in name:
        source = f"{source}/{subset}"
    return [
        source,
        gr.update(choices=list(choices), value=subset),
        gr.update(choices=splits, value=_first_split(splits)),
        "",
        *_no_columns(),
    ]


def _first_split(splits: list[str]) -> str:
    """TFDS knows the splits of a set only once it is prepared."""
    return "train" if "train" in splits or not splits else splits[0]


def _splits_of(subset: str, source: str, token: str | None) -> list:
    """The splits of another subset; TFDS writes it into the name."""
    try:
        splits = data.choices_of(source, token_of(token)).get(subset, ["train"])
    except GemmaTuneError:
        return [gr.skip(), gr.skip()]  # the check that follows says what is wrong
    if source.startswith(TFDS):
        source = f"{source.split('/')[0]}/{subset}"
    return [source, gr.update(choices=splits, value=_first_split(splits))]


def _part_of(current: tuple) -> dict:
    source, subset, split, form, weight, *columns = current
    chosen = {name: column for name, column in zip(FIELDS, columns, strict=True) if column}
    return {"source": source, "subset": subset or "", "split": split or "train", "format": form, "columns": chosen, "weight": weight or 1.0}  # fmt: skip


def _widgets_of(part: dict) -> list:
    columns = [part["columns"].get(name, "") for name in FIELDS]
    return [part["source"], part["subset"], part["split"], part["format"], part["weight"], *columns]


def _add_to_mix(mixed: list | None, *current: Any) -> list:
    if not current[0]:
        return [gr.skip()] * (len(current) + 2)
    return [[*(mixed or []), _part_of(current)], *_widgets_of(_NOTHING), None]


def _change_mix(action: str, index: int, mixed: list, current: tuple) -> list:
    """Removes a part, or brings it back into the form; what stands there goes into the mix in its place."""
    kept = [one for place, one in enumerate(mixed) if place != index]
    if action == "remove" or index >= len(mixed):
        return [kept, *[gr.skip()] * len(current)]
    if current[0]:
        kept.insert(index, _part_of(current))
    return [kept, *_widgets_of(mixed[index])]
