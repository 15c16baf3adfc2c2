"""Tiny tokenizers of both families, and a place of our own for files."""

import json
from pathlib import Path

import pytest
from tiny_tokenizer import build_tokenizer, trl_template

from gemma_tune.data.rendering import ChatTokenizer


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
