"""The model step without a browser: the very updates that Gradio would send."""

from types import SimpleNamespace

import pytest

from gemma_tune import hub, hub_access
from gemma_tune.catalog import MODELS
from gemma_tune.errors import AccessError, ModelError
from gemma_tune.runs.state import State
from gemma_tune.ui import model_events, models
from gemma_tune.ui.form import SetUp


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path))


def values(tab: SetUp, **changes) -> tuple:
    return (*(changes.get(name, widget.value) for name, widget in tab.form.widgets.items()), "")


def choose(family, size=None, variant=None, run=None, own=None) -> dict:
    *shown, model_id = model_events._choose(family, size, variant, run, own)
    return dict(zip(model_events.SHOWN, shown, strict=True)) | {"id": model_id}


def test_every_model_of_the_catalogue_can_be_reached_by_family_size_and_variant():
    reached = set()
    for _, family in models.family_choices():
        if family in (models.OWN, models.RUN):
            continue
        for _, size in models.size_choices(family):
            for _, variant in models.variant_choices(family, size):
                reached.add(choose(family, size, variant)["id"])
    assert reached == set(MODELS)
    assert models.family_choices()[0][1] == "Pocket Gemma"


def test_a_family_offers_its_own_sizes_and_keeps_the_variant_where_there_is_one():
    shown = choose("Gemma 3", "E2B", "base")
    assert shown["id"] == "google/gemma-3-270m" and shown["size"]["value"] == "270M"
    assert [value for _, value in shown["size"]["choices"]] == ["270M", "1B", "4B", "12B", "27B"]
    only_tuned = choose("FunctionGemma", "270M", "base")
    assert only_tuned["id"].endswith("-it") and not only_tuned["variant"]["visible"]
    assert not choose("Pocket Gemma")["size"]["visible"]
    assert choose("nonsense")["id"] == "pocket"


def test_the_facts_name_licence_gate_traps_and_the_fit_of_this_machine():
    shown = choose("Gemma 3", "27B")["model_facts"]
    assert 'href="https://huggingface.co/google/gemma-3-27b-it"' in shown and "54.9 GB" in shown
    assert "LoRA: " in shown and "QLoRA: " in shown and "Full: needs" in shown
    assert "none. Apache-2.0" in choose("Gemma 4", "E2B")["model_facts"]
    assert "none, it is on this disk" in choose("Pocket Gemma")["model_facts"]


def test_another_gemma_is_looked_up_and_what_is_wrong_is_said(monkeypatch):
    shown = choose(models.OWN, own=" me/own ")
    assert shown["id"] == "me/own" and shown["own_row"]["visible"] and not shown["size"]["visible"]

    def refuse(*_):
        raise ModelError.at("m", "bert", "This is not a Gemma.", "Choose another one.")

    monkeypatch.setattr(hub, "inspect_model", refuse)
    model_id, _, _, faults = model_events._look_up("me/own", "main", "")
    assert model_id == "me/own" and "This is not a Gemma." in faults
    assert model_events._look_up("google/gemma-3-1b-it", "main", "")[3] == ""
    assert model_events._look_up("", "main", "")[0] == ""


def test_a_folder_with_a_gemma_shows_what_was_read(tmp_path):
    from gemma_tune.catalog import local_path

    folder = tmp_path / "mine"
    folder.symlink_to(local_path("pocket"))
    _, facts, _, faults = model_events._look_up(local_path("pocket"), "main", "")
    assert "gemma3_text" in facts and "3,102,144" in facts and "LoRA: fits" in facts and not faults


def test_a_finished_run_can_be_gone_on_from_and_a_reward_model_cannot(monkeypatch):
    runs = {
        "a": State(
            status="finished", outcome="finished", saved={"path": "model"}, name="first", model="pocket"
        ),
        "b": State(status="training", name="live", model="pocket"),
        "c": State(
            status="finished", outcome="finished", saved={"path": "model"}, name="scores", model="pocket"
        ),
    }
    goal = {"a": "sft", "b": "sft", "c": "reward"}
    folders = [
        SimpleNamespace(
            id=name, config=lambda name=name: SimpleNamespace(objective=SimpleNamespace(type=goal[name]))
        )
        for name in runs
    ]
    monkeypatch.setattr(models, "list_runs", lambda: folders)
    monkeypatch.setattr(models.engine, "read_state", lambda name: runs[name])
    assert [value for _, value in models.finished_runs()] == ["run:a"]
    assert models.RUN in [value for _, value in models.family_choices()]
    shown = choose(models.RUN, run="run:gone")
    assert shown["id"] == "run:a" and shown["run_model"]["visible"] and "first" in shown["model_facts"]


def test_a_gated_model_says_what_is_missing_and_stays_on_its_step(tab, monkeypatch):
    def refuse(*_):
        raise AccessError.at("m", "no token", "The repository is gated.", "Accept the licence.")

    asked = [hub_access.Check("token", "no", "Make a token.", "https://huggingface.co/settings/tokens")]
    monkeypatch.setattr(hub, "inspect_model", refuse)
    monkeypatch.setattr(hub_access, "access", lambda *_: asked)
    _, faults, access = model_events._leave(tab, values(tab, **{"model.id": "google/gemma-3-1b-it"}))
    assert "gated" in faults and "Make a token." in access


def test_a_model_on_this_machine_needs_no_token():
    assert "No token needed" in model_events._ask_access("pocket", "")[0]


def test_what_is_chosen_is_judged_here_as_a_restarted_server_does_not_know_the_choices():
    from gemma_tune.ui.model_step import Choice

    assert Choice(["a"]).preprocess("b") == "b" and Choice(["a"]).preprocess(["b"]) is None
