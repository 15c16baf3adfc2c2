"""Data sets of the Hub against a small server. `datasets` fixes its endpoint when imported, so each look is a process."""

import base64
import io
import json
import os
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import VALID_TOKEN, serve
from PIL import Image

from gemma_tune.data.hub_images import _is_of
from gemma_tune.data.hub_sets import hub_choices, open_hub
from gemma_tune.errors import DataError

ROWS = "\n".join(json.dumps({"prompt": f"q{n}", "completion": f"a{n}"}) for n in range(9)).encode()
CARD = b"""---
configs:
- config_name: one
  data_files: one.jsonl
- config_name: two
  data_files:
  - split: train
    path: one.jsonl
  - split: test
    path: one.jsonl
---
"""
LOOK = """
import json, sys, time
from gemma_tune.data.hub_sets import hub_choices, hub_size_bytes, open_hub
from gemma_tune.errors import GemmaTuneError

def look(repo, subset="", split="train", token=None, whole=True, limit=None, ask=""):
    if ask:
        return {"choices": hub_choices, "bytes": hub_size_bytes}[ask](repo, token)
    opened = open_hub(repo, subset, split, token, streaming=not whole)
    rows = []
    for records in opened.records():
        rows += [[records.first + at, value] for at, value in enumerate(records.values)]
        if limit:
            break
    assert limit or [row for records in opened.records() for row in records.values] == [row for _, row in rows]
    return {"rows": rows[:limit], "notes": opened.notes, "columns": opened.columns, "fingerprint": opened.fingerprint()}

for call in json.loads(sys.argv[1]):
    begun = time.monotonic()
    try:
        found = look(**call)
    except GemmaTuneError as error:
        found = {"kind": type(error).__name__, **error.faults[0].as_dict(), "seconds": time.monotonic() - begun}
    print(json.dumps(found, default=bytes.hex))
print(json.dumps("torch" in sys.modules))
"""


def parquet(columns: dict[str, list], features: dict | None = None, rows_a_group: int = 1000) -> bytes:
    """A file as `datasets` writes it: the features that Arrow does not know stand in its metadata."""
    table, file = pa.table(columns), io.BytesIO()
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file, row_group_size=rows_a_group)
    return file.getvalue()


def pictures() -> bytes:
    """Pictures and sound that no library could decode beside text."""
    broken = [{"bytes": b"no picture", "path": "x"}] * 3
    text = {"dtype": "string", "_type": "Value"}
    features = {
        "text": text,
        "image": {"_type": "Image"},
        "pages": {"feature": {"_type": "Image"}, "_type": "List"},
        "parts": {"feature": {"type": text, "image": {"_type": "Image"}}, "_type": "List"},
        "about": {"sound": {"_type": "Audio"}, "title": text},
    }
    about = [{"sound": one, "title": "x"} for one in broken]
    parts = [[{"type": "image", "image": one}] for one in broken]
    pages = [[one] for one in broken]
    columns = {"text": ["a", "b", "c"], "image": broken, "pages": pages, "parts": parts, "about": about}
    return parquet(columns, features)


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "PNG")
    return file.getvalue()


ELSEWHERE = {"bytes": None, "path": "/etc/hostname"}


def image_folder() -> dict[str, bytes]:
    """Image files with a table of what is said of each, as the Hub knows such a repository."""
    told = [
        {"file_name": f"{colour}.png", "prompt": "Which?", "completion": colour, "other": ELSEWHERE}
        for colour in ("red", "blue")
    ]
    pictures = {f"{colour}.png": picture(colour) for colour in ("red", "blue")}
    return pictures | {"metadata.jsonl": "\n".join(map(json.dumps, told)).encode()}


def noise(count: int) -> list[str]:
    """Texts of 200 characters that do not compress well."""
    source = random.Random(0)
    return [base64.b64encode(source.randbytes(150)).decode() for _ in range(count)]


PARTS = {
    "train[:2]": range(2), "train[3:5]": range(3, 5), "train[7:]": range(7, 9), "train[:1000]": range(9),
    "train[:10%]": range(1), "train[50%:]": range(4, 9), "train[-2:]": range(7, 9),
}  # fmt: skip
NO_PARTS = ("train[", "train[5:2]", "train[:0]", "train[10%:20]", "train[:101%]", "train[1]", "train+test")
TROUBLE = {
    "stalled": {"stall_at": 3_000_000},
    "cut": {"break_at": 3_000_000},
    "busy": {"file_status": 429, "retry_after": 33},
}
CALLS = {
    "choices": {"repo": "me/two", "ask": "choices"},
    "bytes": {"repo": "me/plain", "ask": "bytes"},
    "no bytes": {"repo": "me/nothing", "ask": "bytes"},
    "whole": {"repo": "me/plain", "split": "test"},
    "streamed": {"repo": "me/plain", "whole": False},
    "no split": {"repo": "me/plain", "split": "dev"},
    "no subset": {"repo": "me/two", "subset": "three"},
    "which": {"repo": "me/two"},
    "second": {"repo": "me/two", "subset": "two", "split": "test"},
    "past the end": {"repo": "me/plain", "split": "train[20:]"},
    "script": {"repo": "me/script"},
    "nothing": {"repo": "me/nothing"},
    "broken": {"repo": "me/broken"},
    "unreadable": {"repo": "me/unreadable"},
    "empty": {"repo": "me/empty"},
    "pictures": {"repo": "me/pictures"},
    "pictures streamed": {"repo": "me/pictures", "whole": False},
    "image folder": {"repo": "me/image-folder"},
    "image folder streamed": {"repo": "me/image-folder", "whole": False},
    "gated": {"repo": "me/gated"},
    "gated, wrong token": {"repo": "me/gated", "token": "hf_wrong"},
    "gated, token": {"repo": "me/gated", "token": VALID_TOKEN},
    "private": {"repo": "me/private"},
    "private, token": {"repo": "me/private", "token": VALID_TOKEN},
    "private, token, streamed": {"repo": "me/private", "token": VALID_TOKEN, "whole": False},
    "lines": {"repo": "me/long-lines", "whole": False, "limit": 20},
    "table": {"repo": "me/long-table", "whole": False, "limit": 20},
    **{split: {"repo": "me/plain", "split": split} for split in PARTS},
    **{f"{split} streamed": {"repo": "me/plain", "split": split, "whole": False} for split in PARTS},
    **{split: {"repo": "me/unread", "split": split} for split in NO_PARTS},
}
TROUBLED_CALLS = {
    f"{trouble} {kind}{'' if whole else ' streamed'}": {"repo": f"me/{trouble}-{kind}", "whole": whole}
    for trouble in TROUBLE
    for kind in ("lines", "table")
    for whole in (True, False)
}


@pytest.fixture(scope="module")
def hub():
    with serve() as hub:
        hub.add("datasets/me/plain", {"train.jsonl": ROWS, "test.jsonl": ROWS, "README.md": b"# Plain"})
        hub.add("datasets/me/unread", {"train.jsonl": ROWS})
        hub.add("datasets/me/two", {"README.md": CARD, "one.jsonl": ROWS})
        hub.add("datasets/me/script", {"script.py": b"raise SystemExit", "train.jsonl": ROWS})
        hub.add("datasets/me/broken", {"train.jsonl": b'{"a": 1}\n{"a": '})
        hub.add("datasets/me/unreadable", {"cat.bin": b"x"})
        hub.add("datasets/me/empty", {"train.jsonl": b""})
        hub.add("datasets/me/pictures", {"train.parquet": pictures()})
        hub.add("datasets/me/image-folder", image_folder())
        hub.add("datasets/me/gated", {"train.jsonl": ROWS}, gated="manual")
        hub.add("datasets/me/private", {"train.jsonl": ROWS}, private=True)
        files = {
            "lines": {
                "train.jsonl": "\n".join(json.dumps({"text": text}) for text in noise(50_000)).encode()
            },
            "table": {"train.parquet": parquet({"text": noise(100_000)})},
        }
        for kind, data in files.items():
            hub.add(f"datasets/me/long-{kind}", data)
            for name, trouble in TROUBLE.items():
                hub.add(f"datasets/me/{name}-{kind}", data, **trouble)
        yield hub


@pytest.fixture(scope="module")
def found(hub, tmp_path_factory):
    """What each of the calls gave. Those that meet trouble run in a process of their own, with less patience."""
    calm = _look(hub.url, str(tmp_path_factory.mktemp("calm")), CALLS)
    variables = {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    troubled = _look(hub.url, str(tmp_path_factory.mktemp("troubled")), TROUBLED_CALLS, **variables)
    return _answers(troubled, TROUBLED_CALLS) | _answers(calm, CALLS)


def _look(url: str, home: str, calls: dict[str, dict], **variables: str) -> subprocess.Popen:
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": home, **variables}
    environment.pop("HF_TOKEN", None)
    return subprocess.Popen(
        [sys.executable, "-c", LOOK, json.dumps(list(calls.values()))],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _answers(look: subprocess.Popen, calls: dict[str, dict]) -> dict[str, dict]:
    printed, errors = look.communicate(timeout=300)
    assert look.returncode == 0, errors
    return dict(zip([*calls, "torch"], map(json.loads, printed.splitlines()), strict=True))


def test_a_set_is_read_by_subset_and_split_and_refused_with_what_there_is(found):
    assert found["choices"] == {"one": ["train"], "two": ["train", "test"]}
    assert found["bytes"] == 2 * len(ROWS) and found["no bytes"] is None
    whole, streamed, second = found["whole"], found["streamed"], found["second"]
    assert whole["rows"] == streamed["rows"] == second["rows"] and len(whole["rows"]) == 9
    assert whole["rows"][0] == [1, {"prompt": "q0", "completion": "a0"}]
    assert len({one["fingerprint"] for one in (whole, streamed, second)}) == 3
    fault = found["no split"]
    assert fault["where"] == "data.split" and "There are: train, test." in fault["way_out"]
    fault = found["no subset"]
    assert fault["where"] == "data.subset" and "There are: one, two." in fault["way_out"]
    assert "several subsets" in found["which"]["rule"] and "one, two" in found["which"]["way_out"]


@pytest.mark.parametrize("split", PARTS)
def test_a_part_of_a_split_is_read_as_datasets_writes_it(found, split):
    whole, streamed = found[split], found[f"{split} streamed"]
    assert [value["prompt"] for _, value in whole["rows"]] == [f"q{number}" for number in PARTS[split]]
    assert [number for number, _ in whole["rows"]] == list(range(1, len(PARTS[split]) + 1))
    if "%" in split or "-" in split:  # where it lies is told by the number of all rows
        assert len(streamed["rows"]) == 9 and split in streamed["notes"][0]
    else:
        assert streamed["rows"] == whole["rows"] and streamed["notes"] == []


def test_a_part_of_a_split_that_is_written_wrong_is_told_before_any_download(found, hub):
    for split in NO_PARTS:
        fault = found[split]
        assert fault["where"] == "data.split" and fault["value"] == split
        assert "train[:1000]" in fault["way_out"]
    assert hub.sent["datasets/me/unread/train.jsonl"] == 0
    for name in ("past the end", "empty"):
        assert "no row in this part" in found[name]["rule"]


def test_a_look_at_the_first_rows_requests_the_beginning_of_the_file_only(found, hub):
    for kind, name in (("lines", "train.jsonl"), ("table", "train.parquet")):
        rows, repo = found[kind]["rows"], f"datasets/me/long-{kind}"
        assert len(rows) == 20 and len(rows[0][1]["text"]) == 200
        assert 0 < hub.sent[f"{repo}/{name}"] < 7_000_000 < len(hub.repos[repo]["files"][name])


def test_no_set_brings_torch_into_the_process(found):
    assert found["torch"] is False


def test_images_come_as_their_bytes_undecoded_and_sound_is_left_out(found):
    image = {"bytes": b"no picture".hex(), "path": "x"}
    for one in (found["pictures"], found["pictures streamed"]):
        parts = [{"type": "image", "image": image}]
        told = {"image": image, "pages": [image], "parts": parts}
        assert one["rows"] == [[at, {"text": text, **told}] for at, text in enumerate("abc", 1)]
        assert one["columns"] == ["text", "image", "pages", "parts"]
        assert one["notes"] == ["Columns of sound, video or other media are left out: about."]


def test_images_that_are_files_of_the_repository_are_read(found):
    for one in (found["image folder"], found["image folder streamed"]):
        cells = {row["completion"]: row["image"]["bytes"] for _, row in one["rows"]}
        assert cells == {colour: picture(colour).hex() for colour in ("red", "blue")}
        assert [row["other"] for _, row in one["rows"]] == [ELSEWHERE] * 2, "no other file is read"


def test_only_files_of_the_repository_are_read():
    from datasets import config
    from huggingface_hub import constants

    snapshot = f"{constants.HF_HUB_CACHE}/datasets--me--set/snapshots/x"
    inside = (
        f"{snapshot}/a.png", f"{config.DOWNLOADED_DATASETS_PATH}/extracted/x/a.png", "hf://datasets/me/set@1/a.png",
        "zip://a.png::hf://datasets/me/set@1/b.zip",
    )  # fmt: skip
    outside = (
        "/etc/hostname", f"{snapshot}/../../../models--me--set/a.png", "http://127.0.0.1/a.png",
        "hf://datasets/me/set-of-others@1/a.png", "zip://a::file:///etc/x",
    )  # fmt: skip
    assert all(_is_of(path, "me/set") for path in inside)
    assert not any(_is_of(path, "me/set") for path in outside)


def test_a_set_that_cannot_be_read_says_why(found):
    assert found["script"]["value"] == "script.py" and "foreign code" in found["script"]["rule"]
    nothing = found["nothing"]
    assert nothing["kind"] == "DataError" and "no such data set" in nothing["rule"]
    assert "https://huggingface.co/datasets/me/nothing" in nothing["way_out"]
    assert found["broken"]["kind"] == "DataError" and "cannot be read" in found["broken"]["rule"]
    assert found["unreadable"]["kind"] == "DataError"
    assert "No (supported) data files found" in found["unreadable"]["value"]


def test_no_token_a_wrong_one_and_one_without_the_licence_are_told_apart(found):
    gated = found["gated"]
    assert gated["kind"] == "AccessError" and gated["value"] == "no token"
    assert "https://huggingface.co/datasets/me/gated" in gated["way_out"]
    wrong = found["gated, wrong token"]
    assert wrong["value"] == "the token is not valid" and "hf_wrong" not in json.dumps(wrong)
    assert found["gated, token"]["value"] == "licence not accepted"
    assert "or it is private" in found["private"]["rule"]
    assert len(found["private, token"]["rows"]) == len(found["private, token, streamed"]["rows"]) == 9


@pytest.mark.parametrize("way", ["lines", "table", "lines streamed", "table streamed"])
def test_a_download_that_stalls_breaks_off_or_is_refused_ends_within_seconds(found, way):
    for trouble in ("stalled", "cut"):
        fault = found[f"{trouble} {way}"]
        assert fault["kind"] == "DataError" and fault["seconds"] < 9
        assert "cannot be reached" in fault["rule"] and "Check the network" in fault["way_out"]
        assert ("timed out" if trouble == "stalled" else "closed connection") in fault["value"]
    busy = found[f"busy {way}"]
    assert busy["kind"] == "DataError" and busy["seconds"] < 9
    assert "too many requests" in busy["rule"] and "33 seconds" in busy["way_out"]


def test_without_a_network_or_offline_the_fault_says_so(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    for look in (hub_choices, lambda repo: open_hub(repo, "", "train", None, streaming=True)):
        with pytest.raises(DataError, match="cannot be reached"):
            look("me/plain")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        hub_choices("me/plain")


def test_an_id_needs_owner_and_name():
    for repo in ("squad", "a/b/c", "../x", ""):
        with pytest.raises(DataError, match="hub:OWNER/NAME"):
            open_hub(repo, "", "train", None, streaming=True)
