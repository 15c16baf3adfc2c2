"""A tokenizer of Gemma's make, small enough to build in every session, and a place of our own for files."""

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from gemma_tune.data.rendering import ChatTokenizer

TEXT = [
    "Who lives in the red house? A cat lives in the red house.",
    "Add 2 and 3. The answer is 5.\n\nWrite a short poem about the sea and the wind.",
    'Return JSON: {"name": "Ann", "age": 7}',
]


def trl_template(name: str) -> str:
    """A template as TRL ships it, read without importing TRL."""
    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def build_tokenizer(folder: Path, template: str) -> Path:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja with Gemma's control tokens and byte fallback."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*control, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([line for text in TEXT for line in text.split("\n")], trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in control]
    vocabulary = raw["model"]["vocab"]
    vocabulary.setdefault("\n", len(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def gemma3_folder(tmp_path_factory) -> Path:
    return build_tokenizer(tmp_path_factory.mktemp("gemma3"), trl_template("gemma3"))


@pytest.fixture(scope="session")
def gemma2_folder(tmp_path_factory) -> Path:
    return build_tokenizer(tmp_path_factory.mktemp("gemma2"), trl_template("gemma"))


@pytest.fixture(scope="session")
def gemma3(gemma3_folder) -> ChatTokenizer:
    return ChatTokenizer.from_folder(gemma3_folder)


@pytest.fixture(scope="session")
def gemma2(gemma2_folder) -> ChatTokenizer:
    return ChatTokenizer.from_folder(gemma2_folder)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An allowed folder for files of a test; the tokenizer of `model.id = tmp_path/...` may lie in it too."""
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def write(folder):
    """Writes a file and gives its path as a source."""

    def write_file(name: str, content: str | bytes | list) -> str:
        path = folder / name
        if isinstance(content, list):
            lines = [json.dumps(row, ensure_ascii=False) for row in content]
            content = "\n".join(lines) if name.endswith(".jsonl") else f"[{','.join(lines)}]"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return str(path)

    return write_file
