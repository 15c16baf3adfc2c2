"""The chat worker: `python -m gemma_tune.workers.chat RUN_DIR [--checkpoint FOLDER]`, JSON lines on stdin and stdout.

It holds the base and the run's result, and answers each prompt as both. Its end frees their memory; it ends with its
standard input, so it never outlives the app. `gemma_tune.runs.chat` is its client and says what the lines hold.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import sys
import threading
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from peft import LoraConfig

from gemma_tune import data, hub
from gemma_tune.config import RunConfig
from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.errors import ConfigError, Fault, GemmaTuneError, ModelError, shown
from gemma_tune.runs.chat import Sampling
from gemma_tune.runs.checkpoints import complete_checkpoints, is_complete
from gemma_tune.runs.folder import RunFolder
from gemma_tune.workers import adapters, memory, modeling
from gemma_tune.workers.decoding import Beside, Done, InTurn, MixedBatch, answers, nothing_beside

log = logging.getLogger("gemma_tune.workers.chat")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    run, token = RunFolder(options.run_dir.resolve()), os.environ.get("HF_TOKEN") or None
    wire = Wire(_own_stdout())
    try:
        chat = Chat(run, options.checkpoint, token)
    except GemmaTuneError as error:
        wire.send("error", faults=[fault.as_dict() for fault in error.faults])
        return 3
    wire.send(
        "ready", tuned=chat.tuned_path.name, mixed=chat.mixed, device=str(chat.device), images=chat.sees
    )
    while True:
        request = wire.requests.get()
        try:
            if chat.is_outdated():  # the run went on and saved another model
                del chat  # frees the old one first
                chat = Chat(run, options.checkpoint, token)
            chat.answer(request, wire)
        except GemmaTuneError as error:
            wire.send("error", id=request["id"], faults=[fault.as_dict() for fault in error.faults])
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            fault = Fault(
                "memory",
                shown(str(error)),
                "The answer does not fit into memory.",
                "Ask for fewer tokens or a shorter conversation.",
            )
            wire.send("error", id=request["id"], faults=[fault.as_dict()])


class Wire:
    """The two pipes. A thread reads requests, so that a stop is heard while an answer is being made."""

    def __init__(self, out: TextIO) -> None:
        self.requests: queue.Queue[dict] = queue.Queue()
        self._out = out
        self._stopped_id = 0
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, kind: str, **fields: object) -> None:
        self._out.write(json.dumps({"kind": kind} | fields) + "\n")
        self._out.flush()

    def is_stopped(self, request_id: int) -> bool:
        return request_id <= self._stopped_id

    def _read(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if message["kind"] == "stop":
                self._stopped_id = message["id"]
            else:
                self.requests.put(message)
        os._exit(0)  # the other end is gone: nobody waits for an answer, or for a model still being loaded


class Chat:
    """Base and tuned model in memory. Raises ModelError where they cannot be held."""

    def __init__(self, run: RunFolder, checkpoint: Path | None, token: str | None) -> None:
        self._run, self._checkpoint = run, checkpoint
        config = run.config()
        revision = run.provenance().get("model_revision", config.model.revision)
        facts = hub.inspect_model(config.model.id, revision, token)
        base_path = modeling.fetch(facts, token)
        self.tuned_path = tuned_folder(run, checkpoint)
        self._tuned_stamp = _stamp(self.tuned_path)
        self.sees = data.holds_images(run.data_dir)
        # A checkpoint does not hold how images are read, and the base's tokenizer is the same.
        self._chat = ChatTokenizer.from_folder(base_path if self.sees else self.tuned_path)
        self.mixed, self._models = _loaded(config, facts, base_path, self.tuned_path, self.sees)
        model = self._models.model
        self._reader = _image_reader(model, base_path) if self.sees else None
        self.device = model.device
        self._context_tokens = model.config.get_text_config().max_position_embeddings
        self._end_ids = set(self._chat.end_ids) | _listed(model.generation_config.eos_token_id)

    def is_outdated(self) -> bool:
        """Whether the run has something newer to show than what is held."""
        return _stamp(tuned_folder(self._run, self._checkpoint)) != self._tuned_stamp

    def answer(self, request: dict, wire: Wire) -> None:
        """Streams both columns. Raises ConfigError where messages or sampling cannot be used."""
        request_id = request["id"]
        sampling = Sampling.of(request["sampling"])
        images, beside = self._looked_at(request.get("images", []))
        prompt_ids = self._prompt_ids(request["messages"], images)
        room = self._context_tokens - len(prompt_ids)
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        stopped = partial(wire.is_stopped, request_id)
        for found in answers(self._models, self._chat, prompt_ids, sampling, self._end_ids, stopped, beside):
            wire.send("done" if isinstance(found, Done) else "piece", id=request_id, **asdict(found))
        self._models.begin()  # lets go of the cache
        wire.send("answered", id=request_id, prompt_tokens=len(prompt_ids))

    def _looked_at(self, packed: list[str]) -> tuple[list[dict], Beside]:
        """The images of a question as rows name them, and what the model takes of them. Raises ConfigError."""
        if self._reader is None:
            if packed:
                raise ConfigError.at(
                    "images", f"{len(packed)} images", "This run learned from text, and its model reads no images.",
                    "Ask without images.",
                )  # fmt: skip
            return [], nothing_beside
        from gemma_tune.workers.images import question_images

        images, pictures = question_images(packed)
        return images, lambda ids: self._reader.inputs(ids, pictures * len(ids))

    def _prompt_ids(self, messages: list[dict], images: list[dict]) -> list[int]:
        _check_turns(messages)
        ids = self._chat.encode_prompt(messages, images=images)
        if len(ids) >= self._context_tokens:
            raise ConfigError.at(
                "prompt", f"{len(ids):,} tokens",
                f"The model's context holds {self._context_tokens:,} tokens, the answer included.",
                "Shorten the prompt or clear the conversation.",
            )  # fmt: skip
        return ids


def _image_reader(model, folder: Path):
    from gemma_tune.workers.images import ImageReader

    return ImageReader.of(model, folder)


def _loaded(
    config: RunConfig, facts: hub.ModelFacts, base: Path, tuned: Path, images: bool
) -> tuple[bool, MixedBatch | InTurn]:
    """What the run began from beside its result, and whether both answer in one batch."""
    quantized = config.method.quantization if config.method.type == "qlora" else ""
    size_bytes = partial(
        memory.bytes_in,
        dtype=modeling.weights_dtype(config.model.dtype),
        quantization=quantized,
        images=images,
    )
    if config.method.type == "full":
        memory.refuse_too_large([size_bytes(base), size_bytes(tuned)])
        before = modeling.load_start(config, facts, base, images=images)
        return False, InTurn([before, modeling.load_base(config, tuned, images=images)])
    # That of a checkpoint may, of a result never does.
    if adapters.takes_from_base(LoraConfig.from_pretrained(str(tuned))):
        memory.refuse_too_large([size_bytes(base)] * 2)
        whole, rest = (modeling.load_base(config, base, images=images) for _ in range(2))
        return False, InTurn([whole, modeling.load_adapter(rest, tuned)])
    memory.refuse_too_large([size_bytes(base)])
    model, first = modeling.load_base(config, base, images=images), modeling.BASE
    if facts.adapter:
        model, first = modeling.load_adapter(model, Path(facts.adapter), modeling.START), modeling.START
    model = modeling.load_adapter(model, tuned)
    names = (first, modeling.TUNED)
    mixed = not any(adapter.use_dora for adapter in model.peft_config.values())
    return mixed, MixedBatch(model, names) if mixed else InTurn(
        [model] * 2, [partial(modeling.using, model, name) for name in names]
    )


def tuned_folder(run: RunFolder, checkpoint: Path | None) -> Path:
    """What is compared with the base: the named checkpoint, else the result, else the last whole checkpoint."""
    if checkpoint is not None:
        path = (run.path / checkpoint).resolve()
        if path.parent != run.checkpoints_dir or not is_complete(path):
            raise ModelError.at(
                "checkpoint",
                str(checkpoint),
                "This is not a whole checkpoint of the run.",
                "Choose another one.",
            )
        return path
    if run.model_dir.is_dir():
        return run.model_dir
    if whole := complete_checkpoints(run.path):
        return whole[-1][1]
    raise ModelError.at(
        "run", run.id, "The run has neither a model nor a whole checkpoint yet.",
        "Let it train until its first checkpoint, or stop and keep it.",
    )  # fmt: skip


def _stamp(folder: Path) -> tuple[str, int]:
    """Equal exactly where the folder is the same one; a result is saved as a new folder, never written into."""
    return str(folder), folder.stat().st_ino


def _check_turns(messages: list[dict]) -> None:
    """Gemma's templates know an optional system text, then user and assistant in turn."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != [("user", "assistant")[index % 2] for index in range(len(turns))] or len(turns) % 2 == 0:
        raise ConfigError.at(
            "messages", ", ".join(roles), "User and assistant take turns, and the last word is the user's.",
            "Clear the conversation and ask again.",
        )  # fmt: skip


def _listed(ids: int | list[int] | None) -> set[int]:
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def _own_stdout() -> TextIO:
    """The pipe to the client for us alone: whatever a library prints goes to the log."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


if __name__ == "__main__":
    sys.exit(main())
