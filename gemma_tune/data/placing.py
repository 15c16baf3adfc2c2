"""Where the images of a row stand in its conversation: as its parts, its <image> marks, or its column of images say.

Converters leave in a turn, under `images`, what its parts name: (source, field), the source None for one of the column.
Here they become the images of the row, in the order of their places.
"""

from __future__ import annotations

from collections.abc import Callable

from gemma_tune.data.rows import IMAGE, Image, Message, RowFault
from gemma_tune.data.turns import is_empty, parsed

MARK = "<image>"  # in the text of LLaVA's and ShareGPT's rows
Keep = Callable[[object, str], Image]  # (source, field) → the image; RowFault


def listed(cell: object, field: str) -> list[object]:
    """The images that a column names: one or a list; none where the cell is empty."""
    cell = parsed(cell, field, "The list of images")
    if isinstance(cell, list | tuple):
        return [one for one in cell if not is_empty(one)]
    return [] if is_empty(cell) else [cell]


def placed(found: dict, cell: object, field: str, keep: Keep) -> dict:
    """The parts of a row with its images. `cell`: of the column of images, where the schema has one.

    RowFault where it is not clear which image stands where, or one cannot be read.
    """
    turns: list[Message] = found.get("messages", [])
    inline = [named for turn in turns for named in turn.get("images", ())]
    sources = listed(cell, field)
    if not inline and not sources:
        if field:
            _refuse_marks(turns, field)
        return found
    _refuse_kinds(found, field or "messages")
    messages = [{key: value for key, value in turn.items() if key != "images"} for turn in turns]
    if sum(turn["content"].count(IMAGE) for turn in messages) != len(inline):
        raise RowFault(
            "messages", ascii(IMAGE), "The text holds the character that stands for an image here (U+FFFC).",
            "Take it out of the text.",
        )  # fmt: skip
    if inline:
        sources = _filled(inline, sources, field)
    else:
        messages = _marked(messages, len(sources), field)
        sources = [
            (source, f"{field}[{index}]" if len(sources) > 1 else field)
            for index, source in enumerate(sources)
        ]
    for index, turn in enumerate(messages):
        if IMAGE in turn["content"] and turn["role"] != "user":
            raise _wrong_turn(index, turn["role"])
    return found | {"messages": messages, "images": [keep(source, where) for source, where in sources]}


def _refuse_kinds(found: dict, field: str) -> None:
    if "text" in found:
        raise RowFault(
            field, "images", "A plain text has no question beside which an image could stand.",
            "Map its text as completion, add a prompt, and the images stand before it.",
        )  # fmt: skip
    if found.get("rejected_messages") is not None or found.get("label") is not None:
        raise no_preferences(field)


def no_preferences(field: str) -> RowFault:
    return RowFault(
        field, "images", "Images are learned from answers only, not from preferences or labels.",
        "Turn data.read_images off to learn from the text alone, or give conversations with one answer.",
    )  # fmt: skip


def _refuse_marks(turns: list[Message], field: str) -> None:
    """In a set with a column of images <image> is no text."""
    marks = sum(turn["content"].count(MARK) for turn in turns if turn["role"] == "user")
    if marks:
        raise _disagreement(field, 0, marks)


def _filled(inline: list[tuple[object, str]], sources: list[object], field: str) -> list[tuple[object, str]]:
    """(source, field) of each part that is an image; those that name none take the next one of the column."""
    open_places = sum(source is None for source, _ in inline)
    if open_places != len(sources):
        raise _disagreement(field or inline[0][1], len(sources), open_places)
    rest = iter(sources)
    return [(next(rest), field) if source is None else (source, where) for source, where in inline]


def _marked(messages: list[Message], images: int, field: str) -> list[Message]:
    """The turns with a place for each image of the column: where they are marked, else before the first user turn's text."""
    marks = [turn["content"].count(MARK) for turn in messages]
    of_users = sum(count for count, turn in zip(marks, messages, strict=True) if turn["role"] == "user")
    if not of_users and any(marks):
        index = next(index for index, count in enumerate(marks) if count)
        raise _wrong_turn(index, messages[index]["role"])
    if of_users not in (0, images):
        raise _disagreement(field, images, of_users)
    if of_users:
        return [
            turn | {"content": turn["content"].replace(MARK, IMAGE)} if turn["role"] == "user" else turn
            for turn in messages
        ]
    first = next(index for index, turn in enumerate(messages) if turn["role"] == "user")
    begun = messages[first] | {"content": IMAGE * images + messages[first]["content"]}
    return [*messages[:first], begun, *messages[first + 1 :]]


def _disagreement(field: str, images: int, places: int) -> RowFault:
    return RowFault(
        field, f"{images} images, {places} places", "The images and the places for them in the turns do not agree.",
        "Name one place for each image, or none: then all stand before the first question.",
    )  # fmt: skip


def _wrong_turn(index: int, role: str) -> RowFault:
    return RowFault(
        f"messages[{index}]",
        role,
        "An image can stand in a user turn only.",
        "Move it into the question, or take it out.",
    )
