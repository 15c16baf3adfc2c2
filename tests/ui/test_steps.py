import gradio as gr
import pytest

from gemma_tune import hub, hub_access
from gemma_tune.errors import AccessError
from gemma_tune.ui import setup, steps
from gemma_tune.ui.form import SetUp


@pytest.fixture(scope="module")
def tab() -> SetUp:
    with gr.Blocks():
        return setup.build()


def values(tab: SetUp, **changes) -> tuple:
    return (*(changes.get(name, widget.value) for name, widget in tab.form.widgets.items()), "")


def test_a_gated_model_says_what_is_missing_and_stays_on_its_step(tab, monkeypatch):
    def refuse(*_):
        raise AccessError.at("m", "no token", "The repository is gated.", "Accept the licence.")

    asked = [hub_access.Check("token", "no", "Make a token.", "https://huggingface.co/settings/tokens")]
    monkeypatch.setattr(hub, "inspect_model", refuse)
    monkeypatch.setattr(hub_access, "access", lambda *_: asked)
    _, faults, access = steps._leave_model(tab, values(tab, **{"model.id": "google/gemma-3-1b-it"}))
    assert "gated" in faults and "Make a token." in access


def test_a_model_on_this_machine_needs_no_token():
    assert "No token needed" in steps._ask_access("pocket", "")[0]


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("example:pocket-json", "example"),
        ("hub:me/set", "hub"),
        ("tfds:set/en", "tfds"),
        ("", "upload"),
        ("/data/rows", "folder"),
    ],
)
def test_a_source_is_shown_under_the_way_it_was_chosen(source, kind):
    assert steps._kind_of(source) == kind


def test_an_uploaded_file_is_shown_under_uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path))
    assert steps._kind_of(str(tmp_path / "uploads" / "a.json")) == "upload"


def test_the_helpers_match_their_outputs(tab):
    mixed = [{"source": "hub:me/set", "format": "auto", "columns": {}, "weight": 1.0}]
    shown = steps.helpers("pocket", "tfds:set", "lora", mixed)
    assert len(shown) == len(steps.helper_outputs(tab))
    by_name = dict(zip([part.elem_id for part in steps.helper_outputs(tab)], shown, strict=True))
    assert by_name["remote-id"] == "set" and "me/set" in by_name["data-mix"]
