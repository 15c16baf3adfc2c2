"""The model's own chat template, as Transformers compiles it, and what it has a place for: system turns, tools.

Needs jinja2 only. A role that a template refuses is adapted as Gemma's own templates do it: developer becomes system,
and a system text goes before the first user turn.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache

from jinja2 import TemplateError, meta
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma_tune.data.rows import IMAGE, Message, parts_of

_LOOP_NUMBERS = frozenset(["first", "last", "index", "index0", "length"])
_PROBE = "probe of a role"

__all__ = ["Template", "TemplateError", "fold_system"]


class Template:
    """Renders conversations. TemplateError where the template refuses one."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = _environment()
        self._compiled = environment.from_string(source)
        self._special_tokens = special_tokens
        self.takes_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        self.keeps = frozenset(role for role in ("system", "developer") if self._accepts(role))

    def render(
        self,
        messages: list[Message],
        tools: str = "",
        add_generation_prompt: bool = False,
        with_images: bool = False,
    ) -> str:
        """`with_images`: whether IMAGE in a content stands for one."""
        turns = [_callable(message) for message in self.adapted(messages)]
        return self._rendered(
            messages=[_in_parts(turn) for turn in turns] if with_images else turns,
            tools=_tools(tools) if tools else None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )

    def _rendered(self, **values: object) -> str:
        """Whatever a template raises over odd turns or tools is its refusal of them."""
        try:
            return self._compiled.render(**values, **self._special_tokens)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise TemplateError(str(error)) from error

    def adapted(self, messages: list[Message]) -> list[Message]:
        """The turns with a leading role that the template knows."""
        role = messages[0]["role"] if messages else ""
        if role not in ("system", "developer") or role in self.keeps:
            return messages
        if not self.keeps:
            return fold_system(messages)
        return [messages[0] | {"role": next(iter(self.keeps))}, *messages[1:]]

    def _accepts(self, role: str) -> bool:
        turns = [{"role": role, "content": _PROBE}, {"role": "user", "content": "x"}]
        try:
            return _PROBE in self._rendered(messages=turns)
        except TemplateError:
            return False


def fold_system(messages: list[Message]) -> list[Message]:
    """The system text before the first user turn, as Gemma 3's own template puts it."""
    if not messages or messages[0]["role"] not in ("system", "developer"):
        return messages
    system, *rest = messages
    if not rest:
        return [{"role": "user", "content": system["content"]}]
    text = f"{system['content']}\n\n{rest[0]['content'].strip()}"
    return [rest[0] | {"content": text}, *rest[1:]]


def _in_parts(message: Message) -> Message:
    if IMAGE not in message["content"]:
        return message
    return message | {"content": parts_of(message["content"])}


def _callable(message: Message) -> Message:
    """The turn with the arguments of its calls as objects, as templates read them."""
    if "tool_calls" not in message:
        return message
    calls = [
        call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


@lru_cache(maxsize=64)  # rows often share their tools
def _tools(text: str) -> list[dict]:
    return json.loads(text)


class _GenerationMarks(Extension):
    """Reads past `{% generation %}`, which a template saved by a training tool may hold; the mask needs no marks."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with the numbers of a loop read without its checks: they took a third of the time to render."""

    def getattr(self, obj, attribute):
        if type(obj) is LoopContext and attribute in _LOOP_NUMBERS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


def _environment() -> ImmutableSandboxedEnvironment:
    """As Transformers compiles templates: sandboxed, since a template comes with the model."""

    def raise_exception(message: str):
        raise TemplateError(message)

    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationMarks])
    environment.filters["tojson"] = lambda value, **rules: json.dumps(value, ensure_ascii=False, **rules)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
