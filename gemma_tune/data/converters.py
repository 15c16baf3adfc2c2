"""One converter per schema: the fields of a row → the parts of a `Row`, or a `RowFault`.

`fields` holds the cells under our names; `columns` tells their names in the source, for the reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gemma_tune.data.placing import no_preferences
from gemma_tune.data.rows import Message, RowFault
from gemma_tune.data.turns import (
    SYSTEM_ROLES,
    check_order,
    filled,
    looks_like_turns,
    mended,
    text_of,
    tools_of,
    turn,
    turns,
)

_YES = {"true", "1", "1.0", "yes", "good", "chosen", "up", "thumbs_up", "desirable", "👍"}
_NO = {"false", "0", "0.0", "no", "bad", "rejected", "down", "thumbs_down", "undesirable", "👎"}


@dataclass(frozen=True)
class Fields:
    """The cells of one row under our names, and what may be mended in them."""

    cells: dict[str, object]
    columns: dict[str, str]  # our field -> their column
    fixes: frozenset[str] = frozenset()

    def __getitem__(self, ours: str) -> object:
        return self.cells.get(ours)

    def named(self, ours: str) -> str:
        return self.columns.get(ours, ours)

    @property
    def empty(self) -> bool:
        """Whether empty turns will be dropped."""
        return "drop_empty_turns" in self.fixes

    def text(self, ours: str, what: str) -> str:
        return filled(self[ours], self.named(ours), what)

    def ordered(self, messages: list[Message], where: str) -> list[Message]:
        return check_order(mended(messages, self.fixes), where)

    def tools(self) -> dict[str, str]:
        return {"tools": tools_of(self["tools"], self.named("tools"))}


def _with_system(row: Fields, messages: list[Message]) -> list[Message]:
    """A system column before the turns; an empty cell there means that the row has none."""
    if not (text := text_of(row["system"] or "", row.named("system"))).strip():
        return messages
    if messages and messages[0]["role"] in SYSTEM_ROLES:
        raise RowFault(
            row.named("system"), text, "The row has a system text and a system turn.", "Keep one of them."
        )
    return [{"role": "system", "content": text}, *messages]


def _messages(row: Fields) -> dict:
    ours = "messages" if "messages" in row.cells else "conversations"
    messages = turns(row[ours], row.named(ours), row.empty)
    return {"messages": row.ordered(_with_system(row, messages), row.named(ours)), **row.tools()}


def _alpaca(row: Fields) -> dict:
    instruction = row.text("instruction", "The instruction")
    extra = row["input"]
    extra = "" if extra is None else text_of(extra, row.named("input"), "The input")
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    messages = _history(row)
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": row.text("output", "The answer")})
    return {"messages": row.ordered(_with_system(row, messages), "turns")}


def _history(row: Fields) -> list[Message]:
    """Alpaca's earlier turns: a list of [question, answer]."""
    value, field = row["history"], row.named("history")
    messages: list[Message] = []
    if not value:
        return messages
    if not isinstance(value, list):
        raise RowFault(
            field, value, "The history must be a list of [question, answer].", "Write it so, or leave it out."
        )
    read = text_of if row.empty else filled
    for index, pair in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowFault(where, pair, "An entry must be [question, answer].", "Write both, in that order.")
        messages.append({"role": "user", "content": read(pair[0], f"{where}[0]", "The question")})
        messages.append({"role": "assistant", "content": read(pair[1], f"{where}[1]", "The answer")})
    return messages


def _side(row: Fields, ours: str, role: str, what: str) -> list[Message]:
    """A prompt or an answer: text, one turn, or a list of turns."""
    value, field = row[ours], row.named(ours)
    if isinstance(value, dict):
        return [turn(value, field, row.empty)]
    if isinstance(value, list | tuple) or looks_like_turns(value):
        return turns(value, field, row.empty)
    return [{"role": role, "content": filled(value, field, what)}]


def _prompt_completion(row: Fields) -> dict:
    prompt = mended(_with_system(row, _side(row, "prompt", "user", "The prompt")), row.fixes)
    answer = mended(_side(row, "completion", "assistant", "The answer"), row.fixes)
    if not answer:
        filled("", row.named("completion"), "The answer")
    return {
        "messages": check_order([*prompt, *answer], "turns"),
        "prompt_turns": len(prompt),
        **row.tools(),
    }


def _kto(row: Fields) -> dict:
    found = _prompt_completion(row) if row["prompt"] is not None else _messages_of_completion(row)
    return found | {"label": _label(row["label"], row.named("label"))}


def _messages_of_completion(row: Fields) -> dict:
    """A labelled answer without a prompt column: its turns hold the prompt."""
    if isinstance(row["completion"], str) and not looks_like_turns(row["completion"]):
        raise RowFault(
            row.named("prompt"), "nothing", "The labelled answer has no prompt.", "Add a prompt column."
        )
    messages = turns(row["completion"], row.named("completion"), row.empty)
    messages = row.ordered(_with_system(row, messages), row.named("completion"))
    return {"messages": messages, "prompt_turns": len(messages) - 1, **row.tools()}


def _label(value: object, field: str) -> bool:
    spelled = str(value).strip().lower()
    if spelled in _YES | _NO:
        return spelled in _YES
    raise RowFault(
        field, "nothing" if value is None else value, "The label must say whether the answer is good.",
        "Write true or false.",
    )  # fmt: skip


def looks_like_label(value: object) -> bool:
    return value is not None and str(value).strip().lower() in _YES | _NO


def _preference(row: Fields) -> dict:
    sides = {name: _side(row, name, "assistant", f"The {name} answer") for name in ("chosen", "rejected")}
    for name, side in sides.items():
        if any("images" in turn for turn in side):
            raise no_preferences(row.named(name))
    shared = _common_prefix(*sides.values())
    prompt = shared
    if row["prompt"] is not None:
        prompt = _side(row, "prompt", "user", "The prompt")
        if prompt in (shared[: len(prompt)], shared[-len(prompt) :]):
            prompt = shared  # both sides repeat it, with a system turn before or further turns behind it
        else:
            shared = []
    sides = {name: mended(side[len(shared) :], row.fixes) for name, side in sides.items()}
    if sides["chosen"] == sides["rejected"]:
        raise RowFault(
            row.named("rejected"), row["rejected"], "Both answers are the same.", "Take the row out."
        )
    prompt = mended(_with_system(row, prompt), row.fixes)
    for name, side in sides.items():
        if not side or not prompt:
            raise RowFault(
                row.named(name), row[name], f"The pair needs a prompt, and an answer of its own in {name}.",
                "Add a prompt column, or write chosen and rejected as turns that begin alike and end differently.",
            )  # fmt: skip
        check_order([*prompt, *side], f"prompt + {row.named(name)}")
    return {
        "messages": [*prompt, *sides["chosen"]],
        "rejected_messages": sides["rejected"],
        "prompt_turns": len(prompt),
        **row.tools(),
    }


def _common_prefix(one: list[Message], other: list[Message]) -> list[Message]:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def _text(row: Fields) -> dict:
    text = row.text("text", "The text")
    return {"text": text.strip() if "strip" in row.fixes else text}


CONVERTERS: dict[str, Callable[[Fields], dict]] = {
    "messages": _messages,
    "sharegpt": _messages,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "kto": _kto,
    "text": _text,
}
