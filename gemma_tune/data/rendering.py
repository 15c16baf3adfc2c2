"""The model's own chat template and tokenizer: what the model reads, and which tokens it learns from.

Needs `tokenizers` and `jinja2` only, so the page can show what the worker will train on. Shapes: one row has T tokens;
`ids` and `labels` have length T. A span is (start, end) of token indices that carry loss.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from gemma_tune.data import tokenizer_files
from gemma_tune.data.image_tokens import TEXT_ONLY, ImageTokens
from gemma_tune.data.pieces import Piece, pieces_of
from gemma_tune.data.rows import IMAGE, Image, Message, Row
from gemma_tune.data.templates import Template, TemplateError
from gemma_tune.data.turns import SYSTEM_ROLES
from gemma_tune.errors import Fault, ModelError

NOT_LEARNED = -100  # the label that torch's cross-entropy ignores
Span = tuple[int, int]
_CONVERSATION = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
_FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
_TOOLS = json.dumps([{"type": "function", "function": _FUNCTION}])
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
}


@dataclass(frozen=True)
class Encoding:
    """The very ids that training uses, uncut. Where the template refuses the row: no ids, and the reason."""

    ids: list[int]  # (T,)
    spans: list[Span]
    refusal: str = ""

    @property
    def labels(self) -> list[int]:
        """(T,): the id where it is learned, else -100."""
        labels = [NOT_LEARNED] * len(self.ids)
        for start, end in self.spans:
            labels[start:end] = self.ids[start:end]
        return labels


class ChatTokenizer:
    """Renders and tokenises rows. A model without a chat template reads plain text only.

    `image_tokens`: how the model writes an image; None where it reads none, for the reason `no_images`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        special_tokens: dict[str, str],
        images: ImageTokens | Fault = TEXT_ONLY,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self._special_tokens = special_tokens
        self.template = Template(template, special_tokens) if template else None
        self.no_images = images if isinstance(images, Fault) else None
        self.image_tokens = None if isinstance(images, Fault) else images
        marks = self.image_tokens.marks if self.image_tokens else ()
        ids = [tokenizer.token_to_id(mark) for mark in marks]
        if None in ids:  # a tokenizer made for text
            self.image_tokens, self.no_images, ids = None, TEXT_ONLY, []
        self.image_ids = frozenset(ids)  # of all tokens of images
        self.image_token_id: int | None = ids[1] if ids else None  # of one part of an image
        self.bos_id, self.eos_id = (self._id(name) for name in ("bos_token", "eos_token"))
        self.end_of_turn_id: int | None = None
        self.hand_over_id: int | None = (
            None  # ends a call of a function where its answer belongs to the same turn
        )
        self._header: list[
            int
        ] = []  # what the model reads before it answers; empty where it cannot be told apart
        self._system_stands_alone = True  # else the template puts its text into the first user turn
        if self.template:
            self._learn_marks()

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTokenizer:
        """From `tokenizer.json`, `tokenizer_config.json` and the chat template in it or beside it."""
        paths = [Path(folder) / name for name in (*tokenizer_files.NAMES, *tokenizer_files.ABOUT_IMAGES)]
        return _load(Path(folder), tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in paths))

    def _id(self, name: str) -> int | None:
        return self.tokenizer.token_to_id(self._special_tokens.get(name, ""))

    def _learn_marks(self) -> None:
        """From the template itself: which token ends a turn, and which begin an answer."""
        text, ((start, end),) = self._learned_characters(Row(1, _CONVERSATION))
        marks = self.tokenizer.get_added_tokens_decoder()
        after = self.tokenizer.encode(text[start + 1 : end], add_special_tokens=False).ids
        self.end_of_turn_id = next((token for token in after if token in marks), None)
        self.hand_over_id = self._learn_hand_over(marks)
        before = self.render(_CONVERSATION[:1])
        asked = self.render(_CONVERSATION[:1], add_generation_prompt=True)
        header = self.tokenizer.encode(asked[len(before) :], add_special_tokens=False).ids
        if asked.startswith(before) and header and header[0] in marks:
            self._header = header
            text = self.render([{"role": "system", "content": "s"}, *_CONVERSATION])
            begun = self.tokenizer.encode(text, add_special_tokens=False).ids.count(header[0])
            self._system_stands_alone = begun > len(_CONVERSATION)
            longer = [
                *_CONVERSATION,
                {"role": "user", "content": " z\n"},
                {"role": "assistant", "content": "\n\nw w"},
            ]
            rows = [
                Row(1, _CONVERSATION),
                Row(1, longer),
                Row(1, [{"role": "system", "content": "s"}, *longer]),
            ]
            if any(
                self._quick(row, found.ids) != found.spans for row in rows for found in [self._exact(row)]
            ):
                self._header = []

    def _learn_hand_over(self, marks: Container[int]) -> int | None:
        """The control token behind a call that nobody has answered yet: FunctionGemma and Gemma 4 stop there."""
        if not self.template.takes_tools:
            return None
        try:
            text = self.render([_CONVERSATION[0], _CALL], _TOOLS)
        except ModelError:
            return None
        last = self.tokenizer.encode(text, add_special_tokens=False).ids[-1]
        return last if last in marks else None

    @property
    def reads_images(self) -> bool:
        return self.image_tokens is not None and self.template is not None

    @property
    def folds_system(self) -> bool:
        return self.template is not None and not self.template.keeps

    # ---- text ------------------------------------------------------------------------------------------------------
    def render(
        self,
        messages: list[Message],
        tools: str = "",
        add_generation_prompt: bool = False,
        images: Sequence[Image] = (),
    ) -> str:
        """The text with control tokens, those of images too. ModelError where the template refuses the turns."""
        if images:
            self._check_images(messages, images)
        try:
            text = self._chat_template().render(messages, tools, add_generation_prompt, bool(images))
            return self.image_tokens.expanded(text, images) if images else text
        except TemplateError as error:
            raise ModelError.at(
                "chat template", str(error), "The model's template refuses this conversation.",
                "Use a model with Gemma's own template.",
            ) from None  # fmt: skip

    def _check_images(self, messages: list[Message], images: Sequence[Image]) -> None:
        if self.no_images:
            raise ModelError(self.no_images)
        places = places_in(messages)
        if places != len(images):
            raise ModelError.at(
                "images", f"{len(images)} images, {places} places", "Each image needs a place in the conversation.",
                "Name a place for each.",
            )  # fmt: skip

    def _chat_template(self) -> Template:
        if self.template is None:
            raise ModelError.at(
                "chat template", None, "The model has no chat template, so it does not know turns.",
                "Choose an instruction-tuned model: its name ends in -it. Plain text can be learned without.",
            )  # fmt: skip
        return self.template

    def text_of(self, row: Row) -> str:
        """What the model reads of a row. A plain text stands between the tokens that begin and end one."""
        if not row.text:
            return self.render(row.messages, row.tools, images=row.images)
        begin, end = (self._special_tokens.get(name, "") for name in ("bos_token", "eos_token"))
        return (
            f"{'' if row.text.startswith(begin) else begin}{row.text}{'' if row.text.endswith(end) else end}"
        )

    # ---- tokens ----------------------------------------------------------------------------------------------------
    def encode(self, row: Row, assistant_only_loss: bool = True) -> Encoding:
        """The very ids and labels that training uses; nothing is cut here."""
        return self.encode_all([row], assistant_only_loss)[0]

    def encode_all(
        self, rows: Iterable[Row], assistant_only_loss: bool = True, among_images: bool = False
    ) -> list[Encoding]:
        """`encode` of many, in order. A row that the template refuses has the reason in place of ids.

        `among_images`: they are trained together with rows that have images, so none may spell a token of an image.
        """
        rows = list(rows)
        texts, refusals = self._texts(rows, among_images)
        found = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            Encoding([], [], refusal) if refusal else self._encoding(row, one.ids, assistant_only_loss)
            for row, one, refusal in zip(rows, found, refusals, strict=True)
        ]

    def _texts(self, rows: list[Row], among_images: bool) -> tuple[list[str], list[str]]:
        """(text, refusal) of each; one of both is empty."""
        texts, refusals = [], []
        for row in rows:
            text, refusal = "", self._unfit(row)
            try:
                text = "" if refusal else self.text_of(row)
                if among_images and not row.images and self.image_tokens:
                    text = self.image_tokens.expanded(text, ())
            except ModelError as error:
                refusal = f"{error.faults[0].rule} {error.faults[0].value}".strip()
            texts.append(text)
            refusals.append(refusal)
        return texts, refusals

    def _unfit(self, row: Row) -> str:
        """Some templates pass over what they have no place for, and the answer would be learned without it."""
        if row.tools and self.template is not None and not self.template.takes_tools:
            return "This model's chat template has no place for tools: use FunctionGemma or Gemma 4."
        calls = any("tool_calls" in message for message in row.messages)
        if calls and self.template is not None and not self.template.takes_tools:
            return "This model's chat template has no place for calls of functions: use FunctionGemma or Gemma 4."
        return ""

    def _encoding(self, row: Row, ids: list[int], assistant_only_loss: bool) -> Encoding:
        if row.text or not assistant_only_loss:
            return Encoding(ids, self._without_images(ids) if row.images else [(0, len(ids))])
        spans = self._quick(row, ids)
        if spans is not None:
            return Encoding(ids, spans)
        try:
            return self._exact(row)
        except ModelError as error:
            return Encoding([], [], error.faults[0].rule)

    def _without_images(self, ids: list[int]) -> list[Span]:
        """All but the tokens of images, which nobody writes."""
        ends = [-1, *(index for index, token in enumerate(ids) if token in self.image_ids), len(ids)]
        return [
            (before + 1, after) for before, after in zip(ends, ends[1:], strict=False) if after > before + 1
        ]

    def _quick(self, row: Row, ids: list[int]) -> list[Span] | None:
        """The spans by the tokens that begin a turn; None where they cannot be trusted.

        So it is where the text itself holds such a token, tools are in play, or an answer's first letter was merged
        with the end of the header. Four times faster than by characters; the same by a test.
        """
        if not self._header or row.tools:
            return None
        turns = self.template.adapted(row.messages)
        if not self._system_stands_alone and turns[0]["role"] in SYSTEM_ROLES:
            turns = turns[1:]
        begins = _places(ids, self._header[0])
        if len(begins) != len(turns):
            return None
        size, spans = len(self._header), []
        skipped = len(row.messages) - len(turns)  # a folded system turn
        for index, turn in enumerate(turns):
            if turn["role"] == "tool" or "tool_calls" in turn:
                return None
            if turn["role"] != "assistant":
                continue
            start = begins[index] + size
            if ids[begins[index] : start] != self._header:
                return None
            if index + skipped >= row.prompt_turns:
                spans.append((start, begins[index + 1] if index + 1 < len(begins) else len(ids)))
        return spans

    def _exact(self, row: Row) -> Encoding:
        """By characters. A token is learned where it holds a learned character."""
        text, characters = self._learned_characters(row)
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return Encoding(found.ids, [_token_range(found, start, end) for start, end in characters])

    def _learned_characters(self, row: Row) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the characters of each learned assistant turn with the end of the turn, without its header.

        Found from the template alone: a turn is what the template adds after its own generation prompt. TRL's
        training templates mark the same span for Gemma 2 and 3 (a test compares them).
        """
        messages, text, learned = row.messages, self.text_of(row), []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or index < row.prompt_turns:
                continue
            images = row.images[: places_in(messages[: index + 1])] if row.images else []
            before = self.render(messages[:index], row.tools, add_generation_prompt=True, images=images)
            last = index + 1 == len(messages)
            until = text if last else self.render(messages[: index + 1], row.tools, images=images)
            if not (text.startswith(before) and text.startswith(until)):
                raise ModelError.at(
                    "chat template", until[-60:],
                    "The template renders the beginning of a conversation differently once more turns follow.",
                    "Use a model with Gemma's own template, or rows with a single answer.",
                )  # fmt: skip
            learned.append((len(before), len(until)))
        return text, learned

    def encode_prompt(
        self, messages: list[Message], tools: str = "", images: Sequence[Image] = ()
    ) -> list[int]:
        """Ids up to where the model begins its answer. `images` as a row has them."""
        text = self.render(messages, tools, add_generation_prompt=True, images=images)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def pieces(self, row: Row, max_length: int, assistant_only_loss: bool = True) -> list[Piece]:
        """The text of a row in runs of one kind, each with its tokens. ModelError where the template refuses it."""
        return pieces_of(self, row, max_length, assistant_only_loss)

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer: end of text, end of turn, and the hand-over to a function."""
        ends = (self.eos_id, self.end_of_turn_id, self.hand_over_id)
        return sorted({token for token in ends if token is not None})


def places_in(messages: list[Message]) -> int:
    """The places of images in a conversation that has some."""
    return sum(turn["content"].count(IMAGE) for turn in messages)


def _places(ids: list[int], token: int) -> list[int]:
    found, place = [], -1
    try:
        while True:
            place = ids.index(token, place + 1)
            found.append(place)
    except ValueError:
        return found


def _token_range(found, start: int, end: int) -> Span:
    """The tokens of the characters start to end, as Transformers finds them for `return_assistant_tokens_mask`."""
    first, last = found.char_to_token(start), found.char_to_token(end - 1)
    if first is None:
        return 0, 0
    return first, len(found) if last is None else last + 1


@lru_cache(
    maxsize=2
)  # Gemma's tokenizer takes more than a second to read; the page asks for it at every change
def _load(folder: Path, changed_ns: tuple[int, ...]) -> ChatTokenizer:
    return ChatTokenizer(*tokenizer_files.read(folder))
