"""The model's own chat template and tokenizer: what the model reads, and which tokens it learns from.

Needs `tokenizers` and `jinja2` only, so the page can show what the worker will train on. Shapes: one row has T tokens;
`ids` and `labels` have length T. A span is (start, end) of token indices that carry loss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from gemma_tune.data.rows import Message, Row
from gemma_tune.data.templates import Template, TemplateError
from gemma_tune.data.turns import SYSTEM_ROLES
from gemma_tune.errors import ModelError

NOT_LEARNED = -100  # the label that torch's cross-entropy ignores
Span = tuple[int, int]
_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
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


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one kind, as it is shown."""

    text: str
    kind: str  # "prompt", "learned" (carries loss) or "cut" (beyond the maximum length)
    tokens: list[tuple[int, str]] = field(default_factory=list)  # id and its characters


class ChatTokenizer:
    """Renders and tokenises rows. A model without a chat template reads plain text only."""

    def __init__(self, tokenizer: Tokenizer, template: str, special_tokens: dict[str, str]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self._special_tokens = special_tokens
        self.template = Template(template, special_tokens) if template else None
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
        paths = [Path(folder) / name for name in _FILES]
        return _load(Path(folder), tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in paths))

    @classmethod
    def _read(cls, folder: Path) -> ChatTokenizer:
        config = _json(folder / "tokenizer_config.json")
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError.at(
                str(path), None, "The model has no tokenizer.json.",
                "Save its tokenizer once with Transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…).",
            )  # fmt: skip
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001  the library raises nothing narrower
            raise ModelError.at(
                str(path), str(error), "The tokenizer cannot be read.", "Download it again."
            ) from None
        special = {
            name: token.get("content", "") if isinstance(token, dict) else token
            for name, token in config.items()
            if name.endswith("_token") and isinstance(token, str | dict)
        }
        return cls(tokenizer, _template(folder, config), special)

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
    def folds_system(self) -> bool:
        return self.template is not None and not self.template.keeps

    # ---- text ------------------------------------------------------------------------------------------------------
    def render(self, messages: list[Message], tools: str = "", add_generation_prompt: bool = False) -> str:
        """The text with control tokens. ModelError where the template refuses the turns."""
        try:
            return self._chat_template().render(messages, tools, add_generation_prompt)
        except TemplateError as error:
            raise ModelError.at(
                "chat template", str(error), "The model's template refuses this conversation.",
                "Use a model with Gemma's own template.",
            ) from None  # fmt: skip

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
            return self.render(row.messages, row.tools)
        begin, end = (self._special_tokens.get(name, "") for name in ("bos_token", "eos_token"))
        return (
            f"{'' if row.text.startswith(begin) else begin}{row.text}{'' if row.text.endswith(end) else end}"
        )

    # ---- tokens ----------------------------------------------------------------------------------------------------
    def encode(self, row: Row, assistant_only_loss: bool = True) -> Encoding:
        """The very ids and labels that training uses; nothing is cut here."""
        return self.encode_all([row], assistant_only_loss)[0]

    def encode_all(self, rows: Iterable[Row], assistant_only_loss: bool = True) -> list[Encoding]:
        """`encode` of many, in order. A row that the template refuses has the reason in place of ids."""
        rows = list(rows)
        texts, refusals = self._texts(rows)
        found = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            Encoding([], [], refusal) if refusal else self._encoding(row, one.ids, assistant_only_loss)
            for row, one, refusal in zip(rows, found, refusals, strict=True)
        ]

    def _texts(self, rows: list[Row]) -> tuple[list[str], list[str]]:
        """(text, refusal) of each; one of both is empty."""
        texts, refusals = [], []
        for row in rows:
            text, refusal = "", self._unfit(row)
            try:
                text = "" if refusal else self.text_of(row)
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
            return Encoding(ids, [(0, len(ids))])
        spans = self._quick(row, ids)
        if spans is not None:
            return Encoding(ids, spans)
        try:
            return self._exact(row)
        except ModelError as error:
            return Encoding([], [], error.faults[0].rule)

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
        messages, text, learned = row.messages, self.render(row.messages, row.tools), []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or index < row.prompt_turns:
                continue
            before = self.render(messages[:index], row.tools, add_generation_prompt=True)
            last = index + 1 == len(messages)
            until = text if last else self.render(messages[: index + 1], row.tools)
            if not (text.startswith(before) and text.startswith(until)):
                raise ModelError.at(
                    "chat template", until[-60:],
                    "The template renders the beginning of a conversation differently once more turns follow.",
                    "Use a model with Gemma's own template, or rows with a single answer.",
                )  # fmt: skip
            learned.append((len(before), len(until)))
        return text, learned

    def encode_prompt(self, messages: list[Message], tools: str = "") -> list[int]:
        """Ids up to where the model begins its answer."""
        text = self.render(messages, tools, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def pieces(self, row: Row, max_length: int, assistant_only_loss: bool = True) -> list[Piece]:
        """The text of a row in runs of one kind, each with its tokens. ModelError where the template refuses it."""
        encoding = self.encode(row, assistant_only_loss)
        if encoding.refusal:
            raise ModelError.at(
                "chat template", None, encoding.refusal, "Take the row out, or use another model."
            )
        whole, labels = self.text_of(row), encoding.labels
        found = self.tokenizer.encode(whole, add_special_tokens=False)
        pieces: list[Piece] = []
        shown_until = 0
        for index, (label, (_, end)) in enumerate(zip(labels, found.offsets, strict=True)):
            kind = "cut" if index >= max_length else "prompt" if label == NOT_LEARNED else "learned"
            text = whole[shown_until:end]  # empty for the second byte token of one character
            shown_until = max(shown_until, end)
            if not pieces or pieces[-1].kind != kind:
                pieces.append(Piece("", kind))
            before = pieces[-1]
            pieces[-1] = replace(before, text=before.text + text)
            before.tokens.append((found.ids[index], text))  # the list is shared with its successor
        return [piece for piece in pieces if piece.text]

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer: end of text, end of turn, and the hand-over to a function."""
        ends = (self.eos_id, self.end_of_turn_id, self.hand_over_id)
        return sorted({token for token in ends if token is not None})


def tokenizer_digest(folder: Path) -> str:
    """Equal exactly where two folders tokenise and render alike."""
    digest = hashlib.sha256()
    for name in _FILES:
        path = folder / name
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return digest.hexdigest()


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


def _template(folder: Path, config: dict) -> str:
    """Empty where the model has none."""
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    template = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template or ""


@lru_cache(
    maxsize=2
)  # Gemma's tokenizer takes more than a second to read; the page asks for it at every change
def _load(folder: Path, changed_ns: tuple[int, ...]) -> ChatTokenizer:
    return ChatTokenizer._read(folder)


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError.at(
            str(path), str(error), "The file is not valid JSON.", "Download the model again."
        ) from None
    return found if isinstance(found, dict) else {}
