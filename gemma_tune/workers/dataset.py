"""The rows of a run: prepared once, kept in the run folder, read from there ever after, so that resuming sees the same.

Torch-free: bad data ends a run before anything heavy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from gemma_tune import data
from gemma_tune.config import RunConfig
from gemma_tune.data.rendering import NOT_LEARNED, ChatTokenizer
from gemma_tune.data.rows import Row
from gemma_tune.errors import DataError
from gemma_tune.runs.folder import RunFolder, write_json

TRAIN, VALIDATION, REJECTED = "train.jsonl", "validation.jsonl", "rejected.jsonl"
ROWS_AT_ONCE = 1000  # tokenised between two looks at the stop file


@dataclass(frozen=True)
class Encoded:
    """Rows as TRL takes them, each at most `max_length` long and with at least one learned token."""

    rows: list[dict[str, list[int]]]
    cut: list[int]  # source numbers of rows that were longer
    unlearnable: list[int]  # source numbers of rows left out: all of their answer was cut off
    tokens: int


def rows_of(run: RunFolder, config: RunConfig, token: str | None) -> tuple[list[Row], list[Row]]:
    """Training and validation rows. The first call reads the source and writes them down."""
    if not (run.data_dir / TRAIN).is_file():
        prepared = data.prepare(config, token)
        run.data_dir.mkdir(exist_ok=True)
        _write(run.data_dir / REJECTED, [rejected.as_dict() for rejected in prepared.rejected])
        _write(run.data_dir / VALIDATION, [asdict(row) for row in prepared.validation])
        write_json(run.provenance_path, run.provenance() | {"data_fingerprint": prepared.fingerprint})
        _write(run.data_dir / TRAIN, [asdict(row) for row in prepared.train])  # last: says that all are there
    return _read(run.data_dir / TRAIN), _read(run.data_dir / VALIDATION)


def rejected_count(run: RunFolder) -> int:
    with (run.data_dir / REJECTED).open(encoding="utf-8") as lines:
        return sum(1 for _ in lines)


def encode(chat: ChatTokenizer, rows: list[Row], config: RunConfig, between: Callable[[], object]) -> Encoded:
    """Tokens and labels of the rows; `between` is called now and then. Packing does its own cutting."""
    limit = None if config.advanced.sft.get("packing") else config.train.max_length
    encoded, cut, unlearnable = [], [], []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        between()
        batch = rows[start : start + ROWS_AT_ONCE]
        found = chat.encode_all([row.messages for row in batch], config.train.assistant_only_loss)
        for row, one in zip(batch, found, strict=True):
            if len(one.ids) > config.train.max_length:
                cut.append(row.number)
            labels = one.labels[:limit]
            if labels.count(NOT_LEARNED) == len(labels):
                unlearnable.append(row.number)
            else:
                encoded.append({"input_ids": one.ids[:limit], "labels": labels})
    return Encoded(encoded, cut, unlearnable, sum(len(row["input_ids"]) for row in encoded))


def refuse_nothing_to_learn(encoded: Encoded, config: RunConfig) -> None:
    if not encoded.rows:
        raise DataError.at(
            "train.max_length", config.train.max_length,
            "No training row has any token to learn from within this length.",
            "Raise the maximum length, or shorten the prompts.",
        )  # fmt: skip


def _write(path: Path, rows: list[dict]) -> None:
    draft = path.with_name(f".{path.name}.part")
    with draft.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    draft.replace(path)


def _read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [Row(**json.loads(line)) for line in lines]
