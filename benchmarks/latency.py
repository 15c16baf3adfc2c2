"""From an event's time to the figure on the screen, in a real browser: `python -m benchmarks.latency [SECONDS]`.

A run whose worker writes five metrics a second; the page notes when each step appears. Prints median and 95th percentile.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PORT = 7899
EVENTS_PER_SECOND = 5
WORKER = f"""
import sys, time, os
from gemma_tune.runs.events import EventWriter
writer = EventWriter(sys.argv[1], f"worker-{{os.getpid()}}")
writer.write("phase", name="training")
for step in range(1, 100_000):
    writer.write("metrics", step=step, max_steps=100_000, loss=1.0 / step, learning_rate=1e-4, grad_norm=1.0,
                 tokens=100 * step, step_seconds=0.2)
    time.sleep({1 / EVENTS_PER_SECOND})
"""
OBSERVE = """() => { window.seen = [];
  const card = document.querySelector('#monitor [data-card="step"] strong');
  new MutationObserver(() => window.seen.push([Number(card.textContent.replaceAll(',', '')), Date.now() / 1000]))
    .observe(card, {childList: true, characterData: true, subtree: true}); }"""


def main(seconds: float = 60) -> None:
    with tempfile.TemporaryDirectory() as home:
        script = Path(home) / "worker.py"
        script.write_text(WORKER)
        os.environ |= {
            "GEMMA_TUNE_HOME": home,
            "GEMMA_TUNE_WORKER_COMMAND": json.dumps([sys.executable, str(script)]),
        }
        from gemma_tune.config import RunConfig
        from gemma_tune.runs import engine

        app = subprocess.Popen([sys.executable, "app.py", "--port", str(PORT)], cwd=ROOT)
        run_id = engine.start(RunConfig())
        try:
            seen = watch(run_id, seconds)
        finally:
            engine.stop(run_id, now=True)
            wait_for_end(engine, run_id)
            app.kill()
            app.wait()
        written = event_times(Path(home) / "runs" / run_id / "events.jsonl")
    late = sorted(1000 * waited for waited in delays(seen, written))
    p95 = late[int(0.95 * len(late))]
    print(f"{len(late)} events, {len(seen)} updates of the page in {seconds:.0f} s")
    print(f"event to screen: median {statistics.median(late):.0f} ms, 95th percentile {p95:.0f} ms")


def delays(seen: list[tuple[int, float]], written: dict[int, float]) -> list[float]:
    """Seconds from each event until the page showed it or a later one."""
    found = []
    for (before, _), (shown, when) in zip(seen, seen[1:], strict=False):
        found += [when - written[step] for step in range(before + 1, shown + 1)]
    return found


def watch(run_id: str, seconds: float) -> list[tuple[int, float]]:
    """(step, unix time) of each change of the step's figure on the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = shutil.which(os.environ.get("CHROMIUM", "chromium"))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        for _ in range(100):
            try:
                page.goto(f"http://127.0.0.1:{PORT}/?tab=watch&run={run_id}")
                break
            except Exception:  # noqa: BLE001 - the app is still starting
                time.sleep(0.3)
        page.wait_for_selector('#monitor [data-card="step"]')
        page.evaluate(OBSERVE)
        page.wait_for_timeout(1000 * seconds)
        seen = page.evaluate("window.seen")
        browser.close()
    return [(int(step), when) for step, when in seen]


def event_times(path: Path) -> dict[int, float]:
    from gemma_tune.runs.events import read_events

    events, _ = read_events(path)
    return {event["step"]: event["time"] for event in events if event["kind"] == "metrics"}


def wait_for_end(engine, run_id: str) -> None:
    while engine.read_state(run_id).is_live:
        time.sleep(0.1)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60)
