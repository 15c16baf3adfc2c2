"""What the data layer costs: time to preview, rows checked per second, tokenising beside the bare tokenizer, memory.

`python -m benchmarks.data [--rows 100000] [--gigabyte]`. Rows are made of the words of the built-in examples, with a
seed. The bare tokenizer is `encode_batch` and `.ids` on ready texts, one process per core, which are started alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import psutil

from gemma_tune import config, data
from gemma_tune.data import parallel
from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.pocket import MODEL_DIR

PAIRS = 3
TEXTS_AT_ONCE = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--gigabyte", action="store_true", help="also read, check and preview 1 GB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(GEMMA_TUNE_HOME=f"{folder}/home", GEMMA_TUNE_ROOTS=folder)
        rows = write_rows(Path(folder) / "rows.jsonl", rows=options.rows)
        print(f"{options.rows:,} rows, {rows.stat().st_size / 1e6:.0f} MB, {parallel.cores()} cores")
        check(rows)
        tokenise(rows)
        if options.gigabyte:
            big = write_rows(Path(folder) / "gigabyte.jsonl", size_bytes=1_000_000_000)
            print(f"{big.stat().st_size / 1e9:.2f} GB")
            check(big)


def write_rows(path: Path, rows: int = 0, size_bytes: int = 0) -> Path:
    """Instruction and answer, 100 to 1,800 characters, until there are so many rows or bytes."""
    chosen = random.Random(0)
    examples = Path(__file__).parent.parent / "examples"
    words = sorted(
        {word for file in examples.glob("*/train.*") for word in file.read_text().split() if word.isalpha()}
    )
    with path.open("w", encoding="utf-8") as file:
        count = size = 0
        while count < rows or size < size_bytes:
            question, answer = (
                " ".join(chosen.choices(words, k=chosen.randint(*span))) for span in ((8, 40), (10, 280))
            )
            count += 1
            size += file.write(json.dumps({"instruction": question, "output": f"{answer} {count}"}) + "\n")
    return path


def check(path: Path) -> None:
    """Preview, first and second check, memory of this process and of those that it starts."""
    began = time.perf_counter()
    data.read(str(path), limit=50)
    print(f"  preview of 50 rows: {1000 * (time.perf_counter() - began):.0f} ms")
    for name in ("first", "second"):
        with Peak() as peak:
            began, phases = time.perf_counter(), {}
            report = data.check(configured(path), watch=lambda phase, done, total, seen=phases: seen.setdefault(phase, time.perf_counter()))  # fmt: skip
            seconds = time.perf_counter() - began
        marks = [*phases.items(), ("", began + seconds)]
        spent = ", ".join(
            f"{phase} {until - at:.1f} s" for (phase, at), (_, until) in zip(marks, marks[1:], strict=False)
        )
        print(
            f"  {name} check: {seconds:.1f} s, {report.rows_read / seconds:,.0f} rows/s ({spent}); memory +{peak.own_mb:.0f} MB "
            f"here, {peak.children_mb:.0f} MB in processes; {report.total_tokens:,} tokens"
        )


def configured(path: Path) -> config.RunConfig:
    return config.parse({"data": {"source": str(path)}})


def tokenise(path: Path) -> None:
    """Our whole tokenising (rendering, masks, writing) beside the bare tokenizer, interleaved."""
    store = data.prepare(configured(path)).store
    chat = ChatTokenizer.from_folder(MODEL_DIR)
    texts = [chat.text_of(row) for row in store.rows(range(len(store)))]
    ours, bare = [], []
    for pair in range(PAIRS):
        os.environ["GEMMA_TUNE_HOME"] = f"{path.parent}/home-{pair}"  # nothing is in this cache yet
        began = time.perf_counter()
        data.tokens_of(store, MODEL_DIR, True, data.unwatched)
        ours.append(len(store) / (time.perf_counter() - began))
        began = time.perf_counter()
        pieces = (texts[at : at + TEXTS_AT_ONCE] for at in range(0, len(texts), TEXTS_AT_ONCE))
        tokens = sum(parallel.in_order(partial(tokenise_bare, folder=MODEL_DIR), pieces, weigh))
        bare.append(len(store) / (time.perf_counter() - began))
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    print(
        f"  tokenising: ours {statistics.median(ours):,.0f} rows/s, bare {statistics.median(bare):,.0f} rows/s, "
        f"{statistics.median(ratios):.0%} of it ({', '.join(f'{ratio:.0%}' for ratio in ratios)}); {tokens / len(store):.0f} tokens a row"
    )


def tokenise_bare(texts: list[str], folder: Path) -> int:
    found = ChatTokenizer.from_folder(folder).tokenizer.encode_batch(texts, add_special_tokens=False)
    return sum(len(one.ids) for one in found)


def weigh(texts: list[str]) -> int:
    return sum(map(len, texts))


class Peak:
    """The largest memory of this process above its beginning, and of its children, while it is open."""

    def __enter__(self) -> Peak:
        self._process, self._done = psutil.Process(), threading.Event()
        self._start = self._process.memory_info().rss
        self.own_mb = self.children_mb = 0.0
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.05):
            self.own_mb = max(self.own_mb, (self._process.memory_info().rss - self._start) / 1e6)
            self.children_mb = max(self.children_mb, sum(map(_rss, self._process.children())) / 1e6)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


if __name__ == "__main__":
    main()
