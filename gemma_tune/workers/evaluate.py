"""Before and after: how often base and tuned give the validation rows' answers word by word, and their losses.

Both answer greedily. The validation loss is the one that the trainer logs: the mean over batches, weighted by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from trl.trainer.utils import pad

from gemma_tune.data.rendering import NOT_LEARNED, ChatTokenizer
from gemma_tune.data.rows import Message, Row

Stop = Callable[[], object]  # true where the user asked to stop


class ReportStopped(Exception):
    """The user stopped the report."""


@dataclass(frozen=True)
class Question:
    row: int  # its number in the source
    messages: list[Message]
    expected: str
    prompt_ids: list[int]


@dataclass(frozen=True)
class Measured:
    """What one of the two models achieves."""

    answers: list[str]  # one per question
    loss: float | None  # None without validation rows to learn from

    def exact_match(self, questions: list[Question]) -> float:
        """Share of answers that equal the expected one, blanks around them aside."""
        right = [
            answer.strip() == question.expected.strip()
            for answer, question in zip(self.answers, questions, strict=True)
        ]
        return sum(right) / len(right)


def questions_of(
    rows: Iterable[Row], chat: ChatTokenizer, limit: int, context_tokens: int, max_new_tokens: int
) -> list[Question]:
    """Up to `limit` rows as questions: all but their last turn, which is the answer.

    Left out are too long ones, plain texts, answers that call a function, and rows that the template refuses.
    """
    questions: list[Question] = []
    for row in rows:
        if len(questions) == limit:
            break
        *before, last = row.messages or [{}]
        if not before or "tool_calls" in last or chat.encode(row).refusal:
            continue
        prompt_ids = chat.encode_prompt(before, row.tools)
        if len(prompt_ids) + max_new_tokens <= context_tokens:
            questions.append(Question(row.number, before, last["content"], prompt_ids))
    return questions


def measure(
    model,
    chat: ChatTokenizer,
    questions: list[Question],
    validation_rows: Sequence[dict[str, list[int]]],
    *,
    max_new_tokens: int,
    batch_rows: int,
    stop: Stop,
) -> Measured:
    """Answers and loss. The model must have TRL's fused head. Raises ReportStopped."""
    model.eval()
    with torch.no_grad():
        answers = answer_all(model, chat, questions, max_new_tokens, batch_rows, stop)
        return Measured(answers, validation_loss(model, validation_rows, batch_rows, stop))


def answer_all(
    model, chat: ChatTokenizer, questions: list[Question], max_new_tokens: int, batch_rows: int, stop: Stop
) -> list[str]:
    """Greedy answers in the questions' order; prompts of like length share a batch."""
    answers = [""] * len(questions)
    by_length = sorted(range(len(questions)), key=lambda index: len(questions[index].prompt_ids))
    for batch in _batches(by_length, batch_rows):
        texts = answer_batch(
            model, chat, [questions[index].prompt_ids for index in batch], max_new_tokens, stop
        )
        for index, text in zip(batch, texts, strict=True):
            answers[index] = text
    return answers


def answer_batch(
    model, chat: ChatTokenizer, prompts: list[list[int]], max_new_tokens: int, stop: Stop
) -> list[str]:
    ids = [torch.tensor(prompt) for prompt in prompts]
    input_ids = pad(ids, padding_value=0, padding_side="left").to(model.device)
    attended = pad([torch.ones_like(one) for one in ids], padding_value=0, padding_side="left").to(
        model.device
    )
    out = model.generate(
        input_ids=input_ids,
        attention_mask=attended,
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
    return [chat.decode(row) for row in out[:, input_ids.shape[1] :].tolist()]


def validation_loss(model, rows: Sequence[dict[str, list[int]]], batch_rows: int, stop: Stop) -> float | None:
    """Per token, each batch's mean weighted by its rows."""
    total = 0.0
    for batch in _batches(rows, batch_rows):
        if stop():
            raise ReportStopped
        ids = [torch.tensor(row["input_ids"]) for row in batch]
        labels = [torch.tensor(row["labels"]) for row in batch]
        attended = [torch.ones_like(one) for one in ids]
        out = model(
            input_ids=pad(ids, padding_value=0).to(model.device),
            attention_mask=pad(attended, padding_value=0).to(model.device),
            labels=pad(labels, padding_value=NOT_LEARNED).to(model.device),
            fused_lm_head=True,
        )
        total += out.loss.item() * len(batch)
    return total / len(rows) if rows else None


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
