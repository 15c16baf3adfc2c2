"""Seconds from `python app.py` to the first answer, beside an empty Gradio app; both in one run, interleaved.

`python -m benchmarks.startup [ROUNDS]`. Promise: at most 1.2 times the empty app.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROMISE = 1.2
PATIENCE_SECONDS = 90
EMPTY = """
import os
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr
with gr.Blocks() as demo:
    gr.Markdown("empty")
demo.launch(server_port=int(os.environ["GRADIO_SERVER_PORT"]), quiet=True, run_history=False)
"""


def main(rounds: int = 7) -> float:
    commands = {"empty Gradio app": [sys.executable, "-c", EMPTY], "Gemma Tune": [sys.executable, "app.py"]}
    for command in commands.values():  # warms the disk's cache
        first_answer(command)
    walls: dict[str, list[float]] = {name: [] for name in commands}
    processor: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            wall, used = first_answer(command)
            walls[name].append(wall)
            processor[name].append(used)
    print("| to the first answer | wall s, median (min to max) | CPU s, median |\n| --- | --- | --- |")
    for name in commands:
        spread = f"{min(walls[name]):.2f} to {max(walls[name]):.2f}"
        print(
            f"| {name} | {statistics.median(walls[name]):.2f} ({spread}) | {statistics.median(processor[name]):.2f} |"
        )
    ratios = [ours / empty for ours, empty in zip(*reversed(list(processor.values())), strict=True)]
    ratio = statistics.median(ratios)
    print(f"\nCPU ratio, median of pairs: {ratio:.2f} (promise: at most {PROMISE})")
    return ratio


def first_answer(command: list[str]) -> tuple[float, float]:
    """(wall seconds, CPU seconds) until the page answers with 200."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GEMMA_TUNE_HOME": home}
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not _answers(port):
                if process.poll() is not None or time.monotonic() - began > PATIENCE_SECONDS:
                    raise RuntimeError(f"{command[-1][:40]} did not answer")
                time.sleep(0.01)
            return time.monotonic() - began, _cpu_seconds(process.pid)
        finally:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _cpu_seconds(pid: int) -> float:
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7) > PROMISE)
