"""Rewards that can be verified, for GRPO: 1 where an answer is as its row or its rule wants it, else 0."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from gemma_tune.sections import ObjectiveSection

CALL = re.compile(r"call:\s*([\w.-]+)\s*(?=\{)")
QUOTES = ("<escape>", '<|"|>')  # around texts in FunctionGemma's and Gemma 4's calls
LITERAL = re.compile(r"[^,{}\[\]]*")

Call = tuple[str, str]  # name, arguments as JSON with sorted keys


def reward_function(goal: ObjectiveSection, tokenizer) -> Callable[..., list[float]]:
    """As TRL calls it: with the tokens of each answer, and of its row the column `answer` of `preference`."""
    rewarded = rule_of(goal)
    shows_control = goal.reward == "tool_call"

    def reward(completion_ids: list[list[int]], answer: list[str], **rest: object) -> list[float]:
        texts = [tokenizer.decode(ids, skip_special_tokens=not shows_control) for ids in completion_ids]
        return [rewarded(text, wanted) for text, wanted in zip(texts, answer, strict=True)]

    reward.__name__ = goal.reward
    return reward


def rule_of(goal: ObjectiveSection) -> Callable[[str, str], float]:
    """(answer, the row's own answer) -> reward."""
    if goal.reward == "regex":
        pattern = re.compile(goal.reward_pattern, re.DOTALL)
        return lambda text, wanted: float(pattern.fullmatch(text.strip()) is not None)
    return {"exact_match": exact_match, "json": valid_json, "tool_call": tool_call}[goal.reward]


def exact_match(text: str, wanted: str) -> float:
    """Blanks around them aside."""
    return float(text.strip() == wanted.strip())


def valid_json(text: str, wanted: str = "") -> float:
    """A JSON object or list: a bare number or text, which is JSON too, would be too easily had."""
    try:
        return float(isinstance(json.loads(text), dict | list))
    except ValueError:
        return 0.0


def tool_call(text: str, wanted: str) -> float:
    """The same functions with the same arguments, in any order; where the row calls none, none."""
    return float(sorted(calls_in(text)) == sorted(calls_in(wanted)))


def calls_in(text: str) -> list[Call]:
    """Calls as Gemma writes them, call:NAME{…}, or as JSON with a name and arguments. What cannot be read is no call."""
    found = []
    for match in CALL.finditer(text):
        try:
            arguments, _ = _value(text, match.end())
        except (ValueError, IndexError):
            continue
        found.append((match[1], json.dumps(arguments, sort_keys=True)))
    return found or _json_calls(text)


def _json_calls(text: str) -> list[Call]:
    try:
        values = json.loads(text.strip().removeprefix("```json").strip("`\n "))
    except ValueError:
        return []
    found = []
    for value in values if isinstance(values, list) else [values]:
        call = value.get("function", value) if isinstance(value, dict) else {}
        arguments = call.get("arguments", call.get("parameters")) if isinstance(call, dict) else None
        if isinstance(arguments, dict) and isinstance(call.get("name"), str):
            found.append((call["name"], json.dumps(arguments, sort_keys=True)))
    return found


def _value(text: str, at: int) -> tuple[Any, int]:
    """(value, where it ends). ValueError or IndexError where the text is no whole value."""
    for quote in QUOTES:
        if text.startswith(quote, at):
            end = text.index(quote, at + len(quote))
            return text[at + len(quote) : end], end + len(quote)
    if text[at] == "{":
        return _items(text, at + 1, "}")
    if text[at] == "[":
        return _items(text, at + 1, "]")
    literal = LITERAL.match(text, at)
    if not literal[0].strip():
        raise ValueError("no value")
    try:
        return json.loads(literal[0]), literal.end()
    except ValueError:
        return literal[0].strip(), literal.end()


def _items(text: str, at: int, end: str) -> tuple[Any, int]:
    """The members of a mapping or a list, from after its opening bracket."""
    mapping, values = {}, []
    while text[at] != end:
        if end == "}":
            colon = text.index(":", at)
            mapping[text[at:colon].strip()], at = _value(text, colon + 1)
        else:
            value, at = _value(text, at)
            values.append(value)
        if text[at] == ",":
            at += 1
    return (mapping if end == "}" else values), at + 1
