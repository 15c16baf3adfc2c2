"""The tokens of a store on disk: made once for a tokenizer and template, cut and masked when they are used.

`ids.bin` holds all ids one after the other, `lengths.bin` how many belong to each row; `spans.bin` and `counts.bin` the
spans that carry loss likewise; `refused.jsonl` the rows that the template refuses, which have no ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import orjson

from gemma_tune.data.parallel import Watch, in_order
from gemma_tune.data.rendering import NOT_LEARNED, ChatTokenizer, tokenizer_digest
from gemma_tune.data.rows import Row
from gemma_tune.data.store import META, Store, appending, cached, mapped

VERSION = 1
FILES = ("ids.bin", "lengths.bin", "spans.bin", "counts.bin", "odd.bin", "refused.jsonl")
NO_SINGLE_BOS, NO_TURN_END = 1, 2  # bits of odd.bin


class Tokens:
    """Tokens of the rows of one store, by their index in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids = mapped(folder / "ids.bin", np.int32)
        self.lengths = mapped(folder / "lengths.bin", np.int32)  # (n,), uncut
        self.odd = mapped(folder / "odd.bin", np.uint8)  # (n,)
        self._spans = mapped(folder / "spans.bin", np.int32).reshape(-1, 2)
        self._counts = mapped(folder / "counts.bin", np.int32)

    @cached_property
    def ends(self) -> np.ndarray:
        """(n + 1,): where the ids of each row begin, and the end."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @cached_property
    def _span_ends(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self._counts, dtype=np.int64)])

    def learned(self, max_length: int) -> np.ndarray:
        """(n,): tokens with loss among the first max_length."""
        within = np.clip(np.minimum(self._spans[:, 1], max_length) - self._spans[:, 0], 0, None)
        sums = np.concatenate([[0], np.cumsum(within, dtype=np.int64)])
        return sums[self._span_ends[1:]] - sums[self._span_ends[:-1]]

    def before_learned(self) -> np.ndarray:
        """(n,): tokens before the first with loss; all of them where none has."""
        found = self.lengths.copy()
        some = self._counts > 0
        found[some] = self._spans[self._span_ends[:-1][some], 0]
        return found

    def batch(self, indices: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, labels, lengths) of some rows as they are trained on: the first two one row after the other."""
        lengths = np.minimum(self.lengths[indices], max_length)
        ends = np.cumsum(lengths, dtype=np.int64)
        begins = ends - lengths
        ids = self.ids[np.repeat(self.ends[indices] - begins, lengths) + np.arange(lengths.sum())]
        labels = np.full(len(ids), NOT_LEARNED, np.int32)
        for index, begin, length in zip(indices, begins, lengths, strict=True):
            for start, end in self._spans[self._span_ends[index] : self._span_ends[index + 1]]:
                learned = slice(begin + min(start, length), begin + min(end, length))
                labels[learned] = ids[learned]
        return ids, labels, lengths

    def row(self, index: int, max_length: int) -> tuple[list[int], list[int]]:
        """(ids, labels) of one row as they are trained on."""
        ids, labels, _ = self.batch(np.array([index]), max_length)
        return ids.tolist(), labels.tolist()

    def refused(self) -> Iterator[tuple[int, str]]:
        """(index, reason) of each row that the template refuses."""
        with (self.folder / "refused.jsonl").open("rb") as file:
            for line in file:
                index, reason = orjson.loads(line)
                yield index, reason


@dataclass(frozen=True)
class Tokenised:
    """What one block of rows becomes."""

    ids: bytes
    lengths: np.ndarray
    spans: bytes
    counts: np.ndarray
    odd: np.ndarray
    refused: list[tuple[int, str]]  # index within the block


def tokens_of(store: Store, tokenizer_folder: Path, assistant_only_loss: bool, watch: Watch) -> Tokens:
    """Made where the cache has none. The tokens are uncut, so the maximum length may change without work."""
    told = f"tokens {VERSION}\n{store.key}\n{tokenizer_digest(tokenizer_folder)}\n{assistant_only_loss}"
    key = hashlib.sha256(told.encode()).hexdigest()[:32]
    write = partial(_write, store, tokenizer_folder, assistant_only_loss, watch)
    return Tokens(cached(f"tokens-{key}", write))


def _write(
    store: Store, tokenizer_folder: Path, assistant_only_loss: bool, watch: Watch, folder: Path
) -> None:
    done = 0
    work = partial(tokenise_block, folder=tokenizer_folder, assistant_only_loss=assistant_only_loss)
    with appending(folder, FILES) as files:
        for one in in_order(work, store.blocks(), len):
            contents = (one.ids, one.lengths.tobytes(), one.spans, one.counts.tobytes(), one.odd.tobytes())
            for name, content in zip(FILES, contents, strict=False):
                files[name].write(content)
            for index, reason in one.refused:
                files["refused.jsonl"].write(orjson.dumps([done + index, reason]) + b"\n")
            done += len(one.lengths)
            watch("tokenizing", done, len(store))
    (folder / META).write_text(json.dumps({"version": VERSION, "rows": done}), encoding="utf-8")


def tokenise_block(block: bytes, folder: Path, assistant_only_loss: bool) -> Tokenised:
    """The rows of some lines. Runs in a process of its own where there is much to do."""
    chat = ChatTokenizer.from_folder(folder)
    rows = [Row.from_json(line) for line in block.split(b"\n")[:-1]]
    found = chat.encode_all(rows, assistant_only_loss)
    return Tokenised(
        b"".join(np.array(one.ids, np.int32).tobytes() for one in found),
        np.array([len(one.ids) for one in found], np.int32),
        np.array([span for one in found for span in one.spans], np.int32).tobytes(),
        np.array([len(one.spans) for one in found], np.int32),
        np.array(
            [_odd(chat, row, one.ids, one.spans) for row, one in zip(rows, found, strict=True)], np.uint8
        ),
        [(index, one.refusal) for index, one in enumerate(found) if one.refusal],
    )


def _odd(chat: ChatTokenizer, row: Row, ids: list[int], spans: list[tuple[int, int]]) -> int:
    """Breaches of Gemma's rules in the very tokens: one <bos>, at the beginning; every answer learns to end."""
    if not ids:
        return 0
    found = 0
    if chat.bos_id is not None and (ids[0] != chat.bos_id or chat.bos_id in ids[1:]):
        found |= NO_SINGLE_BOS
    learned = [turn for turn in row.messages[row.prompt_turns :] if turn["role"] == "assistant"]
    for turn, (start, end) in zip(learned, spans, strict=False):  # a single span where all is learned
        if "tool_calls" not in turn and chat.end_of_turn_id not in ids[max(start, end - 2) : end]:
            found |= NO_TURN_END  # a call ends otherwise: it hands over to the function
    return found
