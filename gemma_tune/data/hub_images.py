"""Images in data sets of the Hub: which columns hold some, and their bytes in place of decoded pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path


def is_media(feature: object) -> bool:
    """Whether a feature, or one inside it, is of sound, documents or the like."""
    if inner := _inner(feature):
        return any(map(is_media, inner))
    # `Json` too is decoded when it is read, but into plain values.
    return hasattr(feature, "decode_example") and type(feature).__name__ not in ("Json", "Image")


def has_images(feature: object) -> bool:
    return any(map(has_images, _inner(feature))) or type(feature).__name__ == "Image"


def undecoded(feature):
    """The same feature, in which an image is the bytes of its file."""
    if isinstance(feature, dict):
        return {name: undecoded(one) for name, one in feature.items()}
    if isinstance(feature, list | tuple):
        return [undecoded(one) for one in feature]
    if getattr(feature, "feature", None) is not None:
        return replace(feature, feature=undecoded(feature.feature))
    return replace(feature, decode=False) if type(feature).__name__ == "Image" else feature


def with_undecoded_images(data):
    """Where the files hold them as they are; of Parquet the builder knows it, which also saves a copy of nested ones."""
    if hasattr(data, "decode"):  # a stream
        return (data if data.features else data._resolve_features()).decode(False)
    for name, feature in data.features.items():
        if undecoded(feature) != feature:
            data = data.cast_column(name, undecoded(feature))
    return data


def with_bytes(rows: Iterator[dict], features: dict, repo: str, token: str | None) -> Iterator[dict]:
    """The rows with the bytes of images that are files of the repository, here or on the Hub in a stream."""
    columns = [name for name, feature in features.items() if has_images(feature)]
    for row in rows:
        yield row | {name: _opened(row[name], repo, token) for name in columns}


def _opened(cell: object, repo: str, token: str | None) -> object:
    if isinstance(cell, list):
        return [_opened(one, repo, token) for one in cell]
    path = cell["path"] if isinstance(cell, dict) and cell.get("bytes") is None else None
    if not path or not _is_of(path, repo):
        return cell
    from datasets import DownloadConfig
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb", download_config=DownloadConfig(token=token)) as file:
        return {"bytes": file.read(), "path": None}


def _is_of(path: str, repo: str) -> bool:
    """Whether a path leads into the repository; a set may write any other one into its rows."""
    from datasets import config
    from huggingface_hub import constants

    if "://" in path:
        return path.split("::")[-1].startswith(f"hf://datasets/{repo}@")
    roots = (
        Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}",
        Path(config.DOWNLOADED_DATASETS_PATH),
    )
    return any(Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)) for root in roots)


def _inner(feature: object) -> list:
    """The features within a feature."""
    if isinstance(feature, dict):
        return list(feature.values())
    if isinstance(feature, list | tuple):
        return list(feature)
    inner = getattr(feature, "feature", None)  # of a list
    return [] if inner is None else [inner]
