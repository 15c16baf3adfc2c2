"""What passes between the parts of `data`: the table as read, its schema, and rows in the one normal form.

The normal form is a conversation: a list of {"role", "content"} with the roles system, user, assistant.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from gemma_tune.errors import Fault, shown

Message = dict[str, str]


class RowFault(Exception):
    """One row cannot be used. Caught where rows are converted, and kept there as a `Rejected`."""

    def __init__(self, field: str, value: object, rule: str, way_out: str) -> None:
        super().__init__(rule)
        self.field, self.value, self.rule, self.way_out = field, value, rule, way_out

    def rejected(self, number: int) -> Rejected:
        return Rejected(number, self.field, shown(self.value), self.rule, self.way_out)


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why. `number` is that of `Table.rows`."""

    number: int
    field: str  # a column, a turn ("messages[2].content"); empty where the whole row is meant
    value: str  # shortened
    rule: str
    way_out: str
    side: str = "train"  # or "validation", where that is a source of its own

    @property
    def place(self) -> str:
        """The field, and that the row is one of a validation source where it is."""
        return self.field if self.side == "train" else f"validation {self.field}".strip()

    def as_dict(self) -> dict[str, object]:
        return {
            "number": self.number,
            "field": self.place,
            "value": self.value,
            "rule": self.rule,
            "way_out": self.way_out,
        }

    def as_fault(self, source: str = "") -> Fault:
        where = f"{source} row {self.number}".strip() + (f", {self.field}" if self.field else "")
        return Fault(where, self.value, self.rule, self.way_out)


@dataclass(frozen=True)
class Table:
    """A source as read. A row's number counts from 1: the line in JSONL, the record below the header in CSV."""

    columns: list[str]
    rows: list[tuple[int, dict]]
    rejected: list[Rejected]
    fingerprint: str  # equal exactly where the data are: SHA-256 of the bytes, or of a Hub set's commit
    source: str
    notes: list[str] = field(default_factory=list)  # what was guessed while reading, such as an encoding


@dataclass(frozen=True)
class Schema:
    """How the columns of a table are read."""

    format: str  # one of config's data.format, never "auto"
    columns: dict[str, str]  # our field -> their column
    why: str
    confidence: float  # 0 to 1


@dataclass(frozen=True)
class Row:
    number: int
    messages: list[Message]
    rejected_messages: list[Message] | None = None  # preference pairs: the dispreferred answer alone

    def identity(self) -> str:
        """Equal exactly where two rows hold the same conversation."""
        return json.dumps([self.messages, self.rejected_messages], ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class Prepared:
    """A data set ready to tokenise. `rejected` names every row that is in neither side."""

    train: list[Row]
    validation: list[Row]
    rejected: list[Rejected]
    schema: Schema
    table: Table
    fingerprint: str
    faults: list[Fault] = field(default_factory=list)  # of the set as a whole; `prepare` raises them
    warnings: list[Fault] = field(default_factory=list)
