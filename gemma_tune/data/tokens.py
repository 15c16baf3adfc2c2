"""The tokens of a store on disk: made once for a tokenizer and template, cut and masked when they are used.

`ids.bin` holds all ids one after the other, `lengths.bin` how many belong to each row; `spans.bin` and `counts.bin` the
spans that carry loss likewise; `other.bin` and `other_lengths.bin` hold prompt and rejected answer of a pair, whose ids
are those of its chosen answer; `images.bin` where the last image of each row ends; `refused.jsonl` the rows that the
template refuses, which have no ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import orjson

from gemma_tune.data.parallel import Watch, in_order
from gemma_tune.data.rendering import NOT_LEARNED, ChatTokenizer, Encoding
from gemma_tune.data.rows import Row
from gemma_tune.data.store import META, Store, appending, cached, mapped
from gemma_tune.data.tokenizer_files import tokenizer_digest

VERSION = 3
FILES = (
    "ids.bin", "lengths.bin", "spans.bin", "counts.bin", "odd.bin", "other.bin", "other_lengths.bin", "prompts.bin",
    "images.bin", "refused.jsonl",
)  # fmt: skip
NO_SINGLE_BOS, NO_TURN_END = 1, 2  # bits of odd.bin


class Tokens:
    """Tokens of the rows of one store, by their index in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids = mapped(folder / "ids.bin", np.int32)
        self.lengths = mapped(folder / "lengths.bin", np.int32)  # (n,), uncut
        self.odd = mapped(folder / "odd.bin", np.uint8)  # (n,)
        self.other_lengths = mapped(
            folder / "other_lengths.bin", np.int32
        )  # (n,), 0 where the row is no pair
        self.prompt_lengths = mapped(
            folder / "prompts.bin", np.int32
        )  # (n,): tokens before the answer, where only answers are learned
        self.image_ends = mapped(
            folder / "images.bin", np.int32
        )  # (n,): the index behind the last token of an image, 0 where there is none
        self._other = mapped(folder / "other.bin", np.int32)
        self._spans = mapped(folder / "spans.bin", np.int32).reshape(-1, 2)
        self._counts = mapped(folder / "counts.bin", np.int32)

    @cached_property
    def ends(self) -> np.ndarray:
        """(n + 1,): where the ids of each row begin, and the end."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @cached_property
    def _span_ends(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self._counts, dtype=np.int64)])

    @cached_property
    def _other_ends(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.other_lengths, dtype=np.int64)])

    def sides(self, index: int) -> tuple[list[int], list[int], list[int]]:
        """(prompt, answer, rejected answer) of one row, uncut: ids; the last is empty where the row is no pair."""
        prompt = int(self.prompt_lengths[index])
        ids = self.ids[self.ends[index] : self.ends[index + 1]]
        other = self._other[self._other_ends[index] : self._other_ends[index + 1]]
        return ids[:prompt].tolist(), ids[prompt:].tolist(), other[prompt:].tolist()

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
    other: bytes
    other_lengths: np.ndarray
    prompts: np.ndarray
    image_ends: np.ndarray
    refused: list[tuple[int, str]]  # index within the block


def tokens_of(store: Store, tokenizer_folder: Path, assistant_only_loss: bool, watch: Watch) -> Tokens:
    """Made where the cache has none. The tokens are uncut, so the maximum length may change without work."""
    told = f"tokens {VERSION}\n{store.key}\n{tokenizer_digest(tokenizer_folder)}\n{assistant_only_loss}"
    if store.has_images:
        image_tokens = ChatTokenizer.from_folder(tokenizer_folder).image_tokens
        told += f"\n{image_tokens.rules if image_tokens else ''}"
    key = hashlib.sha256(told.encode()).hexdigest()[:32]
    write = partial(_write, store, tokenizer_folder, assistant_only_loss, watch)
    return Tokens(cached(f"tokens-{key}", write))


def _write(
    store: Store, tokenizer_folder: Path, assistant_only_loss: bool, watch: Watch, folder: Path
) -> None:
    done = 0
    work = partial(
        tokenise_block,
        folder=tokenizer_folder,
        assistant_only_loss=assistant_only_loss,
        among_images=store.has_images,
    )
    with appending(folder, FILES) as files:
        for one in in_order(work, store.blocks(), len):
            contents = (
                one.ids, one.lengths.tobytes(), one.spans, one.counts.tobytes(), one.odd.tobytes(),
                one.other, one.other_lengths.tobytes(), one.prompts.tobytes(), one.image_ends.tobytes(),
            )  # fmt: skip
            for name, content in zip(FILES, contents, strict=False):
                files[name].write(content)
            for index, reason in one.refused:
                files["refused.jsonl"].write(orjson.dumps([done + index, reason]) + b"\n")
            done += len(one.lengths)
            watch("tokenizing", done, len(store))
    (folder / META).write_text(json.dumps({"version": VERSION, "rows": done}), encoding="utf-8")


def tokenise_block(
    block: bytes, folder: Path, assistant_only_loss: bool, among_images: bool = False
) -> Tokenised:
    """The rows of some lines. Runs in a process of its own where there is much to do."""
    chat = ChatTokenizer.from_folder(folder)
    rows = [Row.from_json(line) for line in block.split(b"\n")[:-1]]
    found = chat.encode_all(rows, assistant_only_loss, among_images)
    others = _others(chat, rows)
    for index, other in others.items():
        if other.refusal:
            found[index] = other
    prompts = [
        _prompt_tokens(row, one, others.get(index)) for index, (row, one) in enumerate(zip(rows, found, strict=True))
    ]  # fmt: skip
    other_ids = [others[index].ids if index in others and one.ids else [] for index, one in enumerate(found)]
    return Tokenised(
        ids=b"".join(np.array(one.ids, np.int32).tobytes() for one in found),
        lengths=np.array([len(one.ids) for one in found], np.int32),
        spans=np.array([span for one in found for span in one.spans], np.int32).tobytes(),
        counts=np.array([len(one.spans) for one in found], np.int32),
        odd=np.array(
            [_odd(chat, row, one.ids, one.spans) for row, one in zip(rows, found, strict=True)], np.uint8
        ),
        other=b"".join(np.array(ids, np.int32).tobytes() for ids in other_ids),
        other_lengths=np.array([len(ids) for ids in other_ids], np.int32),
        prompts=np.array(prompts, np.int32),
        image_ends=np.array(
            [_image_end(chat, row, one.ids) for row, one in zip(rows, found, strict=True)], np.int32
        ),
        refused=[(index, one.refusal) for index, one in enumerate(found) if one.refusal],
    )


def _others(chat: ChatTokenizer, rows: list[Row]) -> dict[int, Encoding]:
    """Prompt and rejected answer of the pairs among the rows, by their index."""
    pairs = [index for index, row in enumerate(rows) if row.rejected_messages is not None]
    sides = [
        replace(
            rows[index],
            messages=rows[index].messages[: rows[index].prompt_turns] + rows[index].rejected_messages,
            rejected_messages=None,
        )
        for index in pairs
    ]
    return dict(zip(pairs, chat.encode_all(sides), strict=True))


def _prompt_tokens(row: Row, one: Encoding, other: Encoding | None) -> int:
    """Tokens before the answer: of a conversation its last turn, of a pair those that both sides have in common."""
    if not row.messages or not one.spans:
        return 0
    if not row.prompt_turns:
        return one.spans[-1][0]
    return min(side.spans[0][0] for side in (one, other) if side and side.spans)


def _image_end(chat: ChatTokenizer, row: Row, ids: list[int]) -> int:
    if not row.images or not ids:
        return 0
    return len(ids) - ids[::-1].index(chat.image_token_id)


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
