"""The Compare tab: one question, answered by base and tuned side by side, from one chat worker."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from gemma_tune.errors import GemmaTuneError
from gemma_tune.runs import engine
from gemma_tune.runs.chat import ChatSession
from gemma_tune.runs.folder import list_runs
from gemma_tune.runs.hardware import Sampler
from gemma_tune.ui import asked_images, views
from gemma_tune.ui.exchange import Exchange, in_batches


class Resident:
    """The one chat worker of the app; choosing another run ends the worker before it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: ChatSession | None = None

    def of(self, run_id: str) -> ChatSession:
        """The running worker for this run, started when needed; waits until the model is loaded."""
        with self._lock:
            if self._session is None or self._session.run.id != run_id or not self._session.alive:
                self.close()
                self._session = ChatSession(run_id, token=os.environ.get("HF_TOKEN"))
                self._session.start()
            session = self._session
        session.wait_ready()
        return session

    def stop(self) -> None:
        if self._session is not None:
            self._session.stop()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


resident = Resident()


def build() -> dict[str, Any]:
    parts: dict[str, Any] = {}
    parts["picker"] = gr.Dropdown([], value=None, label="Tuned by", elem_id="compare-run")
    parts["note"] = gr.HTML("", elem_id="compare-note")
    parts["anyway"] = gr.Button("Load it beside the training run", visible=False, elem_id="compare-anyway")
    with gr.Row():
        for name, title in (("base", "Base: before"), ("tuned", "Tuned: after")):
            with gr.Column(min_width=320):
                parts[name] = gr.Chatbot(
                    label=title,
                    height="44vh",
                    elem_id=f"chat-{name}",
                    elem_classes=["gt-column", f"gt-{name}"],
                    placeholder="Its answers appear here.",
                    buttons=["copy"],
                    render_markdown=False,  # letter by letter what was answered; no image in it is fetched
                )
                parts[f"{name}_stats"] = gr.HTML("", elem_id=f"stats-{name}", min_height=22)
    with gr.Row():
        parts["prompt"] = gr.Textbox(
            placeholder="Ask both the same question", show_label=False, lines=2, max_lines=8, scale=5, elem_id="prompt",
            submit_btn=False, autofocus=False,
        )  # fmt: skip
        with gr.Column(scale=1, min_width=140):
            parts["ask"] = gr.Button("Ask both", variant="primary", elem_id="ask")
            parts["stop"] = gr.Button("Stop", elem_id="stop-answer")
    parts["images"] = asked_images.build()
    parts["held_out"] = gr.Dropdown(
        [], label="Or take a held-out question", elem_id="held-out", visible=False
    )
    with gr.Accordion("System text and sampling", open=False, elem_id="sampling"):
        parts["system"] = gr.Textbox(
            label="System text", info="Put before the question, as the model's template does it."
        )
        with gr.Row():
            parts["temperature"] = gr.Slider(
                0, 2, value=0, step=0.05, label="Temperature", info="0: always the likeliest word."
            )
            parts["top_p"] = gr.Slider(
                0.05, 1, value=0.95, step=0.05, label="Top-p", info="Only words within this share."
            )
            parts["top_k"] = gr.Slider(
                0, 200, value=64, step=1, label="Top-k", info="Only so many likeliest words; 0: all."
            )
            parts["max_new_tokens"] = gr.Slider(1, 2048, value=256, step=1, label="Longest answer (tokens)")
            parts["seed"] = gr.Number(
                0, precision=0, label="Seed", info="The same seed, the same dice for both."
            )
    parts["clear"] = gr.Button("Clear the answers", size="sm", elem_id="clear")
    return parts


def wire(parts: dict[str, Any]) -> None:
    settings = [parts[name] for name in ("system", "temperature", "top_p", "top_k", "max_new_tokens", "seed")]
    shown = [
        parts["base"],
        parts["tuned"],
        parts["base_stats"],
        parts["tuned_stats"],
        parts["note"],
        parts["anyway"],
    ]
    inputs = [parts["picker"], parts["prompt"], parts["base"], parts["tuned"], parts["images"], *settings]
    asking = gr.on(
        [parts["ask"].click, parts["prompt"].submit], _ask, inputs, shown, api_name="compare", concurrency_limit=1,
        concurrency_id="chat", show_progress="hidden",
    )  # fmt: skip
    anyway = parts["anyway"].click(
        _ask_anyway, inputs, shown, api_name="compare_anyway", api_visibility="private", concurrency_limit=1,
        concurrency_id="chat", show_progress="hidden",
    )  # fmt: skip
    parts["stop"].click(lambda: resident.stop(), None, None, queue=False, api_name="stop_answer")
    parts["clear"].click(
        lambda: [[], [], "", ""], None, shown[:4], cancels=[asking, anyway], api_name="clear_answers",
        api_visibility="private",
    )  # fmt: skip
    parts["picker"].change(
        lambda run_id: [*offer(run_id), [], [], "", ""], parts["picker"], [*offered(parts), *shown[:4]],
        api_name="compare_run", api_visibility="private",
    )  # fmt: skip
    parts["held_out"].input(
        _take, [parts["picker"], parts["held_out"]], [parts["prompt"], parts["images"]], api_name="held_out",
        api_visibility="private", queue=False, show_progress="hidden",
    )  # fmt: skip


def offered(parts: dict[str, Any]) -> list:
    """The components that `offer` updates."""
    return [parts["held_out"], parts["images"], parts["note"]]


def offer(run_id: str | None) -> list:
    """The held-out questions of a run, and what stands in the way of asking."""
    if not run_id:
        empty = views.notice(
            "", "No run is chosen", "Finish a run first; then ask both the same question here."
        )
        return [gr.update(visible=False), gr.update(visible=False, value=None), empty]
    state = engine.read_state(run_id)
    questions = [(asked_images.spoken(sample["prompt"]), row) for row, sample in enumerate(state.samples)]
    nothing = views.notice("warm", "No model yet", "This run has saved nothing so far.")
    return [
        gr.update(choices=questions, value=None, visible=bool(questions)),
        gr.update(visible=asked_images.are_learned(run_id), value=None),
        "" if state.can_compare else nothing,
    ]


def _take(run_id: str, row: int) -> list:
    """A held-out question with its images."""
    sample = engine.read_state(run_id).samples[row]
    return [asked_images.spoken(sample["prompt"]), asked_images.of_sample(run_id, sample)]


def make_room() -> None:
    """Before a run starts: the chat's model leaves the GPU, which the run needs whole."""
    if Sampler().gpus():
        resident.close()


async def _ask(
    run_id: str | None, prompt: str, base: list, tuned: list, images: list | None, *settings: Any
) -> AsyncIterator[list]:
    if other := _training_on_the_gpu():
        text = f"{other} trains on the only GPU. Loading a model beside it can end it with out of memory."
        yield [gr.skip()] * 4 + [views.notice("warm", "A run is training", text), gr.update(visible=True)]
        return
    async for update in _ask_anyway(run_id, prompt, base, tuned, images, *settings):
        yield update


async def _ask_anyway(
    run_id: str | None, prompt: str, base: list, tuned: list, images: list | None, *settings: Any
) -> AsyncIterator[list]:
    """Stream both answers."""
    prompt = (prompt or "").strip()
    if not run_id or not prompt:
        missing = "Choose a run above." if not run_id else "Write a question below."
        yield [gr.skip()] * 4 + [views.notice("", "Nothing to ask yet", missing), gr.update(visible=False)]
        return
    pictures = asked_images.files_of(images)
    exchange = Exchange(prompt, pictures, before=(base or [], tuned or []))
    loading = views.notice("", "Loading the model", "The first question waits for it; the next ones do not.")
    yield [*exchange.shown(), loading, gr.update(visible=False)]

    def answers() -> Iterator[dict]:
        seen = [Path(path).read_bytes() for path in pictures]
        return resident.of(run_id).ask(_messages(prompt, settings, pictures), _sampling(settings), seen)

    try:
        async with aclosing(in_batches(answers, stop=lambda: resident.stop())) as batches:
            async for pieces in batches:
                exchange.take(pieces)
                yield [*exchange.shown(), "", gr.update(visible=False)]
    except GemmaTuneError as error:
        yield [*exchange.before, "", "", views.fault_list(error.faults, "No answer"), gr.skip()]


def _messages(prompt: str, settings: tuple, pictures: list[str]) -> list[dict]:
    system = (settings[0] or "").strip()
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": asked_images.placed(prompt, len(pictures))}]


def _sampling(settings: tuple) -> dict[str, Any]:
    _, temperature, top_p, top_k, max_new_tokens, seed = settings
    return {
        "temperature": float(temperature),
        "top_p": float(top_p),
        "top_k": int(top_k),
        "max_new_tokens": int(max_new_tokens),
        "seed": int(seed or 0),
    }


def _training_on_the_gpu() -> str | None:
    """The name of a live run where this machine has one GPU only; None where asking is harmless."""
    if len(Sampler().gpus()) != 1:
        return None
    for folder in list_runs():
        state = engine.read_state(folder.id)
        if state.is_live and state.status != "queued":
            return state.name or folder.id
    return None
