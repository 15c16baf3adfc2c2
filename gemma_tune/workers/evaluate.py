"""Before and after: how often base and tuned give the validation rows' answers word by word, and their losses.

Both answer greedily. The validation loss is the one that the trainer logs: the mean over batches, weighted by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from trl.trainer.utils import pad

from gemma_tune.data.rendering import NOT_LEARNED, ChatTokenizer, places_in
from gemma_tune.data.rows import Message, Row

Stop = Callable[[], object]  # true where the user asked to stop
Encoded = dict[str, list]  # input_ids, labels; image_files where the run has images
Beside = Callable[
    [torch.Tensor, list[str]], dict
]  # (ids (B, T), files of their images) -> further inputs of the model


class ReportStopped(Exception):
    """The user stopped the report."""


@dataclass(frozen=True)
class HeldOut:
    """Rows of `input_ids` and `labels` with the answers that are wanted, and with others that are not."""

    wanted: Sequence[Encoded]
    others: Sequence[Encoded] = ()
    paired: bool = False  # each of the others is the rejected answer to the same prompt


@dataclass(frozen=True)
class Question:
    row: int  # its number in the source
    messages: list[Message]
    expected: str
    prompt_ids: list[int]
    image_files: list[str] = field(default_factory=list)  # of the run's store, in the order of their places


@dataclass(frozen=True)
class Measured:
    """What one of the two models achieves."""

    answers: list[str]  # one per question
    loss: float | None  # of the answers that are wanted; None without validation rows to learn from
    other_loss: float | None = None  # of rejected answers, or of those labelled as bad
    preferred: float | None = None  # share of pairs whose chosen answer is the likelier one per token

    def exact_match(self, questions: list[Question]) -> float:
        """Share of answers that equal the expected one, blanks around them aside."""
        right = [
            answer.strip() == question.expected.strip()
            for answer, question in zip(self.answers, questions, strict=True)
        ]
        return sum(right) / len(right)


def questions_of(
    rows: Iterable[Row],
    chat: ChatTokenizer,
    limit: int,
    context_tokens: int,
    max_new_tokens: int,
    *,
    calls: bool = False,
) -> list[Question]:
    """Up to `limit` rows as questions: all but their last turn, which is the answer.

    Left out are too long ones, plain texts, answers labelled as bad, and rows that the template refuses; answers that
    call a function too, unless `calls`: then every answer is expected with its control tokens.
    """
    questions: list[Question] = []
    for row in rows:
        if len(questions) == limit:
            break
        *before, last = row.messages or [{}]
        if not before or row.label is False or ("tool_calls" in last and not calls):
            continue
        encoded = chat.encode(row)
        images = row.images[: places_in(before)] if row.images else []
        if encoded.refusal or len(images) != len(row.images):  # an answer is written without images
            continue
        prompt_ids = chat.encode_prompt(before, row.tools, images)
        expected = last["content"]
        if calls:
            expected = chat.decode(encoded.ids[len(prompt_ids) :], skip_special_tokens=False)
        if len(prompt_ids) + max_new_tokens <= context_tokens:
            files = [image["file"] for image in images]
            questions.append(Question(row.number, before, expected, prompt_ids, files))
    return questions


def nothing_beside(input_ids: torch.Tensor, files: list[str]) -> dict:
    """Of a text model."""
    return {}


def measure(
    model,
    chat: ChatTokenizer,
    questions: list[Question],
    held_out: HeldOut,
    *,
    max_new_tokens: int,
    batch_rows: int,
    stop: Stop,
    calls: bool = False,
    beside: Beside = nothing_beside,
) -> Measured:
    """Answers and losses. The model must have TRL's fused head. Raises ReportStopped."""
    model.eval()
    with torch.no_grad():
        answers = answer_all(model, chat, questions, max_new_tokens, batch_rows, stop, calls, beside)
        if not held_out.others:
            return Measured(answers, validation_loss(model, held_out.wanted, batch_rows, stop, beside))
        wanted, others = (
            row_losses(model, rows, batch_rows, stop) for rows in (held_out.wanted, held_out.others)
        )
    preferred = None
    if held_out.paired:
        preferred = sum(one < other for one, other in zip(wanted, others, strict=True)) / len(wanted)
    return Measured(answers, _mean(wanted), _mean(others), preferred)


def answer_all(
    model,
    chat: ChatTokenizer,
    questions: list[Question],
    max_new_tokens: int,
    batch_rows: int,
    stop: Stop,
    calls: bool = False,
    beside: Beside = nothing_beside,
) -> list[str]:
    """Greedy answers in the questions' order; prompts of like length share a batch. `calls`: with control tokens."""
    answers = [""] * len(questions)
    by_length = sorted(range(len(questions)), key=lambda index: len(questions[index].prompt_ids))
    for batch in _batches(by_length, batch_rows):
        asked = [questions[index] for index in batch]
        files = [name for question in asked for name in question.image_files]
        prompts = [question.prompt_ids for question in asked]
        texts = answer_batch(model, chat, prompts, max_new_tokens, stop, calls, partial(beside, files=files))
        for index, text in zip(batch, texts, strict=True):
            answers[index] = text
    return answers


def answer_batch(
    model,
    chat: ChatTokenizer,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop: Stop,
    calls: bool = False,
    beside: Callable[[torch.Tensor], dict] = lambda _: {},
) -> list[str]:
    ids = [torch.tensor(prompt) for prompt in prompts]
    input_ids = pad(ids, padding_value=0, padding_side="left").to(model.device)
    attended = pad([torch.ones_like(one) for one in ids], padding_value=0, padding_side="left").to(
        model.device
    )
    out = model.generate(
        input_ids=input_ids,
        attention_mask=attended,
        **beside(input_ids),
        do_sample=False,
        top_k=None,
        top_p=None,
        max_new_tokens=max_new_tokens,
        eos_token_id=chat.end_ids,
        pad_token_id=0,
        use_cache=True,
        stopping_criteria=StoppingCriteriaList([_StopAll(stop)]),
    )
    if stop():
        raise ReportStopped
    return [chat.decode(row, not calls) for row in out[:, input_ids.shape[1] :].tolist()]


def validation_loss(
    model, rows: Sequence[Encoded], batch_rows: int, stop: Stop, beside: Beside = nothing_beside
) -> float | None:
    """Per token, each batch's mean weighted by its rows."""
    scored = _scored(model, rows, batch_rows, stop, beside)
    total = sum(out.loss.item() * len(batch) for batch, _, out in scored)
    return total / len(rows) if rows else None


def row_losses(model, rows: Sequence[Encoded], batch_rows: int, stop: Stop) -> list[float]:
    """Of each row the mean over its learned tokens."""
    losses: list[float] = []
    for _, labels, out in _scored(model, rows, batch_rows, stop):
        counts = (labels[:, 1:] != NOT_LEARNED).sum(-1)
        losses += (-out.log_probs.float().sum(-1) / counts).tolist()
    return losses


def _scored(
    model, rows: Sequence[Encoded], batch_rows: int, stop: Stop, beside: Beside = nothing_beside
) -> Iterator[tuple]:
    """(rows, labels (B, T), the model's output) of each batch."""
    for batch in _batches(rows, batch_rows):
        if stop():
            raise ReportStopped
        ids = [torch.tensor(row["input_ids"]) for row in batch]
        attended = [torch.ones_like(one) for one in ids]
        labels = pad([torch.tensor(row["labels"]) for row in batch], padding_value=NOT_LEARNED).to(
            model.device
        )
        input_ids = pad(ids, padding_value=0).to(model.device)
        yield batch, labels, model(
            input_ids=input_ids,
            attention_mask=pad(attended, padding_value=0).to(model.device),
            **beside(input_ids, [name for row in batch for name in row.get("image_files", ())]),
            labels=labels,
            fused_lm_head=True,
        )  # fmt: skip


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def shown_prompt(messages: list[Message]) -> str:
    """The question as a person reads it."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _batches(items: Sequence, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield [items[index] for index in range(start, min(start + size, len(items)))]


class _StopAll(StoppingCriteria):
    """Ends a generation at the next token once the user asks for it."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), bool(self._stop()), device=input_ids.device)
