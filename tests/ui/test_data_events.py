"""What the data step shows for a source, without a browser: the very updates that Gradio would send."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.tiny_tokenizer import build_seeing
from PIL import Image

from gemma_tune import data
from gemma_tune.config import RunConfig
from gemma_tune.errors import DataError
from gemma_tune.ui import checks, data_events, data_rows, data_sources
from gemma_tune.ui.data_step import FIELDS
from gemma_tune.ui.form import SetUp


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, checks_end):
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GEMMA_TUNE_ROOTS", str(tmp_path))
    checks._reports.clear()


def values(tab: SetUp, source: str, **changes) -> tuple:
    known = {"model.id": "pocket", "data.source": source, **changes}
    return (*(known.get(name, widget.value) for name, widget in tab.form.widgets.items()), "")


def check(tab: SetUp, source: str, **changes) -> dict:
    """The last updates of a check, by the name of the part or setting; every one must be an output of the event."""
    shown = list(data_events.check_data(tab, values(tab, source, **changes), "page"))[-1]
    assert set(shown) <= set(data_events.outputs(tab))
    names = {id(part): name for name, part in (tab.parts | tab.form.widgets).items()}
    return {names[id(part)]: update for part, update in shown.items()}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"", "empty"),
        ("cut.json", b'[{"prompt": "a"', "line 1"),
        ("object.json", b'{"data": {"prompt": "a"}}', "data"),
        ("columns.csv", b"instruction,input\n1,2\n", "column"),
        ("few.jsonl", b'{"prompt": "a", "completion": "b"}\n', "batch"),
    ],
)
def test_a_bad_file_is_said_in_the_summary(tab, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    summary = check(tab, str(tmp_path / name))["summary"]
    assert "gt-bad" in summary and words in summary


def test_a_path_outside_the_roots_a_wrong_setting_and_no_data_are_said(tab):
    assert "outside the folders" in check(tab, "/etc/passwd")["summary"]
    assert "at most 0.1" in check(tab, "example:pocket-json", **{"train.learning_rate": 50})["summary"]
    assert "No data yet" in check(tab, "")["summary"]
    assert "next data set of the mix" in check(tab, "", **{"data.mix": [{"source": "x"}]})["summary"]


def test_unknown_columns_are_shown_so_that_they_can_be_mapped(tab, tmp_path):
    rows = "id,frage,antwort,autor\n" + "".join(f"i{n},f{n},a{n},z{n}\n" for n in range(40))
    (tmp_path / "de.csv").write_text(rows)
    shown = check(tab, str(tmp_path / "de.csv"))
    assert "frage" in shown["read"] and "No known schema" in shown["summary"]
    assert shown["data.columns.prompt"]["choices"] == [("automatic", ""), "id", "frage", "antwort", "autor"]
    assert shown["data.columns.prompt"]["visible"] and not shown["data.columns.chosen"]["visible"]
    mapped = {"data.columns.prompt": "frage", "data.columns.completion": "antwort"}
    assert "gt-bad" not in check(tab, str(tmp_path / "de.csv"), **mapped)["summary"]


def test_good_data_are_shown_with_the_first_row_as_the_model_sees_it(tab):
    shown = check(tab, RunConfig().data.source)
    assert "560" in shown["summary"] and "gt-learned" in shown["sees"]
    assert shown["row"]["maximum"] == 560 and "No row is left out" in shown["nothing"]
    assert shown["data.columns.messages"]["choices"][0] == ("automatic: messages", "")


def seeing(tmp_path: Path, count: int = 40) -> Path:
    """Rows about images beside them."""
    (tmp_path / "set" / "images").mkdir(parents=True)
    rows = [
        {"image": f"images/{n}.png", "prompt": "What?", "completion": f"Number {n}."} for n in range(count)
    ]
    for number in range(count):
        Image.new("RGB", (400, 300 + number), "teal").save(tmp_path / "set" / "images" / f"{number}.png")
    (tmp_path / "set" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "set"


def test_rows_with_images_are_shown_with_them(tab, tmp_path):
    model = str(build_seeing(tmp_path / "model", "gemma3"))
    shown = check(tab, str(seeing(tmp_path)), **{"model.id": model})
    assert "gt-bad" not in shown["summary"] and "image · 4 tokens" in shown["sees"]
    kind, _, content = re.search(r'src="(data:image/jpeg);(base64),([^"]+)"', shown["sees"]).groups()
    with Image.open(io.BytesIO(base64.b64decode(content))) as thumbnail:
        assert kind == "data:image/jpeg" and thumbnail.size == (160, 120)
    assert (
        "images/0.png" in shown["read"]
        and shown["data.columns.images"]["choices"][0][0] == "automatic: image"
    )
    raw = values(tab, str(tmp_path / "set"), **{"model.id": model})
    _, second = data_rows.show_row(tab, raw, 2, "all", True)
    assert "image · 4 tokens" in second and "<rt>" in second and second.count("<img") == 1


def test_rows_with_images_and_a_model_that_reads_text_only_say_what_to_do(tab, tmp_path):
    shown = check(tab, str(seeing(tmp_path)))
    assert "gt-bad" in shown["summary"] and "images" in shown["summary"]
    assert "reads text only" in shown["sees"] and "Gemma 3 4B or larger" in shown["sees"]


def test_cells_of_bytes_are_told_by_their_size(tab, tmp_path):
    image = (seeing(tmp_path, 1) / "images" / "0.png").read_bytes()
    columns = {"image": [{"bytes": image, "path": "a"}] * 20, "prompt": ["q"] * 20, "completion": ["a"] * 20}
    pq.write_table(pa.table({**columns, "raw": [image] * 20}), tmp_path / "a.parquet")
    shown = check(tab, str(tmp_path / "a.parquet"))
    assert shown["read"].count(f"{len(image):,} bytes") == 40 and "PNG" not in shown["read"]


def test_images_can_be_uploaded_beside_their_rows(tab, tmp_path):
    assert {".png", ".jpg", ".jpeg", ".webp"} <= set(tab.parts["upload"].file_types)
    folder = seeing(tmp_path, 20)
    kept, *_ = data_sources._keep_uploads(
        [str(folder / "rows.jsonl"), *map(str, (folder / "images").iterdir())]
    )
    model = str(build_seeing(tmp_path / "model", "gemma4"))
    assert "gt-bad" not in (shown := check(tab, kept, **{"model.id": model}))["summary"]
    assert "<img" in shown["sees"]


def test_a_pair_is_shown_with_both_answers(tab):
    shown = check(tab, "example:pocket-polite")
    assert "With the rejected answer" in shown["sees"] and shown["sees"].count("gt-see") == 2


def test_rows_left_out_come_with_their_fixes_and_a_file_that_is_safe_to_open(tab, tmp_path):
    good = [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(20)]  # fmt: skip
    twice = {"messages": [{"role": "user", "content": "=cmd()"}, *good[0]["messages"]]}
    bad = {"messages": [{"role": "user", "content": "x"}, {"role": "=HYPERLINK()", "content": "y"}]}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*good, twice, bad])))
    shown = check(tab, str(path))
    assert [row[0] for row in shown["rejected"]["value"]["data"]] == [21, 22]
    assert shown["rejected_tab"].label == "Left out (2)" and "neighbouring turns" in shown["fixes"]
    with Path(shown["download"]["value"]).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["source", "row", "field", "found", "rule", "way out"] and len(rows) == 3
    assert not [cell for row in rows for cell in row if cell.startswith("=")]
    mended = check(tab, str(path), **{"data.fixes": ["merge_turns"]})
    assert [row[0] for row in mended["rejected"]["value"]["data"]] == [22]


def test_rows_that_are_too_long_can_be_looked_at_alone(tab, tmp_path):
    rows = [{"prompt": f"q{n}", "completion": "long " * (200 if n == 30 else 1)} for n in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    short = {"train.max_length": 64}
    assert "gt-over" in check(tab, str(path), **short)["lengths"]
    raw = values(tab, str(path), **short)
    slider, seen = data_rows.show_row(tab, raw, 1, "limited", False)
    assert 'data-row="31"' in seen and "gt-cut" in seen and slider["maximum"] == 2
    slider, seen = data_rows.show_row(tab, raw, 99, "all", True)
    assert 'data-row="40"' in seen and "<rt>" in seen and slider["value"] == 40
    fits = values(tab, "example:pocket-json")
    check(tab, "example:pocket-json")
    assert "Every row fits" in data_rows.show_row(tab, fits, 1, "limited", False)[1]


def test_while_a_large_source_is_checked_its_first_rows_are_shown_and_it_can_be_stopped(tab, monkeypatch):
    def endless(config, token, watch):
        while True:
            watch("reading", 1, 4)

    monkeypatch.setattr(data, "check", endless)
    monkeypatch.setattr(data_events, "LOOK_SECONDS", 0.05)
    updates = data_events.check_data(tab, values(tab, "example:pocket-json"), "page")
    first, second = next(updates), next(updates)
    assert "25%" in first[tab.parts["summary"]] and "Mia" in first[tab.parts["read"]]
    assert "gt-learned" in first[tab.parts["sees"]] and tab.parts["read"] not in second
    assert first[tab.parts["cancel"]]["visible"]
    checks.stop("page")
    assert "The check was stopped" in list(updates)[-1][tab.parts["summary"]]


def test_a_later_check_of_the_page_ends_the_showing_of_the_earlier(tab, monkeypatch):
    def endless(config, token, watch):
        while True:
            watch("reading", 0, None)

    monkeypatch.setattr(data, "check", endless)
    monkeypatch.setattr(data_events, "LOOK_SECONDS", 0.05)
    earlier = data_events.check_data(tab, values(tab, "example:pocket-json"), "page")
    next(earlier)
    later = data_events.check_data(tab, values(tab, "example:pocket-orders"), "page")
    next(later)
    assert list(earlier) == []
    later.close()


def test_a_bug_is_said_and_the_page_does_not_wait_for_ever(tab, monkeypatch):
    monkeypatch.setattr(data, "check", lambda *_: 1 / 0)
    shown = check(tab, "example:pocket-json")
    assert "a fault of ours" in shown["summary"] and "ZeroDivisionError" in shown["summary"]


def test_a_large_hub_set_is_streamed_first_and_checked_when_asked(tab, monkeypatch):
    rows = [(n, {"prompt": f"q{n}", "completion": f"a{n}"}) for n in range(1, 51)]
    table = data.Table(["prompt", "completion"], rows, [], "hub:me/large")
    monkeypatch.setattr(data_events, "hub_size_bytes", lambda repo, token: 5_000_000_000)
    monkeypatch.setattr(data, "read", lambda *_, **__: table)
    shown = check(tab, "hub:me/large")
    assert "5 GB are downloaded" in shown["summary"] and shown["check_all"]["visible"]
    assert "q50" in shown["read"]
    steps, words = data_events._leave(tab, values(tab, "hub:me/large"))
    assert "Not checked yet" in words


def test_data_are_kept_in_a_mix_brought_back_and_taken_out(tab):
    picked = ("example:pocket-json", "", "train", "auto", 2.0, *["" for _ in FIELDS])
    mixed, *current, upload = data_sources._add_to_mix([], *picked)
    assert mixed == [{"source": "example:pocket-json", "subset": "", "split": "train", "format": "auto", "columns": {}, "weight": 2.0}]  # fmt: skip
    assert current[:5] == ["", "", "train", "auto", 1.0] and upload is None
    other = ("example:pocket-orders", *picked[1:])
    swapped, *current = data_sources._change_mix("edit", 0, mixed, other)
    assert [one["source"] for one in swapped] == ["example:pocket-orders"]
    assert current[0] == "example:pocket-json" and current[4] == 2.0
    assert data_sources._change_mix("remove", 0, mixed, other)[0] == []


def test_a_mix_is_checked_whole(tab):
    part = {"source": "example:pocket-orders", "weight": 0.5}
    shown = check(tab, "example:pocket-json", **{"data.mix": [part]})
    assert "1,040" in shown["summary"] and "Weight 0.5." in shown["summary"]


def test_a_set_that_cannot_be_looked_up_says_which_of_token_and_licence_is_missing(tab, monkeypatch):
    def refuse(source, token):
        raise DataError.at(source, "no token", "The repository is gated.", "Accept the licence.")

    monkeypatch.setattr(data, "choices_of", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source, _, _, access, *_ = data_sources._look_up("hub", "me/gated", "")
    assert source == "hub:me/gated" and "gt-access" in access  # the check that follows tells the fault


def test_other_data_do_not_inherit_the_columns_of_the_last(tab, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    kept, *columns = data_sources._keep_uploads([str(path)])
    assert kept.endswith("-rows.jsonl") and columns == ["auto", "", *[""] * len(FIELDS)]
    assert len(columns) == len(data_sources._columns(tab))


def test_subset_and_split_are_offered_as_the_repository_has_them(monkeypatch):
    monkeypatch.setattr(data, "choices_of", lambda source, token: {"en": ["validation", "test"], "de": []})
    source, subset, split, *_ = data_sources._look_up("hub", " hub:me/set ", "")
    assert source == "hub:me/set" and subset["value"] == "en" and split["value"] == "validation"
    source, *_ = data_sources._look_up("tfds", "set", "")
    assert source == "tfds:set/en"
    source, split = data_sources._splits_of("de", "tfds:set/en", "")
    assert source == "tfds:set/de" and split["value"] == "train"
