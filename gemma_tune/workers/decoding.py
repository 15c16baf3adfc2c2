"""Two models answer one prompt token by token, side by side.

Shapes: C = 2 columns (base, tuned), V = vocabulary. Both columns draw from the same random numbers: a generator each,
with the same seed, so that where the two models agree the answers do too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.runs.chat import COLUMNS, Sampling
from gemma_tune.workers.modeling import BASE, TUNED

INCOMPLETE = "\ufffd"  # how a decoder shows bytes that are no whole character yet

# (prompt ids (B, T)) -> what a model with images takes beside them, the same images in each row
Beside = Callable[[torch.Tensor], dict[str, torch.Tensor]]


def nothing_beside(input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {}


@dataclass(frozen=True)
class Piece:
    column: str
    text: str


@dataclass(frozen=True)
class Done:
    column: str
    tokens: int
    seconds: float
    why: str  # end, length, stopped


class MixedBatch:
    """Two adapters, or base and adapter, in one forward pass over a batch of two rows: the weights are read once."""

    def __init__(self, model, names: tuple[str, str] = (BASE, TUNED)) -> None:
        self.model = model
        self._names = list(names)
        self.begin()

    def begin(self) -> None:
        self._cache = DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def logits(self, ids: list[list[int]], beside: Beside = nothing_beside) -> torch.Tensor:
        """(C, V) after each column's further tokens, equally many in both."""
        input_ids = torch.tensor(ids, device=self.model.device)
        out = self.model(
            input_ids=input_ids,
            **beside(input_ids),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            adapter_names=self._names,
        )
        return out.logits[:, -1]


class InTurn:
    """One forward pass per column: two models, or one whose adapter cannot be mixed within a batch (DoRA)."""

    def __init__(
        self, models: list, contexts: list[Callable[[], AbstractContextManager]] | None = None
    ) -> None:
        self.model = models[0]
        self._models = models
        self._contexts = contexts or [nullcontext] * len(models)
        self.begin()

    def begin(self) -> None:
        self._caches = [DynamicCache(config=model.config) for model in self._models]

    @torch.inference_mode()
    def logits(self, ids: list[list[int]], beside: Beside = nothing_beside) -> torch.Tensor:
        """(C, V), as MixedBatch."""
        rows = []
        for model, context, cache, row in zip(self._models, self._contexts, self._caches, ids, strict=True):
            with context():
                input_ids = torch.tensor([row], device=model.device)
                out = model(
                    input_ids=input_ids,
                    **beside(input_ids),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            rows.append(out.logits[:, -1])
        return torch.cat(rows)


class TextPieces:
    """Text that grows by tokens and is given out only in whole characters."""

    def __init__(self, chat: ChatTokenizer) -> None:
        self._chat = chat
        self._held: list[int] = []

    def add(self, token: int) -> str:
        self._held.append(token)
        text = self._chat.decode(self._held)
        if text.endswith(INCOMPLETE):
            return ""
        self._held.clear()
        return text

    def rest(self) -> str:
        """What is left at the end: bytes that never became a character."""
        return self._chat.decode(self._held) if self._held else ""


def answers(
    models: MixedBatch | InTurn,
    chat: ChatTokenizer,
    prompt_ids: list[int],
    sampling: Sampling,
    end_ids: set[int],
    stopped: Callable[[], bool],
    beside: Beside = nothing_beside,
) -> Iterator[Piece | Done]:
    """Pieces of both columns as they come, and each column's Done. `beside`: of the prompt; an answer has no images."""
    models.begin()
    columns = [_Column(name, chat, sampling, end_ids) for name in COLUMNS]
    ids = [prompt_ids] * len(columns)
    while not all(column.why for column in columns):
        if stopped():
            for column in columns:
                column.why = column.why or "stopped"
                yield from column.told()
            return
        logits = models.logits(ids, beside)
        for column, row in zip(columns, logits, strict=True):
            column.take(row)
            yield from column.told()
        beside = nothing_beside
        ids = [[column.last] for column in columns]  # a column that is done goes on unheard


class _Column:
    """One answer in the making."""

    def __init__(self, name: str, chat: ChatTokenizer, sampling: Sampling, end_ids: set[int]) -> None:
        self.why = ""  # empty while it goes on
        self.last = 0
        self._name = name
        self._sampling = sampling
        self._end_ids = end_ids
        self._pieces = TextPieces(chat)
        self._new_text = ""
        self._tokens = 0
        self._began = time.perf_counter()
        self._told_done = False
        self._generator: torch.Generator | None = None

    def take(self, logits: torch.Tensor) -> None:
        """The next token from (V,) logits; nothing once the answer is done."""
        if self.why:
            return
        self.last = self._choose(logits)
        if self.last in self._end_ids:
            self.why = "end"
            return
        self._tokens += 1
        self._new_text += self._pieces.add(self.last)
        if self._tokens == self._sampling.max_new_tokens:
            self.why = "length"

    def told(self) -> Iterator[Piece | Done]:
        """What has become known since the last call."""
        if self._told_done:
            return
        if self.why:
            self._new_text += self._pieces.rest()
        if self._new_text:
            yield Piece(self._name, self._new_text)
            self._new_text = ""
        if self.why:
            self._told_done = True
            yield Done(self._name, self._tokens, time.perf_counter() - self._began, self.why)

    def _choose(self, logits: torch.Tensor) -> int:
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        if self._generator is None:
            self._generator = torch.Generator(logits.device).manual_seed(self._sampling.seed)
        scores = _warpers(self._sampling)(None, logits[None].float())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    """In the order in which Transformers applies them."""
    warpers = LogitsProcessorList()
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers
