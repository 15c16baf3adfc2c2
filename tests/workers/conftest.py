import json
from pathlib import Path

import pytest
import torch

from gemma_tune import config
from gemma_tune.runs.folder import RunFolder, create_run
from gemma_tune.workers import callbacks, train

from . import pictures, tiny

torch.set_num_threads(1)  # tests share the machine, and the models are tiny


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs go to the test's own folder; files of the session's temporary folder may be named."""
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GEMMA_TUNE_ROOTS", str(tmp_path.parent.parent))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_gemma3(tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="session")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_gemma2(tmp_path_factory.mktemp("gemma2"))


@pytest.fixture(scope="session")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_multimodal_gemma3(tmp_path_factory.mktemp("multimodal"))


@pytest.fixture(scope="session")
def gemma3n(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_gemma3n(tmp_path_factory.mktemp("gemma3n"))


@pytest.fixture(scope="session")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_gemma4(tmp_path_factory.mktemp("gemma4"))


@pytest.fixture(scope="session")
def gemma4_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_gemma4_moe(tmp_path_factory.mktemp("gemma4_moe"))


@pytest.fixture(scope="session")
def gemma4_unified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_gemma4_unified(tmp_path_factory.mktemp("gemma4_unified"))


@pytest.fixture(scope="session")
def function_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_function_gemma(tmp_path_factory.mktemp("function_gemma"))


@pytest.fixture(scope="session")
def multimodal_gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_multimodal_gemma4(tmp_path_factory.mktemp("multimodal_gemma4"))


@pytest.fixture(scope="session")
def multimodal_gemma3n(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_multimodal_gemma3n(tmp_path_factory.mktemp("multimodal_gemma3n"))


@pytest.fixture(scope="session")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 one-question conversations as messages JSONL."""
    path = tmp_path_factory.mktemp("data") / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in tiny.conversations()))
    return path


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 questions about one-colour pictures as messages JSONL."""
    return pictures.write_pictures(tmp_path_factory.mktemp("painted") / "painted.jsonl")


@pytest.fixture
def make_run(gemma3: Path, talks: Path):
    """A run folder of the tiny Gemma 3; overrides are dotted, as on the command line."""

    def make(*overrides: str) -> RunFolder:
        values = {
            "model": {"id": str(gemma3)},
            "data": {"source": str(talks), "validation_fraction": 0.1},
            "train": {"max_steps": 4, "activation_checkpointing": False, "max_length": 128},
            "eval": {"exact_match_rows": 0, "eval_steps": 0},
        }
        return create_run(config.parse(config.apply_overrides(values, list(overrides))))

    return make


def events_of(run: RunFolder, kind: str) -> list[dict]:
    lines = run.events_path.read_text().splitlines()
    return [event for line in lines if line for event in [json.loads(line)] if event["kind"] == kind]


def losses_of(run: RunFolder) -> list[float]:
    return [event["loss"] for event in events_of(run, "metrics")]


def ask_to_stop(run: RunFolder, mode: str = "keep") -> None:
    run.stop_path.write_text(json.dumps({"mode": mode}))


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch):
    """Writes the stop file when the given step ends, before the worker looks."""

    def arrange(run: RunFolder, step: int, mode: str = "keep") -> None:
        looks = callbacks.StopCallback.on_step_end

        def ask_and_look(self, args, state, control, **kwargs):
            if state.global_step == step:
                ask_to_stop(run, mode)
            return looks(self, args, state, control, **kwargs)

        monkeypatch.setattr(callbacks.StopCallback, "on_step_end", ask_and_look)

    return arrange


@pytest.fixture
def break_off(stop_at):
    """Runs up to a step, is stopped there and kept, and resumed to its end."""

    def work(run: RunFolder, step: int) -> None:
        stop_at(run, step)
        assert train.main([str(run.path)]) == 0
        run.stop_path.unlink()
        stop_at(run, -1)
        assert train.main([str(run.path), "--resume-from", f"checkpoints/checkpoint-{step}"]) == 0

    return work
