import gradio as gr
import pytest

from gemma_tune.config import RunConfig
from gemma_tune.ui import setup, steps


@pytest.fixture(scope="module")
def tab() -> setup.SetUp:
    with gr.Blocks():
        return setup.build()


def check(tab: setup.SetUp, source: str, **changes) -> list:
    """What the data step shows for a source; one value per component, always."""
    known = {"model.id": "pocket", "data.source": source, **changes}
    raw = [known.get(name, widget.value) for name, widget in tab.form.widgets.items()]
    shown = steps._check_data(tab, (*raw, ""))
    assert len(shown) == len(steps._data_outputs(tab))
    return shown


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"", "empty"),
        ("cut.json", b'[{"prompt": "a"', "line 1"),
        ("object.json", b'{"data": [{"prompt": "a"}]}', "data"),
        ("columns.csv", b"a,b\n1,2\n", "column"),
        ("few.jsonl", b'{"prompt": "a", "completion": "b"}\n', "batch"),
    ],
)
def test_a_bad_file_is_said_in_the_summary(tab, tmp_path, monkeypatch, name, content, words):
    monkeypatch.setenv("GEMMA_TUNE_ROOTS", str(tmp_path))
    (tmp_path / name).write_bytes(content)
    summary = check(tab, str(tmp_path / name))[0]
    assert "gt-bad" in summary and words in summary


def test_a_path_outside_the_roots_a_wrong_setting_and_no_data_are_said(tab):
    assert "outside the folders" in check(tab, "/etc/passwd")[0]
    assert "at most 0.1" in check(tab, "example:pocket-json", **{"train.learning_rate": 50})[0]
    assert "No data yet" in check(tab, "")[0]


def test_unknown_columns_are_shown_so_that_they_can_be_mapped(tab, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_ROOTS", str(tmp_path))
    rows = "frage,antwort\n" + "".join(f"f{n},a{n}\n" for n in range(40))
    (tmp_path / "de.csv").write_text(rows)
    shown = check(tab, str(tmp_path / "de.csv"))
    assert "frage" in shown[4] and shown[-1]["choices"] == ["", "frage", "antwort"]
    mapped = {"data.columns.prompt": "frage", "data.columns.completion": "antwort"}
    assert "gt-bad" not in check(tab, str(tmp_path / "de.csv"), **mapped)[0]


def test_good_data_are_shown_with_the_first_row_as_the_model_sees_it(tab):
    shown = check(tab, RunConfig().data.source)
    assert "560" in shown[0] and "gt-learned" in shown[3]
