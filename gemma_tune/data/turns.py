"""The rules for a conversation, and the reading of one in any of its spellings. Every breach is a `RowFault`."""

from __future__ import annotations

import json

from gemma_tune.data.rows import Message, RowFault

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
_SPELLINGS = (("role", "content"), ("from", "value"))


def text_of(value: object, field: str, what: str = "The field") -> str:
    """`value` where it is text that a tokenizer can read."""
    if value is None:
        raise RowFault(field, "nothing", f"{what} is missing.", f"Fill in {field} or take the row out.")
    if isinstance(value, bool | int | float):
        raise RowFault(field, value, f"{what} must be text, not a number.", f'Put it in quotes: "{value}".')
    if not isinstance(value, str):
        kind = {list: "a list", dict: "an object"}.get(type(value), type(value).__name__)
        raise RowFault(
            field, value, f"{what} must be text, not {kind}.", "Write it as text, or map another column."
        )
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowFault(
                field, ascii(value), f"{what} holds half of a character pair (a lone surrogate).",
                "Write the text again as UTF-8.",
            ) from None  # fmt: skip
    return value


def filled(value: object, field: str, what: str) -> str:
    """Text with at least one visible character."""
    text = text_of(value, field, what)
    if not text.strip():
        raise RowFault(field, text, f"{what} is empty.", f"Fill in {field} or take the row out.")
    return text


def turn(value: object, field: str) -> Message:
    """One turn from {"role", "content"} or {"from", "value"}."""
    if not isinstance(value, dict):
        raise RowFault(
            field, value, "A turn must be an object with role and content.",
            'Write {"role": "user", "content": "…"}.',
        )  # fmt: skip
    for role_key, content_key in _SPELLINGS:
        if role_key in value:
            role = ROLES.get(str(value[role_key]).strip().lower())
            if role is None:
                raise RowFault(
                    f"{field}.{role_key}", value[role_key], "The role is not known.",
                    "Use system, user or assistant (or human and gpt).",
                )  # fmt: skip
            what = {"assistant": "The answer", "user": "The user turn", "system": "The system turn"}[role]
            return {
                "role": role,
                "content": filled(value.get(content_key), f"{field}.{content_key}", what),
            }
    raise RowFault(
        field, value, "The turn has no role.", 'Write {"role": "user", "content": "…"} or from and value.'
    )


def turns(value: object, field: str) -> list[Message]:
    """A list of turns; a cell of a CSV may hold it as JSON. The order of roles is `check_order`'s matter."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowFault(
                field, value, "The list of turns is not valid JSON.", "Write the turns as a JSON list."
            ) from None
    if value is None:
        raise RowFault(field, "nothing", "The list of turns is missing.", "Add it or take the row out.")
    if not isinstance(value, list | tuple):
        raise RowFault(
            field, value, "The turns must be a list.", 'Write [{"role": "user", "content": "…"}, …].'
        )
    return [turn(one, f"{field}[{index}]") for index, one in enumerate(value)]


def looks_like_turns(value: object) -> str:
    """ "role" or "from" where the value is a list of turns in that spelling, else ""."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ""
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        return next((role for role, content in _SPELLINGS if role in value[0] and content in value[0]), "")
    return ""


def check_order(messages: list[Message], field: str) -> list[Message]:
    """The messages, where an optional system turn is followed by user and assistant in turn, an answer last."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    if not messages:
        raise RowFault(field, "[]", "The conversation has no turn.", "Add a user turn and an answer.")
    if len(messages) == first:
        raise RowFault(
            field, messages[0]["content"], "The conversation has only a system turn.",
            "Add a user turn and an answer.",
        )  # fmt: skip
    for index in range(first, len(messages)):
        role = messages[index]["role"]
        if role == ("user", "assistant")[(index - first) % 2]:
            continue
        where = f"{field}[{index}].role"
        if index == first:
            raise RowFault(
                where, role, "The first turn must be the user's.", "Begin the conversation with a user turn."
            )
        if role == "system":
            raise RowFault(
                where, role, "A system turn can only stand first.", "Move it to the beginning or take it out."
            )
        raise RowFault(
            where, messages[index]["content"], f"Two {role} turns in a row.",
            "Merge them into one turn, or add the missing turn between them.",
        )  # fmt: skip
    if messages[-1]["role"] != "assistant":
        raise RowFault(
            f"{field}[{len(messages) - 1}].role", messages[-1]["role"],
            "The conversation does not end with an assistant turn, so there is nothing to learn from its end.",
            "Add the answer, or take the last turn out.",
        )  # fmt: skip
    return messages
