"""A row as it is shown: its text in runs of one kind, each with its tokens, an image as one piece."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gemma_tune.data.rows import Row
from gemma_tune.errors import ModelError

if TYPE_CHECKING:
    from gemma_tune.data.rendering import ChatTokenizer


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one kind, as it is shown."""

    text: str
    kind: str  # "prompt", "learned" (carries loss), "cut" (beyond the maximum length) or "image"
    tokens: list[tuple[int, str]] = field(
        default_factory=list
    )  # id and its characters; of an image each kind once
    image_tokens: int = 0  # of an image: how many stand for its parts
    cut: bool = False  # of an image: whether it ends beyond the maximum length

    @property
    def count(self) -> int:
        """Tokens, all of an image's too."""
        return len(self.tokens) + max(0, self.image_tokens - 1)


def pieces_of(chat: ChatTokenizer, row: Row, max_length: int, assistant_only_loss: bool) -> list[Piece]:
    """ModelError where the template refuses the row."""
    if row.images and chat.no_images:
        raise ModelError(chat.no_images)
    encoding = chat.encode(row, assistant_only_loss)
    if encoding.refusal:
        raise ModelError.at(
            "chat template", None, encoding.refusal, "Take the row out, or use another model."
        )
    whole, learned = chat.text_of(row), [False] * len(encoding.ids)
    for start, end in encoding.spans:
        learned[start:end] = [True] * (end - start)
    found = chat.tokenizer.encode(whole, add_special_tokens=False)
    marks = chat.image_ids if row.images else frozenset()
    pieces: list[Piece] = []
    shown_until = 0
    for index, (token, (_, end)) in enumerate(zip(found.ids, found.offsets, strict=True)):
        text = whole[shown_until:end]  # empty for the second byte token of one character
        shown_until = max(shown_until, end)
        cut = index >= max_length
        kind = "image" if token in marks else "cut" if cut else "learned" if learned[index] else "prompt"
        if not pieces or pieces[-1].kind != kind or _ends_an_image(pieces[-1], chat):
            pieces.append(Piece("", kind))
        pieces[-1] = _longer(pieces[-1], token, text, cut, chat.image_token_id)
    return [piece for piece in pieces if piece.text]


def _ends_an_image(piece: Piece, chat: ChatTokenizer) -> bool:
    return piece.kind == "image" and piece.tokens[-1][1] == chat.image_tokens.end


def _longer(piece: Piece, token: int, text: str, cut: bool, soft: int | None) -> Piece:
    if piece.kind != "image":
        piece.tokens.append((token, text))  # the list is shared with its successor
        return replace(piece, text=piece.text + text)
    again = token == soft and piece.image_tokens
    if not again:
        piece.tokens.append((token, text))
    return replace(
        piece,
        text=piece.text if again else piece.text + text,
        image_tokens=piece.image_tokens + (token == soft),
        cut=piece.cut or cut,
    )
