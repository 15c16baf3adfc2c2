import gradio as gr
import pytest

from gemma_tune.config import RunConfig, parse, settings
from gemma_tune.errors import ConfigError
from gemma_tune.ui import setup


@pytest.fixture(scope="module")
def tab() -> setup.SetUp:
    with gr.Blocks():
        return setup.build()


def values(tab: setup.SetUp, **changes) -> tuple:
    return tuple(changes.get(name, widget.value) for name, widget in tab.form.widgets.items())


def test_every_setting_has_a_widget(tab):
    names = set(tab.form.widgets)
    for dotted, _ in settings():
        if dotted not in ("data.columns", "advanced.trainer", "advanced.lora"):
            assert dotted in names, dotted
    assert {"advanced", "data.columns.prompt"} <= names


def test_an_untouched_form_is_the_default_configuration(tab):
    raw = values(tab, **{"model.id": "pocket", "data.source": RunConfig().data.source})
    assert parse(tab.form.read(raw)) == RunConfig()


def test_a_configuration_survives_the_way_into_the_form_and_back(tab):
    config = parse(
        {
            "method": {"type": "full"},
            "train": {"learning_rate": 1e-5, "seed": 7},
            "data": {
                "columns": {"prompt": "q", "completion": "a"},
                "source": "hub:x/y",
                "fixes": ["strip"],
                "mix": [{"source": "a.json", "weight": 2.0, "columns": {"text": "t"}}],
            },
            "advanced": {"trainer": {"adam_beta2": 0.95}},
        }
    )
    raw = tuple(update["value"] for update in tab.form.write(config))
    assert parse(tab.form.read(raw)) == config


def test_an_empty_number_is_a_fault_of_its_field(tab):
    with pytest.raises(ConfigError) as caught:
        parse(tab.form.read(values(tab, **{"train.learning_rate": None, "data.source": "example:x"})))
    assert [fault.where for fault in caught.value.faults] == ["train.learning_rate"]


def test_a_step_that_is_not_drawn_yet_counts_as_it_begins(tab):
    names = list(tab.form.widgets)
    reported = [None if name.startswith(("objective.", "train.", "method.", "eval.")) else tab.form.widgets[name].value
                for name in names]  # fmt: skip
    assert tab.form.values(tuple(reported))["objective.type"] == "sft"
    begun = tuple(widget.value for widget in tab.form.widgets.values())
    assert tab.form.read(tuple(reported)) == tab.form.read(begun)


def test_unreadable_advanced_text_is_said(tab):
    with pytest.raises(ConfigError, match="advanced"):
        tab.form.read(values(tab, advanced="trainer: ["))


def test_help_shows_the_range_from_the_configuration(tab):
    assert "Above 0, up to 0.1." in tab.form.widgets["train.learning_rate"].info
    assert "16 to 131,072." in tab.form.widgets["train.max_length"].info
