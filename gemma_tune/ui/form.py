"""Settings as widgets and back. What a widget looks like follows from its line in `config.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_args

import gradio as gr
import yaml

from gemma_tune.config import RunConfig, applies, field_of, settings, short_range
from gemma_tune.errors import ConfigError

MAPPED = "data.columns."  # widgets named data.columns.FIELD together make the mapping data.columns
ADVANCED = "advanced"  # one text box in YAML for the whole section
QUIET = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "queue": False,
}  # of events that answer at once
# A choice that nobody can empty: where it is empty, its step was not there to be read.
NEVER_EMPTY = "objective.type"
LISTS = ("data.mix", "data.fixes")  # an empty widget is an empty list
# Settings that apply only beside certain values of other ones, and those other ones.
CONDITIONAL = [
    name for name, info in settings() if info.json_schema_extra["only"] and name != "advanced.lora"
]
CONTROLS = list(
    dict.fromkeys(one for name in CONDITIONAL for one in field_of(name).json_schema_extra["only"])
)


def widget(dotted: str, **overrides: Any) -> gr.components.Component:
    """The widget of one setting, with label, help, unit and range from `config.py`."""
    info = field_of(dotted)
    extra = info.json_schema_extra
    unit = f" ({extra['unit']})" if extra["unit"] not in ("", extra["label"].lower()) else ""
    options: dict[str, Any] = {
        "label": extra["label"] + unit,
        "info": info.description,
        "value": info.default,
        "elem_id": dotted.replace(".", "-").replace("_", "-"),
        "min_width": 200,
        "visible": applies(dotted, {}),
    }
    choices = get_args(info.annotation)
    if choices:
        return gr.Dropdown(**{**options, "choices": list(choices), **overrides})
    if info.annotation is bool:
        return gr.Checkbox(**{**options, **overrides})
    if info.annotation in (int, float):
        limits = short_range(dotted)
        options["info"] = (
            f"{info.description} {limits[:1].upper()}{limits[1:]}." if limits else info.description
        )
        precision = 0 if info.annotation is int else None
        return gr.Number(**{**options, "precision": precision, **overrides})
    return gr.Textbox(**{**options, **overrides})


class Form:
    """The widgets of the form in a fixed order, by dotted name."""

    def __init__(self) -> None:
        self.widgets: dict[str, gr.components.Component] = {}

    def add(self, dotted: str, component: gr.components.Component | None = None, **overrides: Any):
        self.widgets[dotted] = component or widget(dotted, **overrides)
        return self.widgets[dotted]

    def add_all(self, dotted: Iterable[str]) -> None:
        for name in dotted:
            self.add(name)

    @property
    def inputs(self) -> list[gr.components.Component]:
        return list(self.widgets.values())

    def values(self, raw: tuple[Any, ...]) -> dict[str, Any]:
        """Widget values by dotted name. Of a step that a busy browser has not drawn yet: what it begins with."""
        found = dict(zip(self.widgets, raw, strict=True))
        if found.get(NEVER_EMPTY) is not None:
            return found
        return {name: self.widgets[name].value if one is None else one for name, one in found.items()}

    def read(self, raw: tuple[Any, ...]) -> dict[str, Any]:
        """Widget values as nested values for `config.parse`. Raises ConfigError for unreadable advanced text."""
        values: dict[str, Any] = {}
        for dotted, value in self.values(raw).items():
            if dotted.startswith(MAPPED):
                if value:
                    values.setdefault("data", {}).setdefault("columns", {})[dotted[len(MAPPED) :]] = value
            elif dotted == ADVANCED:
                values[ADVANCED] = _advanced(value)
            elif dotted in LISTS:
                values.setdefault("data", {})[dotted.partition(".")[2]] = value or []
            else:
                section, name = dotted.split(".")
                is_text = field_of(dotted).annotation is str  # an emptied drop-down sends nothing
                values.setdefault(section, {})[name] = "" if value is None and is_text else value
        return values

    def write(self, config: RunConfig) -> list[Any]:
        """Updates for every widget, in order, that show `config`."""
        return [gr.update(value=self._value(config, dotted)) for dotted in self.widgets]

    @staticmethod
    def _value(config: RunConfig, dotted: str) -> Any:
        if dotted.startswith(MAPPED):
            return config.data.columns.get(dotted[len(MAPPED) :], "")
        if dotted == ADVANCED:
            chosen = config.advanced.model_dump(exclude_defaults=True)
            return yaml.safe_dump(chosen) if chosen else ""
        if dotted == "data.mix":
            return [one.model_dump() for one in config.data.mix]
        section, name = dotted.split(".")
        return getattr(getattr(config, section), name)


@dataclass
class SetUp:
    """The widgets of the tab that its events need."""

    form: Form = field(default_factory=Form)
    saved: gr.BrowserState | None = None
    steps: gr.Walkthrough | None = None
    parts: dict[str, gr.components.Component] = field(default_factory=dict)
    groups: dict[str, gr.Column] = field(default_factory=dict)  # section -> its settings behind the fold
    folded: set[str] = field(default_factory=set)  # those settings

    @property
    def everything(self) -> list[gr.components.Component]:
        """The form and the token, as every event of the tab that needs the whole takes them."""
        return [*self.form.inputs, self.parts["token"]]

    def value_of(self, raw: tuple, dotted: str) -> Any:
        """The value of one widget among those of `everything`."""
        return raw[list(self.form.widgets).index(dotted)]


def _advanced(text: str | None) -> Any:
    try:
        return yaml.safe_load(text or "") or {}
    except yaml.YAMLError as error:
        raise ConfigError.at(
            "advanced", error, "Advanced settings are YAML.", "Mend the line named."
        ) from None
