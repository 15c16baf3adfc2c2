"""What passes between the parts of `data`: a source that is open, its first rows as a table, and rows in the normal form.

The normal form is TRL's: a conversation of {"role", "content"} with `tools` where it has them, a pair of answers, an
answer with a label, or plain text. Roles are system, developer, user, assistant and tool. In a row with images the
character IMAGE stands in a content for each of them, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import orjson

from gemma_tune.errors import Fault, shown

if TYPE_CHECKING:
    from gemma_tune.data.files import DataFile

Message = dict[str, Any]  # role, content; an assistant's may hold tool_calls, a tool's a name
Image = dict[str, Any]  # file (its name in the store's folder of images), width, height
IMAGE = "\ufffc"  # Unicode's object replacement character; in a row without images it is text like any other
MECHANICAL = ("strip", "drop_empty_turns", "merge_turns")  # the values of the setting data.fixes


class RowFault(Exception):
    """One row cannot be used. Caught where rows are converted, and kept there as a `Rejected`."""

    def __init__(self, field: str, value: object, rule: str, way_out: str) -> None:
        super().__init__(rule)
        self.field, self.value, self.rule, self.way_out = field, value, rule, way_out

    def rejected(self, number: int, file: str = "") -> Rejected:
        return Rejected(number, self.field, shown(self.value), self.rule, self.way_out, file)


def no_object(value: object) -> RowFault:
    """For what stands where a row is expected."""
    met = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return RowFault("", met, "A row must be an object.", 'Write it as {"instruction": "…", "output": "…"}.')


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why. `number` is that of the row in its file."""

    number: int
    field: str  # a column, a turn ("messages[2].content"); empty where the whole row is meant
    value: str  # shortened
    rule: str
    way_out: str
    file: str = ""  # its file or source, where there are several
    side: str = "train"  # or "validation", where that is a source of its own
    fixes: tuple[str, ...] = ()  # the mechanical fixes that would make it usable
    before: str = ""  # the row as it stands and as they would leave it, where there are any
    after: str = ""

    @property
    def place(self) -> str:
        """The field, and that the row is one of a validation source where it is."""
        return self.field if self.side == "train" else f"validation {self.field}".strip()

    def as_dict(self) -> dict[str, object]:
        known = {
            "number": self.number,
            "field": self.place,
            "value": self.value,
            "rule": self.rule,
            "way_out": self.way_out,
        }
        return {"file": self.file, **known} if self.file else known

    def as_fault(self, source: str = "") -> Fault:
        where = f"{self.file or source} row {self.number}".strip() + (f", {self.field}" if self.field else "")
        return Fault(where, self.value, self.rule, self.way_out)


@dataclass(frozen=True)
class Records:
    """Some consecutive rows of a source as read: JSON lines that are still to be parsed, or values."""

    first: (
        int  # the number of the first line or value; `numbers` tells those of values that are not consecutive
    )
    lines: bytes = b""  # in UTF-8
    values: list[object] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)  # what could not even be read as a row
    file: str = ""
    read_bytes: int = 0  # since the records before, for the progress
    origin: DataFile | None = None  # beside which images may lie that the rows name


@dataclass(frozen=True)
class Opened:
    """A source that can be read: nothing of it is held, `records` reads it anew each time it is called."""

    name: str  # as it is shown
    records: Callable[[], Iterator[Records]]
    fingerprint: Callable[[], str]  # equal exactly where the data are; may read the whole source once
    total_bytes: int | None = None  # what `Records.read_bytes` add up to
    notes: list[str] = field(default_factory=list)  # what was guessed, such as an encoding
    columns: list[str] = field(default_factory=list)  # where they are known before any row, in order

    def named(self, name: str) -> Opened:
        return replace(self, name=name)


def values_in_chunks(values: Iterable[object], first: int = 1, size: int = 1000) -> Iterator[Records]:
    """Consecutive values of a source that parses its rows itself."""
    batch: list[object] = []
    for value in values:
        batch.append(value)
        if len(batch) == size:
            yield Records(first, values=batch)
            first, batch = first + size, []
    if batch:
        yield Records(first, values=batch)


@dataclass(frozen=True)
class Table:
    """The first rows of a source. A row's number counts from 1: the line in JSONL, the record below the header in CSV."""

    columns: list[str]
    rows: list[tuple[int, dict]]
    rejected: list[Rejected]
    source: str
    notes: list[str] = field(default_factory=list)
    origin: DataFile | None = None  # of the first rows


@dataclass(frozen=True)
class Schema:
    """How the columns of a source are read."""

    format: str  # one of config's data.format, never "auto"
    columns: dict[str, str]  # our field -> their column
    why: str
    confidence: float  # 0 to 1


@dataclass(frozen=True)
class Row:
    """One row in the normal form. Exactly one of `messages` and `text` is filled."""

    number: int
    messages: list[Message] = field(default_factory=list)  # of pairs and labelled answers, with the answer
    rejected_messages: list[Message] | None = None  # preference pairs: the dispreferred answer alone
    prompt_turns: int = 0  # how many of `messages` are the prompt, where only what follows is learned
    label: bool | None = None  # KTO: whether the answer, the last turn, is a good one
    tools: str = ""  # the functions that may be called, as a JSON list
    text: str = ""
    file: str = ""  # its file or source, where there are several
    held_back: bool = False  # a split column or a source of its own puts it among the validation rows
    images: list[Image] = field(default_factory=list)  # in the order of their places

    @property
    def kind(self) -> str:
        """TRL's dataset type: "text", "label", "pair" or "messages"."""
        if self.text:
            return "text"
        if self.label is not None:
            return "label"
        return "messages" if self.rejected_messages is None else "pair"

    def as_trl(self) -> dict[str, Any]:
        """The row as TRL takes it. `tools` stay a JSON string and arguments too, so that Arrow does not unify them.

        Of a row with images every content is a list of parts, and `images` are the names of their files.
        """
        if self.text:
            return {"text": self.text}
        more: dict[str, Any] = {"tools": self.tools} if self.tools else {}
        messages = self.messages
        if self.images:
            messages = [turn | {"content": parts_of(turn["content"])} for turn in messages]
            more["images"] = [one["file"] for one in self.images]
        prompt, answer = messages[: self.prompt_turns], messages[self.prompt_turns :]
        if self.rejected_messages is not None:
            return {"prompt": prompt, "chosen": answer, "rejected": self.rejected_messages, **more}
        if prompt:
            label = {} if self.label is None else {"label": self.label}
            return {"prompt": prompt, "completion": answer, **label, **more}
        return {"messages": messages, **more}

    def to_json(self) -> bytes:
        """One line, only what differs from the defaults."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return orjson.dumps({name: value for name, value in values.items() if value != _UNSET.get(name)})

    @classmethod
    def from_json(cls, line: bytes) -> Row:
        return cls(**orjson.loads(line))

    def prompt_text(self) -> str:
        """All that comes before the answer, without the places of images."""
        before = self._sides()[0]
        return self._plain(
            "\n".join([self.tools, *(f"{turn['role']}: {turn['content']}" for turn in before)])
        )

    def answer_text(self) -> str:
        """What is to be learned last: the answer of a conversation, both of a pair, the whole of a text."""
        turns = [*self._sides()[1], *(self.rejected_messages or [])]
        return self.text or "\n".join(f"{turn['content']}{turn.get('tool_calls', '')}" for turn in turns)

    def whole_text(self) -> str:
        """Prompt and answer without the roles and the places of images."""
        return self.text or self._plain(
            "\n".join(turn["content"] for turn in (*self.messages, *(self.rejected_messages or [])))
        )

    def _plain(self, text: str) -> str:
        return text.replace(IMAGE, "") if self.images else text

    def _sides(self) -> tuple[list[Message], list[Message]]:
        """(prompt, answer): of a conversation the answer is all after its last user turn."""
        if self.prompt_turns:
            return self.messages[: self.prompt_turns], self.messages[self.prompt_turns :]
        last = max((index for index, turn in enumerate(self.messages) if turn["role"] == "user"), default=-1)
        return self.messages[: last + 1], self.messages[last + 1 :]


_FIELDS = [one.name for one in fields(Row)]
_UNSET = {one.name: [] if one.name in ("messages", "images") else one.default for one in fields(Row)}


def parts_of(content: str) -> list[dict[str, str]]:
    """A content with places of images as chat templates and TRL take it: parts of images and of text between them."""
    parts: list[dict[str, str]] = []
    for index, text in enumerate(content.split(IMAGE)):
        parts += [{"type": "image"}] * (index > 0)
        parts += [{"type": "text", "text": text}] * bool(text)
    return parts
