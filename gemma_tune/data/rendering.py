"""The model's own chat template and tokenizer: what the model reads, and which tokens it learns from.

Needs `tokenizers` and `jinja2` only, so the page can show what the worker will train on. Shapes: one conversation has
T tokens; `ids` and `labels` have length T.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from gemma_tune.data.rows import Message
from gemma_tune.errors import ModelError

NOT_LEARNED = -100  # the label that torch's cross-entropy ignores
END_OF_TURN = "<end_of_turn>"
TURN_TOKENS = ("<start_of_turn>", END_OF_TURN, "<bos>", "<eos>", "<pad>")
_LOOP_NUMBERS = frozenset(["first", "last", "index", "index0", "length"])


@dataclass(frozen=True)
class Encoding:
    ids: list[int]  # (T,)
    labels: list[int]  # (T,) the id where it is learned, else -100
    text: str


class ChatTokenizer:
    """Renders and tokenises conversations. A model without a system role gets the text before the first user turn."""

    def __init__(self, tokenizer: Tokenizer, template: str, special_tokens: dict[str, str]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self._template = _environment().from_string(template)
        self._special_tokens = special_tokens
        self.folds_system = not self._accepts_system()

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTokenizer:
        """From `tokenizer.json`, `tokenizer_config.json` and the chat template in it or beside it."""
        path = Path(folder) / "tokenizer.json"
        return _load(Path(folder), path.stat().st_mtime_ns if path.is_file() else 0)

    @classmethod
    def _read(cls, folder: Path) -> ChatTokenizer:
        config = _json(folder / "tokenizer_config.json")
        template = _template(folder, config)
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
        return cls(tokenizer, template, special)

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """The text with control tokens. ModelError where the template refuses the turns."""
        if self.folds_system:
            messages = fold_system(messages)
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._special_tokens
            )
        except TemplateError as error:
            raise ModelError.at(
                "chat template", str(error), "The model's template refuses this conversation.",
                "Use a model with Gemma's own template.",
            ) from None  # fmt: skip

    def encode(self, messages: list[Message], assistant_only_loss: bool = True) -> Encoding:
        """The very ids and labels that training uses; nothing is cut here."""
        return self.encode_all([messages], assistant_only_loss)[0]

    def encode_all(
        self, conversations: list[list[Message]], assistant_only_loss: bool = True
    ) -> list[Encoding]:
        """`encode` of many on all cores."""
        return [
            Encoding(found.ids, _labels(found.ids, learned), text)
            for text, found, learned in self._tokenise(conversations, assistant_only_loss)
        ]

    def measure(
        self, conversations: list[list[Message]], max_length: int, assistant_only_loss: bool = True
    ) -> list[tuple[int, int, int]]:
        """Of each: tokens uncut, learned tokens within max_length, tokens before the first learned one.

        The same as by `encode_all`, in less time.
        """
        return [
            (
                len(found),
                sum(max(0, min(end, max_length) - start) for start, end in learned),
                min((start for start, end in learned if end > start), default=len(found)),
            )
            for _, found, learned in self._tokenise(conversations, assistant_only_loss)
        ]

    def _tokenise(self, conversations: list[list[Message]], assistant_only_loss: bool):
        """(text, tokens, ranges of learned token indices) of each. A token is learned where it holds a learned character."""
        spans = [self.learned_spans(messages) for messages in conversations]
        found = self.tokenizer.encode_batch([text for text, _ in spans], add_special_tokens=False)
        for one, (text, characters) in zip(found, spans, strict=True):
            if assistant_only_loss:
                learned = [_token_range(one, start, end) for start, end in characters]
            else:
                learned = [(0, len(one))]
            yield text, one, learned

    def encode_prompt(self, messages: list[Message]) -> list[int]:
        """Ids up to where the model begins its answer."""
        text = self.render(messages, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def pieces(
        self, messages: list[Message], max_length: int, assistant_only_loss: bool = True
    ) -> list[tuple[str, str]]:
        """The rendered text in runs of one kind: "prompt", "learned" (carries loss) or "cut" (beyond max_length)."""
        ((whole, found, learned),) = self._tokenise([messages], assistant_only_loss)
        labels = _labels(found.ids, learned)
        runs: list[tuple[str, str]] = []
        shown_until = 0
        for index, (label, (_, end)) in enumerate(zip(labels, found.offsets, strict=True)):
            kind = "cut" if index >= max_length else "prompt" if label == NOT_LEARNED else "learned"
            text = whole[shown_until:end]  # empty for the second byte token of one character
            shown_until = max(shown_until, end)
            if runs and runs[-1][1] == kind:
                runs[-1] = (runs[-1][0] + text, kind)
            else:
                runs.append((text, kind))
        return [run for run in runs if run[0]]

    def learned_spans(self, messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the characters of each assistant turn in it with the end of the turn, without its header.

        Found from the template alone: a turn is what the template adds after its own generation prompt. TRL's
        training templates mark the same span for Gemma 2 and 3 (a test compares them).
        """
        text, learned = self.render(messages), []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], add_generation_prompt=True)
            last = index + 1 == len(messages)
            until = text if last else self.render(messages[: index + 1])
            if not (text.startswith(before) and text.startswith(until)):
                raise ModelError.at(
                    "chat template", until[-60:],
                    "The template renders the beginning of a conversation differently once more turns follow.",
                    "Use a model with Gemma's own template, or rows with a single answer.",
                )  # fmt: skip
            learned.append((len(before), len(until)))
        return text, learned

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer: end of text and end of turn."""
        names = (self._special_tokens.get("eos_token", "<eos>"), END_OF_TURN)
        ids = (self.tokenizer.token_to_id(name) for name in names)
        return sorted({token for token in ids if token is not None})

    def _accepts_system(self) -> bool:
        turns = [{"role": role, "content": "x"} for role in ("system", "user")]
        try:
            self._template.render(messages=turns, **self._special_tokens)
        except TemplateError:
            return False
        return True


def fold_system(messages: list[Message]) -> list[Message]:
    """The system text before the first user turn, as Gemma 3's own template puts it."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, *rest = messages
    if not rest:
        return [{"role": "user", "content": system["content"]}]
    text = f"{system['content']}\n\n{rest[0]['content'].strip()}"
    return [{"role": rest[0]["role"], "content": text}, *rest[1:]]


def _token_range(found, start: int, end: int) -> tuple[int, int]:
    """The tokens of the characters start to end, as Transformers finds them for `return_assistant_tokens_mask`."""
    first, last = found.char_to_token(start), found.char_to_token(end - 1)
    if first is None:
        return 0, 0
    return first, len(found) if last is None else last + 1


def _labels(ids: list[int], learned: list[tuple[int, int]]) -> list[int]:
    labels = [NOT_LEARNED] * len(ids)
    for start, end in learned:
        labels[start:end] = ids[start:end]
    return labels


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


def _template(folder: Path, config: dict) -> str:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    template = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    if not template:
        raise ModelError.at(
            str(folder), None, "The model has no chat template, so it does not know turns.",
            "Choose an instruction-tuned model: its name ends in -it.",
        )  # fmt: skip
    return template


@lru_cache(
    maxsize=2
)  # Gemma's tokenizer takes more than a second to read; the page asks for it at every change
def _load(folder: Path, changed_ns: int) -> ChatTokenizer:
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
