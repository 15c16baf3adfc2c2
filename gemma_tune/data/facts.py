"""What is noted of every row while it is read: its identity, its size, what is odd in its text, a sketch of it.

Facts are one numpy record a row, so that a million rows are looked at in a second. They depend on the row alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import numpy as np

from gemma_tune.data.rows import Row

KINDS = ("messages", "pair", "label", "text")
FACTS = np.dtype(
    [
        ("number", "<u4"),
        ("part", "<u2"),  # which source of the mix, or file of a folder
        ("file", "<u2"),  # which of the store's files
        ("kind", "u1"),  # index of KINDS
        ("held_back", "?"),
        ("label", "i1"),  # 1 good, 0 bad, -1 none
        ("flags", "<u2"),
        ("script", "u1"),  # index of SCRIPTS
        ("tools", "?"),
        ("identity", "<u8"),
        ("prompt", "<u8"),
        ("prompt_characters", "<u4"),
        ("answer_characters", "<u4"),  # of pairs the chosen answer's
        ("other_characters", "<u4"),  # of pairs the rejected answer's
    ]
)
SKETCH = 32  # smallest hashes of the text's 8-byte sequences
EMPTY = np.uint32(0xFFFFFFFF)
WINDOW_BYTES = 8
SHORT_CHARACTERS = 2

CONTROL, HTML, PLACEHOLDER, TURN_TOKEN, SHORT, BROKEN_ACCENTS = (1 << bit for bit in range(6))
SCRIPTS = (
    "none",
    "Latin",
    "Cyrillic",
    "Greek",
    "Arabic",
    "Hebrew",
    "Indic",
    "Thai",
    "Kana",
    "Hangul",
    "Han",
    "other",
)

_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb]"
)
_HTML = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|table|tr|td|th|ul|ol|li|h[1-6]|img|script|style|font|hr)(?:\s[^<>]*)?/?>",
    re.I,
)
_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|apos|#\d{2,5});")
_PLACEHOLDER = re.compile(
    r"\{\{\s*[\w .-]{1,40}\s*\}\}|\[(?:insert|your|name of|placeholder)\b[^\]\n]{0,40}\]|lorem ipsum", re.I
)
_TURN_TOKEN = re.compile(
    r"<(?:start_of_turn|end_of_turn|bos|eos|pad|start_of_image|\|?turn\|?|\|?channel\|?|\|?tool_call\|?|\|?tool\|?"
    r"|(?:start|end)_function_(?:call|response|declaration))>"
)  # fmt: skip
_BROKEN = re.compile("Ã[\u0080-\u00bf]|â€|Â[\u00a0-\u00bf]|\ufffd")
_RANGES = (
    (0x0250, "Latin"), (0x0370, "other"), (0x0400, "Greek"), (0x0530, "Cyrillic"), (0x0590, "other"), (0x0600, "Hebrew"),
    (0x0780, "Arabic"), (0x0900, "other"), (0x0E00, "Indic"), (0x0E80, "Thai"), (0x1100, "other"), (0x1200, "Hangul"),
    (0x1E00, "other"), (0x1F00, "Latin"), (0x2000, "Greek"), (0x3040, "other"), (0x3100, "Kana"), (0x3400, "other"),
    (0xA000, "Han"), (0xAC00, "other"), (0xD7B0, "Hangul"), (0xF900, "other"), (0xFB00, "Han"), (0x20000, "other"),
    (0x323B0, "Han"), (0x110000, "other"),
)  # fmt: skip


def noted(row: Row, part: int) -> tuple[tuple, np.ndarray]:
    """The record of one row in the order of FACTS (its file is filled in later), and its sketch."""
    prompt, answer = row.prompt_text(), row.answer_text()
    other = [f"{turn['content']}{turn.get('tool_calls', '')}" for turn in row.rejected_messages or []]
    other_characters = sum(map(len, other))
    plain_prompt, plain_answer = plain(prompt), plain(answer)
    text = f"{prompt}\n{answer}"
    shown = "".join(
        f"\0{one['file']}" for one in row.images
    )  # the same question about another image is another one
    facts = (
        row.number & 0xFFFFFFFF,
        part,
        0,
        KINDS.index(row.kind),
        row.held_back,
        -1 if row.label is None else int(row.label),
        flags_of(text) | (SHORT if len(plain_answer) < SHORT_CHARACTERS else 0),
        SCRIPTS.index(script_of(row.whole_text())),  # without the names of the roles, which are Latin
        bool(row.tools),
        hashed(f"{plain_prompt}\0{plain_answer}\0{row.label}{shown}"),
        hashed((plain_prompt if row.messages else plain_answer) + shown),
        len(prompt),
        len(answer) - other_characters - len(other),  # which stand on lines of their own
        other_characters,
    )
    return facts, sketch_of(f"{plain_prompt} {plain_answer}", hashed(shown) if shown else 0)


def plain(text: str) -> str:
    """The text with case and blanks aside: what two rows are compared by."""
    return " ".join(text.lower().split())


def hashed(text: str) -> int:
    """64 bits, the same on every machine."""
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, "little")


def flags_of(text: str) -> int:
    """What is odd in a text, as bits."""
    flags = 0
    if not text.replace("\n", "").isprintable() and _CONTROL.search(text):
        flags |= CONTROL
    if "<" in text:
        flags |= HTML if _HTML.search(text) else 0
        flags |= TURN_TOKEN if _TURN_TOKEN.search(text) else 0
    if "&" in text and _ENTITY.search(text):
        flags |= HTML
    if ("{{" in text or "[" in text or "psum" in text) and _PLACEHOLDER.search(text):
        flags |= PLACEHOLDER
    if not text.isascii() and _BROKEN.search(text):
        flags |= BROKEN_ACCENTS
    return flags


def what_is_odd(flag: int, text: str) -> str:
    """The first place in a text for which a flag stands."""
    patterns = {
        CONTROL: (_CONTROL,), HTML: (_HTML, _ENTITY), PLACEHOLDER: (_PLACEHOLDER,), TURN_TOKEN: (_TURN_TOKEN,),
        BROKEN_ACCENTS: (_BROKEN,),
    }  # fmt: skip
    for pattern in patterns.get(flag, ()):
        if found := pattern.search(text):
            around = text[max(0, found.start() - 20) : found.end() + 20]
            return ascii(found[0]) if flag == CONTROL else around
    return text[:60]


def script_of(text: str) -> str:
    """The script of most letters."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text[:400])) else "none"
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            counts[_script(ord(character))] += count
    return max(counts, key=counts.get) if counts else "none"


def _script(code: int) -> str:
    return next(name for until, name in _RANGES if code < until)


def sketch_of(text: str, salt: int = 0) -> np.ndarray:
    """(SKETCH,) of uint32: two texts share of their sketches about what they share of their 8-byte sequences.

    Those of different salts share nothing.

    The smallest distinct hashes of those sequences (a bottom-k MinHash), EMPTY where there are fewer.
    """
    codes = text.encode("utf-8", "surrogatepass").ljust(WINDOW_BYTES)
    counts = [(len(codes) - offset) // WINDOW_BYTES for offset in range(WINDOW_BYTES)]
    windows = [np.frombuffer(codes, "<u8", count, offset) for offset, count in enumerate(counts) if count]
    values = (np.concatenate(windows) ^ np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(29)
    values = (values * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)).astype(np.uint32)
    smallest = (
        _distinct(np.partition(values, 2 * SKETCH)[: 2 * SKETCH]) if len(values) > 2 * SKETCH else values
    )
    if len(smallest) < SKETCH or smallest is values:
        smallest = _distinct(values)
    found = np.full(SKETCH, EMPTY, np.uint32)
    found[: min(SKETCH, len(smallest))] = smallest[:SKETCH]
    return found


def _distinct(values: np.ndarray) -> np.ndarray:
    """As `np.unique`, which takes three times as long for so few."""
    ordered = np.sort(values)
    kept = np.empty(len(ordered), bool)
    kept[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=kept[1:])
    return ordered[kept]
