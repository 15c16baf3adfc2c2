"""The rules for a conversation, the reading of one in any of its spellings, and the fixes that are mechanical.

Every breach is a `RowFault`. Calls of functions keep their arguments as JSON strings.
"""

from __future__ import annotations

import json
import math

from gemma_tune.data.json_rows import HALF_PAIR, half_pair_in, keys_in
from gemma_tune.data.rows import IMAGE, Message, RowFault

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}
SYSTEM_ROLES = ("system", "developer")
WHAT = {
    "assistant": "The answer",
    "user": "The user turn",
    "system": "The system turn",
    "developer": "The developer turn",
    "tool": "The function's result",
}
_KINDS = {
    "list": "a list", "tuple": "a list", "dict": "an object", "bytes": "bytes", "Decimal": "a number",
    "datetime": "a date", "date": "a date", "time": "a time", "timedelta": "a span of time",
}  # fmt: skip
IMAGE_PARTS = ("image", "image_url")  # the types of a part that is an image
IMAGE_KEYS = (
    "image",
    "image_url",
    "bytes",
    "path",
    "url",
)  # where one names it; without any it is one of the column
_SPELLINGS = (("role", "content"), ("from", "value"))
_KEPT = ("name", "tool_call_id", "reasoning_content")  # further keys of a turn that a template may read


def text_of(value: object, field: str, what: str = "The field") -> str:
    """`value` where it is text that a tokenizer can read."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        met = "nothing" if value is None else "NaN"
        raise RowFault(field, met, f"{what} is missing.", f"Fill in {field} or take the row out.")
    if isinstance(value, bool | int | float):
        raise RowFault(field, value, f"{what} must be text, not a number.", f'Put it in quotes: "{value}".')
    if not isinstance(value, str):
        kind = _KINDS.get(type(value).__name__, type(value).__name__)
        raise RowFault(
            field,
            value if isinstance(value, list | dict) else str(value),
            f"{what} must be text, not {kind}.",
            "Write it as text, or map another column.",
        )
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowFault(field, ascii(value), *HALF_PAIR) from None
    return value


def filled(value: object, field: str, what: str) -> str:
    """Text with at least one visible character."""
    text = text_of(value, field, what)
    if not text.strip():
        raise RowFault(field, text, f"{what} is empty.", f"Fill in {field} or take the row out.")
    return text


def parsed(value: object, field: str, what: str) -> object:
    """A cell that may hold its list or object as JSON text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = json.loads(value)
        keys_in(found)
    except ValueError:
        raise RowFault(
            field, value, f"{what} is not valid JSON.", "Write it as JSON, with double quotes."
        ) from None
    except RecursionError:
        raise RowFault(field, value, f"{what} is nested too deeply.", "Write it flat.") from None
    if "\\u" in value and (where := half_pair_in(found, field)):
        raise RowFault(where, value, *HALF_PAIR)
    return found


def turn(value: object, field: str, empty: bool = False) -> Message:
    """One turn from {"role", "content"} or {"from", "value"}; `empty`: without content it is no fault."""
    if not isinstance(value, dict):
        raise RowFault(
            field, value, "A turn must be an object with role and content.",
            'Write {"role": "user", "content": "…"}.',
        )  # fmt: skip
    for role_key, content_key in _SPELLINGS:
        if role_key in value:
            return _turn(value, f"{field}.{role_key}", role_key, f"{field}.{content_key}", content_key, empty)
    raise RowFault(
        field, value, "The turn has no role.", 'Write {"role": "user", "content": "…"} or from and value.'
    )


def _turn(value: dict, role_field: str, role_key: str, field: str, content_key: str, empty: bool) -> Message:
    spelled = str(value[role_key]).strip().lower()
    role = ROLES.get(spelled)
    if role is None:
        raise RowFault(
            role_field, value[role_key], "The role is not known.",
            "Use system, user, assistant or tool (or human and gpt).",
        )  # fmt: skip
    content = value.get(content_key)
    if spelled == "function_call":
        return {"role": role, "content": "", "tool_calls": _calls(parsed(content, field, "The call"), field)}
    calls = (
        _calls(value["tool_calls"], f"{field.rpartition('.')[0]}.tool_calls")
        if value.get("tool_calls")
        else []
    )
    images: list[tuple[object, str]] = []
    if isinstance(content, list | tuple):
        content, images = _joined(content, field, WHAT[role])
    if role == "tool" and isinstance(content, dict):
        content = _as_json(content, field)
    found = {"role": role, "content": ""}
    if not (content is None and (calls or empty)):
        may_be_empty = empty or calls or role == "tool"
        found["content"] = (text_of if may_be_empty else filled)(content, field, WHAT[role])
    if calls:
        found["tool_calls"] = calls
    if images:
        found["images"] = images
    return found | {key: value[key] for key in _KEPT if isinstance(value.get(key), str) and value[key]}


def _joined(parts: list, field: str, what: str) -> tuple[str, list[tuple[object, str]]]:
    """Content written as parts: the texts, one after the other, and (what it names, field) of each image.

    `placing` makes images of them.
    """
    texts, images = [], []
    for index, part in enumerate(parts):
        where = f"{field}[{index}]"
        if isinstance(part, str):
            texts.append(text_of(part, where, what))
        elif isinstance(part, dict) and (part.get("type") == "text" or set(part) == {"text"}):
            texts.append(text_of(part.get("text"), f"{where}.text", what))
        elif isinstance(part, dict) and part.get("type") in IMAGE_PARTS:
            texts.append(IMAGE)
            named = (part[key] for key in IMAGE_KEYS if not is_empty(part.get(key)))
            images.append((next(named, None), where))
        else:
            kind = part.get("type", "unknown") if isinstance(part, dict) else part
            raise RowFault(
                where, kind, "Only parts of text and images can be learned here.",
                'Take the other parts out, or write {"type": "text", "text": "…"}.',
            )  # fmt: skip
    if not images:
        return "\n".join(texts), []
    # As templates write parts: nothing stands between an image and a text.
    return "\n".join(texts).replace(f"\n{IMAGE}", IMAGE).replace(f"{IMAGE}\n", IMAGE), images


def is_empty(image: object) -> bool:
    """Whether the place where an image may be named holds none; Arrow fills it for every part."""
    return image in (None, "") or (isinstance(image, dict) and all(one is None for one in image.values()))


def _calls(value: object, field: str) -> list[dict]:
    """An assistant's calls of functions, their arguments as JSON strings."""
    value = parsed(value, field, "The list of calls")
    calls = []
    for index, call in enumerate(value if isinstance(value, list | tuple) else [value]):
        where = f"{field}[{index}]"
        function = call.get("function", call) if isinstance(call, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or not function["name"]
        ):
            raise RowFault(
                where, call, "A call needs the name of its function.",
                'Write {"type": "function", "function": {"name": "…", "arguments": {…}}}.',
            )  # fmt: skip
        arguments = _arguments(function.get("arguments", function.get("parameters")), f"{where}.arguments")
        named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        calls.append(
            {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
        )
    return calls


def _arguments(value: object, field: str) -> str:
    if value in (None, ""):
        return "{}"
    value = parsed(value, field, "The object of arguments")
    if not isinstance(value, dict):
        raise RowFault(
            field, value, "The arguments of a call must be a JSON object.", 'Write them as {"city": "Rome"}.'
        )
    return _as_json(value, field)


def _as_json(value: object, field: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise RowFault(
            field, value, "It holds what JSON cannot hold, such as NaN or a date.", "Write that as text."
        ) from None


def tools_of(value: object, field: str) -> str:
    """The functions that may be called, as one JSON list; empty where the row has none."""
    value = parsed(value, field, "The list of tools")
    if value in (None, "", [], {}):
        return ""
    tools = []
    for index, tool in enumerate(value if isinstance(value, list | tuple) else [value]):
        tool = parsed(tool, f"{field}[{index}]", "The tool")
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowFault(
                f"{field}[{index}]", tool, "A tool needs a name.",
                'Write {"type": "function", "function": {"name": "…", "description": "…", "parameters": {…}}}.',
            )  # fmt: skip
        tools.append({"type": "function", "function": function})
    return _as_json(tools, field)


def turns(value: object, field: str, empty: bool = False) -> list[Message]:
    """A list of turns; a cell of a CSV may hold it as JSON. The order of roles is `check_order`'s matter."""
    value = parsed(value, field, "The list of turns")
    if value is None:
        raise RowFault(field, "nothing", "The list of turns is missing.", "Add it or take the row out.")
    if not isinstance(value, list | tuple):
        raise RowFault(
            field, value, "The turns must be a list.", 'Write [{"role": "user", "content": "…"}, …].'
        )
    return [turn(one, f"{field}[{index}]", empty) for index, one in enumerate(value)]


def looks_like_turns(value: object) -> str:
    """ "role" or "from" where the value is a list of turns in that spelling, else ""."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ""
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        return next((role for role, content in _SPELLINGS if role in value[0] and (content in value[0] or "tool_calls" in value[0])), "")  # fmt: skip
    return ""


def mended(messages: list[Message], fixes: frozenset[str]) -> list[Message]:
    """The turns after the mechanical fixes that were asked for; nothing else of them is changed."""
    if "strip" in fixes:
        messages = [turn | {"content": turn["content"].strip()} for turn in messages]
    if "drop_empty_turns" in fixes:
        messages = [
            turn
            for turn in messages
            if turn["content"].strip() or turn.get("tool_calls") or turn["role"] == "tool"
        ]  # a function may well give nothing
    if "merge_turns" not in fixes:
        return messages
    merged: list[Message] = []
    for one in messages:
        if merged and one["role"] == merged[-1]["role"] != "tool" and "tool_calls" not in (one | merged[-1]):
            images = [*merged[-1].get("images", ()), *one.get("images", ())]
            merged[-1] = merged[-1] | {"content": f"{merged[-1]['content']}\n\n{one['content']}"}
            merged[-1] |= {"images": images} if images else {}
        else:
            merged.append(one)
    return merged


def check_order(messages: list[Message], field: str, *, ends_with_answer: bool = True) -> list[Message]:
    """The messages, where an optional system turn is followed by user and assistant in turn, an answer last.

    Results of functions follow the assistant turn that calls them, and another assistant turn may follow them.
    """
    first = 1 if messages and messages[0]["role"] in SYSTEM_ROLES else 0
    if not messages:
        raise RowFault(field, "[]", "The conversation has no turn.", "Add a user turn and an answer.")
    if len(messages) == first:
        raise RowFault(
            field, messages[0]["content"], "The conversation has only a system turn.",
            "Add a user turn and an answer.",
        )  # fmt: skip
    before = ""
    for index in range(first, len(messages)):
        role = messages[index]["role"]
        calls = bool(before) and "tool_calls" in messages[index - 1]
        if not _may_follow(role, before, calls):
            raise _wrong_place(messages, index, before, f"{field}[{index}].role")
        before = role
    if ends_with_answer and messages[-1]["role"] != "assistant":
        raise RowFault(
            f"{field}[{len(messages) - 1}].role", messages[-1]["role"],
            "The conversation does not end with an assistant turn, so there is nothing to learn from its end.",
            "Add the answer, or take the last turn out.",
        )  # fmt: skip
    return messages


def _may_follow(role: str, before: str, calls: bool) -> bool:
    """`before`: the role of the turn before, empty at the beginning; `calls`: whether it calls functions."""
    if role == "tool":
        return before == "tool" or calls
    if role == "assistant":
        return before in ("user", "tool")
    return role == "user" and before in ("", "assistant", "tool")


def _wrong_place(messages: list[Message], index: int, before: str, where: str) -> RowFault:
    role, content = messages[index]["role"], messages[index]["content"]
    if role in SYSTEM_ROLES:
        return RowFault(
            where, role, f"A {role} turn can only stand first.", "Move it to the beginning or take it out."
        )
    if not before:
        return RowFault(
            where, role, "The first turn must be the user's.", "Begin the conversation with a user turn."
        )
    if role == "tool":
        return RowFault(
            where, content, "A function's result must follow the assistant turn that calls it.",
            "Add the call (tool_calls) to the assistant turn before it.",
        )  # fmt: skip
    return RowFault(
        where, content, f"Two {role} turns in a row.",
        "Merge them into one turn, or add the missing turn between them.",
    )  # fmt: skip
