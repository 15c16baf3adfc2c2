"""Tiny tokenizers of every family, and a place of our own for files."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tiny_tokenizer import build_family, build_seeing

from gemma_tune.data.rendering import ChatTokenizer

settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The folder of a family's tokenizer."""
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = build_family(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder


@pytest.fixture(scope="session")
def chat_of(folder_of):
    """The tokenizer of a family."""
    chats: dict[str, ChatTokenizer] = {}

    def chat(family: str) -> ChatTokenizer:
        if family not in chats:
            chats[family] = ChatTokenizer.from_folder(folder_of(family))
        return chats[family]

    return chat


@pytest.fixture(scope="session")
def seeing_folder(tmp_path_factory):
    """The folder of the tokenizer of "gemma3" or "gemma4" that reads images."""
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = build_seeing(tmp_path_factory.mktemp(f"seeing_{family}"), family)
        return folders[family]

    return folder


@pytest.fixture(scope="session")
def gemma3_folder(folder_of) -> Path:
    return folder_of("gemma3")


@pytest.fixture(scope="session")
def gemma3(chat_of) -> ChatTokenizer:
    return chat_of("gemma3")


@pytest.fixture(scope="session")
def gemma2(chat_of) -> ChatTokenizer:
    return chat_of("gemma2")


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
