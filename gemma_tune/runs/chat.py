"""The client of the chat worker, torch-free: base and tuned model answer one prompt side by side.

Lines to the worker: {"kind": "ask", "id", "messages", "sampling"} and {"kind": "stop", "id"}. A question about images
has their bytes in base64 as "images", and in its messages U+FFFC for each of them. Lines from it: "ready" (tuned, mixed,
device, images: whether it looks at some), "piece" (column, text), "done" (column, tokens, seconds, why), "answered" (prompt_tokens) and
"error" (faults). The worker ends with the pipe, and its end frees all memory that it held.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from gemma_tune.errors import ConfigError, Fault, ModelError, RunError, shown
from gemma_tune.runs.folder import find_run

COLUMNS = ("base", "tuned")
CLOSE_SECONDS = 3.0  # for the worker to end by itself before it is killed
LOG_LINES = 20
MOST_IMAGES, IMAGE_BYTES = 16, 20_000_000  # of one question; of one image as it is packed
GONE = {"kind": "gone"}  # put into the queue when the worker's output ends


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, alike for both columns. The defaults are Gemma's own."""

    temperature: float = 1.0  # 0: always the likeliest
    top_p: float = 0.95
    top_k: int = 64  # 0: no limit
    max_new_tokens: int = 256
    seed: int = 42

    @classmethod
    def of(cls, values: dict) -> Sampling:
        """Raises ConfigError with every fault at once."""
        known = {field.name for field in fields(cls)}
        faults = [
            Fault(f"sampling.{name}", shown(value), _rule(name), "Correct it or leave it out.")
            for name, value in values.items()
            if name not in known or not _fits(name, value)
        ]
        if faults:
            raise ConfigError(*faults)
        return cls(**{name: float(value) if name in ("temperature", "top_p") else int(value)
                      for name, value in values.items()})  # fmt: skip


RANGES = {  # name: lowest, highest, whole numbers only
    "temperature": (0, 5, False),
    "top_p": (0.01, 1, False),
    "top_k": (0, 100_000, True),
    "max_new_tokens": (1, 8192, True),
    "seed": (0, 2**31 - 1, True),
}


def _fits(name: str, value: object) -> bool:
    low, high, whole = RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return low <= value <= high and (not whole or value == int(value))


def _rule(name: str) -> str:
    if name not in RANGES:
        return f"There is no such setting; there are {', '.join(RANGES)}."
    low, high, whole = RANGES[name]
    return f"It must be a {'whole ' if whole else ''}number from {low} to {high}."


def _packed(images: Sequence[bytes]) -> list[str]:
    """As they travel. Raises ConfigError where there is too much of them."""
    faults = [
        Fault(f"image {number}", f"{len(image):,} bytes", f"An image may have {IMAGE_BYTES // 1_000_000} MB.",
              "Make it smaller; models read about 1,000 pixels a side.")
        for number, image in enumerate(images, 1)
        if len(image) > IMAGE_BYTES
    ]  # fmt: skip
    if len(images) > MOST_IMAGES:
        rule = f"A question may have {MOST_IMAGES} images."
        faults.append(Fault("images", f"{len(images)} images", rule, "Ask with fewer."))
    if faults:
        raise ConfigError(*faults)
    return [base64.b64encode(image).decode() for image in images]


class ChatSession:
    """One chat worker. Guards its process and pipes; one question at a time, `stop` and `close` from any thread."""

    def __init__(self, run_id: str, token: str | None = None, checkpoint: str | None = None) -> None:
        self.run = find_run(run_id)
        self._token = token
        self._checkpoint = checkpoint
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[dict] = queue.Queue()
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._asking = threading.Lock()
        self._waiting = threading.Lock()
        self._writing = threading.Lock()
        self._last_id = 0
        self.facts: dict = {}  # of the worker's "ready"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns at once; the model is loaded when `wait_ready` returns."""
        command = [sys.executable, "-m", "gemma_tune.workers.chat", str(self.run.path)]
        if self._checkpoint:
            command += ["--checkpoint", self._checkpoint]
        package_root = str(Path(__file__).resolve().parents[2])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        if self._token:
            environment["HF_TOKEN"] = self._token
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        threading.Thread(target=self._read_log, args=[self._process], daemon=True).start()
        threading.Thread(target=self._read_lines, args=[self._process], daemon=True).start()

    def wait_ready(self, timeout: float = 600) -> dict:
        """The worker's facts once the models are loaded. Raises ModelError with its reason, RunError on time."""
        with self._waiting:
            if not self.facts:
                try:
                    line = self._lines.get(timeout=timeout)
                except queue.Empty:
                    raise RunError.at(
                        "chat", f"{timeout:.0f} s", "The model was not loaded in time.",
                        "Try again, or restart the app.",
                    ) from None  # fmt: skip
                self._raise_on_error(line)
                self.facts = line
        return self.facts

    def ask(self, messages: list[dict], sampling: dict, images: Sequence[bytes] = ()) -> Iterator[dict]:
        """Lines of both columns as they come: pieces {"column", "text"}, then per column {"done": True, "column",
        "tokens", "seconds", "why"}. Closing the generator stops the answer. Raises ConfigError, ModelError, RunError.

        `images`: files of them as they are, for a run that learned from some, in the order of their places.
        """
        if not self._asking.acquire(blocking=False):
            raise RunError.at(
                "chat", self.run.id, "An answer is still being written.", "Stop it or wait for its end."
            )
        try:
            Sampling.of(sampling)
            seen = {"images": _packed(images)} if images else {}
            self._last_id += 1
            self._send(
                {"kind": "ask", "id": self._last_id, "messages": messages, "sampling": sampling, **seen}
            )
            answered = False
            try:
                yield from self._answer(self._last_id)
                answered = True
            finally:
                if not answered and self.alive:
                    self.stop()
        finally:
            self._asking.release()

    def stop(self) -> None:
        """Ends the answer being written after its present token."""
        if self.alive:
            self._send({"kind": "stop", "id": self._last_id})

    def close(self) -> None:
        """Ends the worker and frees its memory; harmless when it has ended already."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(
                process.pid, signal.SIGKILL
            )  # its own group, made by start_new_session; not yet waited for
            process.wait()

    def __enter__(self) -> ChatSession:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, request_id: int) -> Iterator[dict]:
        while True:
            line = self._lines.get()
            if line["kind"] != "gone" and line.get("id") != request_id:
                continue  # the rest of an answer that was left
            self._raise_on_error(line)
            if line["kind"] == "answered":
                return
            if line["kind"] == "done":
                yield {"done": True} | {name: line[name] for name in ("column", "tokens", "seconds", "why")}
            else:
                yield {"column": line["column"], "text": line["text"]}

    def _send(self, message: dict) -> None:
        process = self._process
        try:
            if process is None:
                raise BrokenPipeError
            with self._writing:
                process.stdin.write(json.dumps(message) + "\n")
                process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._raise_on_error(GONE)

    def _raise_on_error(self, line: dict) -> None:
        if line["kind"] == "error":
            raise ModelError(*(Fault(**fault) for fault in line["faults"]))
        if line["kind"] == "gone":
            time.sleep(0.1)  # lets the log's last lines arrive
            raise ModelError.at(
                "chat worker", "\n".join(self._log)[-300:], "The process that held the models has ended.",
                "Load them again; if it ended for lack of memory, close other programs first.",
            )  # fmt: skip

    def _read_lines(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(GONE)

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        for line in process.stderr:
            self._log.append(line.rstrip())
