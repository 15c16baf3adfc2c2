"""One question and its two answers on their way to the page, at a pace that a browser keeps up with."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import gradio as gr

from gemma_tune.errors import GemmaTuneError

PAINTS_PER_SECOND = 15
COLUMNS = ("base", "tuned")  # as the chat worker names them


class Exchange:
    """What stands in both columns: what was said before, the question with its pictures, and the answers so far."""

    def __init__(self, prompt: str, pictures: list[str], before: tuple[list, list]):
        self.before = before
        self._asked = [
            *({"role": "user", "content": {"path": path}} for path in pictures),
            {"role": "user", "content": prompt},
        ]
        self._texts = dict.fromkeys(COLUMNS, "")
        self._stats = dict.fromkeys(COLUMNS, "")

    def take(self, pieces: list[dict]) -> None:
        """Pieces of the chat worker: text of a column, or its end."""
        for piece in pieces:
            if "text" in piece:
                self._texts[piece["column"]] += piece["text"]
            elif piece.get("done"):
                self._stats[piece["column"]] = _stats(piece)

    def shown(self) -> list:
        """Both conversations, and the line under each."""
        chats = [
            [*said, *self._asked, {"role": "assistant", "content": self._answer(name)}]
            for name, said in zip(COLUMNS, self.before, strict=True)
        ]
        return [*chats, *self._stats.values()]

    def _answer(self, name: str) -> Any:
        """One that can be seen, also where it is nothing but blanks."""
        text, ended = self._texts[name], bool(self._stats[name])
        if text.strip() or not ended:
            return text
        words = "(only blank lines)" if text else "(an empty answer)"
        return gr.HTML(f'<span class="gt-note gt-blank">{words}</span>')


def _stats(piece: dict) -> str:
    seconds = max(piece["seconds"], 1e-9)
    return f'<p class="gt-note">{piece["tokens"]:,} tokens · {piece["tokens"] / seconds:,.1f} tokens/s</p>'


async def in_batches(
    answers: Callable[[], Iterator[dict]], stop: Callable[[], None]
) -> AsyncIterator[list[dict]]:
    """What `answers` yields in a thread of its own, gathered: at most 15 times a second, however fast it comes.

    Raises the GemmaTuneError that it raises. Closed early, it calls `stop`.
    """
    loop, queue, gone = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

    def put(piece: Any) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, piece)

    def produce() -> None:
        try:
            for piece in answers():
                put(piece)
                if gone.is_set():
                    break
        except GemmaTuneError as error:
            put(error)
        finally:
            if not gone.is_set():  # else nobody takes it any more
                put(None)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        ended = False
        while not ended:
            pieces = [await queue.get()]
            while not queue.empty():
                pieces.append(queue.get_nowait())
            if errors := [piece for piece in pieces if isinstance(piece, GemmaTuneError)]:
                raise errors[0]
            ended = None in pieces
            yield [piece for piece in pieces if piece is not None]
            if not ended:
                await asyncio.sleep(1 / PAINTS_PER_SECOND)
    finally:
        gone.set()
        if thread.is_alive():
            stop()
