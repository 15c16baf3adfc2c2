import json
import sys
from pathlib import Path

import pytest

from gemma_tune.catalog import MODELS
from gemma_tune.cli import main
from gemma_tune.runs import engine

ROOT = Path(__file__).parent.parent
FAKE_WORKER = ROOT / "tests" / "runs" / "fake_worker.py"
PRESET = str(ROOT / "configs" / "pocket-lora.yaml")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GEMMA_TUNE_ROOTS", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(engine, "_free_bytes", lambda path: 10**12)
    worker(monkeypatch)
    return tmp_path


def worker(monkeypatch, *arguments: str) -> None:
    monkeypatch.setenv(
        "GEMMA_TUNE_WORKER_COMMAND", json.dumps([sys.executable, str(FAKE_WORKER), *arguments])
    )


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_check_counts_rows_and_starts_nothing(home, capsys):
    assert run("check", PRESET) == 0
    shown = capsys.readouterr().out
    assert "rows read as messages" in shown and "Ready to train" in shown
    assert run("runs") == 0
    assert "No runs yet" in capsys.readouterr().out


def test_check_names_every_bad_row_of_a_file_anywhere(home, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(30)] + [
        {"prompt": "x", "completion": ""}
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("check", PRESET, f"data.source={file}") == 0
    shown = capsys.readouterr().out
    assert "30 accepted, 1 left out" in shown and "row 31, completion" in shown


def test_models_lists_the_whole_catalogue(home, capsys):
    assert run("models") == 0
    listed = capsys.readouterr().out
    assert all(model_id in listed for model_id in MODELS)


def test_forecast_counts_before_anything_is_loaded_and_its_exit_code_says_whether_it_fits(home, capsys):
    assert run("forecast", PRESET) == 0
    shown = capsys.readouterr().out
    assert "✓ Fits" in shown and "weights" in shown and "90 steps" in shown
    large = ["train.per_device_train_batch_size=1", "method.type=full"]
    assert run("forecast", PRESET, "model.id=google/gemma-3-27b-it", *large) == 2
    shown = capsys.readouterr().out
    assert "✗ Does not fit" in shown and "every row is taken to be as long as allowed" in shown


def test_train_ends_with_the_outcome_of_the_run(home, monkeypatch, capsys):
    assert run("train", PRESET, "output.name=one") == 0
    assert "Finished." in capsys.readouterr().out
    worker(monkeypatch, "--error", "data")
    assert run("train", PRESET, "output.name=two") == 1
    shown = capsys.readouterr()
    assert "line 3" in shown.err and "Fill it." in shown.err
    assert run("runs") == 0
    listed = capsys.readouterr().out.splitlines()
    assert "failed" in listed[0] and "finished" in listed[1]
    assert run("watch", "latest") == 1


def test_a_stopped_run_can_be_resumed_to_its_end(home, monkeypatch, capsys):
    import threading

    worker(monkeypatch, "--steps", "60", "--step-seconds", "0.05")
    codes = []
    training = threading.Thread(target=lambda: codes.append(run("train", PRESET, "output.name=long")))
    training.start()
    wait_for_step(3)
    assert run("stop") == 0
    training.join(30)
    assert codes == [3]
    worker(monkeypatch, "--steps", "60", "--step-seconds", "0.001")
    assert run("resume") == 0
    assert "Finished." in capsys.readouterr().out


def wait_for_step(step: int) -> None:
    import time

    from gemma_tune.runs.folder import list_runs

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if list_runs() and engine.read_state(list_runs()[0].id).step >= step:
            return
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", PRESET, "train.learning_rate=50"], "at most 0.1"),
        (["train", PRESET, "train.learning_rate=abc", "train.max_length=4"], "at least 16"),
        (["train", "nowhere.yaml"], "There is no such file"),
        (["check", PRESET, "data.source=nowhere.jsonl"], "nowhere.jsonl"),
        (["train", PRESET, "output.name=../../x"], "letters, digits"),
        (["watch", "nothing"], "nothing"),
        (["resume", "latest"], "run"),
    ],
)
def test_what_must_be_mended_first_ends_with_2_and_a_sentence(home, capsys, arguments, words):
    assert run(*arguments) == 2
    shown = capsys.readouterr().err
    assert words in shown and "Traceback" not in shown
