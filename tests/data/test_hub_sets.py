"""Data sets of the Hub against a small server. `datasets` fixes its endpoint when imported, so each look is a process."""

import json
import os
import subprocess
import sys

import pytest
from fake_hub import VALID_TOKEN, serve

from gemma_tune.data.hub_sets import read_hub
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
import json, sys
from gemma_tune.data.sources import hub_choices, read
from gemma_tune.errors import GemmaTuneError
token = sys.argv[1] or None
for call in json.loads(sys.argv[2]):
    try:
        if call.pop("choices", False):
            found = hub_choices(call["source"], token)
        else:
            table = read(**call, token=token)
            found = {"rows": table.rows, "columns": table.columns, "fingerprint": table.fingerprint}
    except GemmaTuneError as error:
        found = {"kind": type(error).__name__, **error.faults[0].as_dict()}
    print(json.dumps(found))
"""


@pytest.fixture
def look(tmp_path):
    """Answers of several calls, each a dict of `read`'s arguments, in one process against the server."""
    with serve() as hub:
        hub.add("datasets/me/plain", {"train.jsonl": ROWS, "test.jsonl": ROWS})
        hub.add("datasets/me/two", {"README.md": CARD, "one.jsonl": ROWS})
        hub.add("datasets/me/script", {"script.py": b"raise SystemExit"})
        hub.add("datasets/me/broken", {"train.jsonl": b'{"a": 1}\n{"a": '})
        hub.add("datasets/me/pictures", {"cat.bin": b"x"})
        hub.add("datasets/me/gated", {"train.jsonl": ROWS}, gated="manual")

        def ask(*calls: dict, token: str = "", **environment: str) -> list[dict]:
            variables = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), **environment}
            variables.pop("HF_TOKEN", None)
            done = subprocess.run(
                [sys.executable, "-c", LOOK, token, json.dumps(calls)],
                env=variables, capture_output=True, text=True, timeout=100,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return [json.loads(line) for line in done.stdout.splitlines()]

        yield ask


def test_a_set_is_read_by_subset_and_split_and_refused_with_what_there_is(look):
    choices, whole, first, no_split, no_subset, which, second = look(
        {"source": "me/two", "choices": True},
        {"source": "hub:me/plain", "split": "test"},
        {"source": "hub:me/plain", "limit": 2},
        {"source": "hub:me/plain", "split": "dev"},
        {"source": "hub:me/two", "subset": "three"},
        {"source": "hub:me/two"},
        {"source": "hub:me/two", "subset": "two", "split": "test"},
    )
    assert choices == {"one": ["train"], "two": ["train", "test"]}
    assert whole["columns"] == ["prompt", "completion"] and len(whole["rows"]) == len(second["rows"]) == 9
    assert first["rows"] == [
        [1, {"prompt": "q0", "completion": "a0"}],
        [2, {"prompt": "q1", "completion": "a1"}],
    ]
    assert first["fingerprint"] != whole["fingerprint"]
    assert no_split["where"] == "data.split" and "There are: train, test." in no_split["way_out"]
    assert no_subset["where"] == "data.subset" and "There are: one, two." in no_subset["way_out"]
    assert "several subsets" in which["rule"] and "one, two" in which["way_out"]


def test_a_set_that_cannot_be_read_says_why(look):
    script, nothing, broken, pictures, gated = look(
        {"source": "hub:me/script"},
        {"source": "hub:me/nothing"},
        {"source": "hub:me/broken"},
        {"source": "hub:me/pictures"},
        {"source": "hub:me/gated"},
    )
    assert script["value"] == "script.py" and "foreign code" in script["rule"]
    assert nothing["kind"] == "DataError" and "no such data set" in nothing["rule"]
    assert "https://huggingface.co/datasets/me/nothing" in nothing["way_out"]
    assert broken["kind"] == "DataError" and "cannot be read" in broken["rule"]
    assert pictures["kind"] == "DataError"
    assert gated["kind"] == "AccessError" and gated["value"] == "no token"
    assert "https://huggingface.co/datasets/me/gated" in gated["way_out"]


def test_a_token_that_is_wrong_or_whose_licence_is_open_is_told(look):
    assert look({"source": "hub:me/gated"}, token="hf_wrong")[0]["value"] == "the token is not valid"
    assert look({"source": "hub:me/gated"}, token=VALID_TOKEN)[0]["value"] == "licence not accepted"


def test_without_a_network_or_offline_the_fault_says_so(look):
    (dead,) = look({"source": "hub:me/plain"}, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in dead["rule"] and "example" in dead["way_out"]
    (offline,) = look({"source": "hub:me/plain"}, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in offline["rule"]


def test_an_id_needs_owner_and_name():
    for repo in ("squad", "a/b/c", "../x", ""):
        with pytest.raises(DataError, match="hub:OWNER/NAME"):
            read_hub(repo, "", "train", None, None)
