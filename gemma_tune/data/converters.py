"""One converter per schema: the fields of a row → (messages, dispreferred answer), or a `RowFault`.

`fields` holds the cells under our names; `columns` tells their names in the source, for the reasons.
"""

from __future__ import annotations

from gemma_tune.data.rows import Message, RowFault
from gemma_tune.data.turns import check_order, filled, looks_like_turns, text_of, turn, turns

Converted = tuple[list[Message], list[Message] | None]


def _with_system(fields: dict, columns: dict[str, str], messages: list[Message]) -> list[Message]:
    """A system column before the turns; an empty cell there means that the row has none."""
    if not (text := text_of(fields.get("system") or "", columns.get("system", "system"))).strip():
        return messages
    if messages and messages[0]["role"] == "system":
        raise RowFault(
            columns["system"], text, "The row has a system text and a system turn.", "Keep one of them."
        )
    return [{"role": "system", "content": text}, *messages]


def _from_messages(fields: dict, columns: dict[str, str]) -> Converted:
    ours = "messages" if "messages" in fields else "conversations"
    messages = turns(fields[ours], columns[ours])
    return check_order(_with_system(fields, columns, messages), columns[ours]), None


def _from_alpaca(fields: dict, columns: dict[str, str]) -> Converted:
    instruction = filled(fields["instruction"], columns["instruction"], "The instruction")
    extra = fields.get("input")
    extra = "" if extra is None else text_of(extra, columns["input"], "The input")
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    messages = _history(fields.get("history"), columns.get("history", "history"))
    messages.append({"role": "user", "content": question})
    answer = filled(fields["output"], columns["output"], "The answer")
    messages.append({"role": "assistant", "content": answer})
    return check_order(_with_system(fields, columns, messages), "turns"), None


def _history(value: object, field: str) -> list[Message]:
    """Alpaca's earlier turns: a list of [question, answer]."""
    messages: list[Message] = []
    if not value:
        return messages
    if not isinstance(value, list):
        raise RowFault(
            field, value, "The history must be a list of [question, answer].", "Write it so, or leave it out."
        )
    for index, pair in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowFault(where, pair, "An entry must be [question, answer].", "Write both, in that order.")
        messages.append({"role": "user", "content": filled(pair[0], f"{where}[0]", "The question")})
        messages.append({"role": "assistant", "content": filled(pair[1], f"{where}[1]", "The answer")})
    return messages


def _side(value: object, field: str, role: str, what: str) -> list[Message]:
    """A prompt or an answer: text, one turn, or a list of turns."""
    if isinstance(value, dict):
        return [turn(value, field)]
    if isinstance(value, list | tuple) or looks_like_turns(value):
        return turns(value, field)
    return [{"role": role, "content": filled(value, field, what)}]


def _from_prompt_completion(fields: dict, columns: dict[str, str]) -> Converted:
    prompt = _side(fields["prompt"], columns["prompt"], "user", "The prompt")
    answer = _side(fields["completion"], columns["completion"], "assistant", "The answer")
    return check_order(_with_system(fields, columns, [*prompt, *answer]), "turns"), None


def _from_preference(fields: dict, columns: dict[str, str]) -> Converted:
    sides = {
        name: _side(fields[name], columns[name], "assistant", f"The {name} answer")
        for name in ("chosen", "rejected")
    }
    shared = _common_prefix(*sides.values())
    prompt = shared
    if fields.get("prompt") is not None:
        prompt = _side(fields["prompt"], columns["prompt"], "user", "The prompt")
        if prompt in (shared[: len(prompt)], shared[-len(prompt) :]):
            prompt = shared  # both sides repeat it, with a system turn before or further turns behind it
        else:
            shared = []
    sides = {name: side[len(shared) :] for name, side in sides.items()}
    if sides["chosen"] == sides["rejected"]:
        raise RowFault(
            columns["rejected"], fields["rejected"], "Both answers are the same.", "Take the row out."
        )
    prompt = _with_system(fields, columns, prompt)
    for name, side in sides.items():
        if not side or not prompt:
            raise RowFault(
                columns[name], fields[name], f"The pair needs a prompt, and an answer of its own in {name}.",
                "Add a prompt column, or write chosen and rejected as turns that begin alike and end differently.",
            )  # fmt: skip
        check_order([*prompt, *side], f"prompt + {columns[name]}")
    return [*prompt, *sides["chosen"]], sides["rejected"]


def _common_prefix(one: list[Message], other: list[Message]) -> list[Message]:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


CONVERTERS = {
    "messages": _from_messages,
    "sharegpt": _from_messages,
    "alpaca": _from_alpaca,
    "prompt_completion": _from_prompt_completion,
    "preference": _from_preference,
}
