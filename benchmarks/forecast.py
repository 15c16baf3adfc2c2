"""The forecast beside real steps: `python -m benchmarks.forecast`, then `--write` for docs/forecast.md.

Models of true shape with random weights, cut in depth where they would not fit, at their true vocabulary. Each
configuration is measured in a process of its own by `gemma_tune.workers.measure`: our own trainer, two optimizer steps on
the longest rows, one validation batch where asked. What the process held before the model came is taken off both sides.
Results lie in the cache folder, so that a measurement that was broken off goes on where it was; `--fresh` begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.forecast_cases import CASES, SET_BEFORE, Case, model_config
from benchmarks.speed_setup import tcmalloc
from gemma_tune import catalog
from gemma_tune.config import RunConfig, apply_overrides, parse
from gemma_tune.forecast import LIBRARIES_BYTES, Device, Forecast, Lengths, forecast
from gemma_tune.geometry import from_config

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "forecast.md"
CACHE = Path(os.environ.get("GEMMA_TUNE_BENCH", Path.home() / ".cache" / "gemma-tune-bench")) / "forecast"
RESULTS = CACHE / "results.json"
PATIENCE_SECONDS = 1_800
PROMISED = 0.15  # the largest error
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="render the last results into docs/forecast.md")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--only", default="", help="configurations whose name holds this")
    options = parser.parse_args(arguments)
    CACHE.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        RESULTS.unlink(missing_ok=True)
    if not options.write:
        _measure_all(options.only)
    page = render(_results())
    if options.write:
        PAGE.write_text(page, encoding="utf-8")
    print(page)


def _results() -> dict[str, dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def _measure_all(only: str) -> None:
    for case in CASES:
        results = _results()
        if only in case.key and (only or case.key not in results):
            results[case.key] = measured = _measure(case)
            RESULTS.write_text(json.dumps(results, indent=1))
            print(_row(case, measured), flush=True)


# ---- one configuration -----------------------------------------------------------------------------------------------
def _measure(case: Case) -> dict:
    """The last line of `measure`. Raises RuntimeError with the end of its log."""
    path = CACHE / "config.yaml"
    path.write_text(config_of(case).to_yaml(complete=True), encoding="utf-8")
    environment = os.environ | allocator_environment(case) | {
        "GEMMA_TUNE_HOME": str(CACHE / "home"), "GEMMA_TUNE_ROOTS": str(CACHE), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "gemma_tune.workers.measure", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=PATIENCE_SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"{case.key}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def allocator_environment(case: Case) -> dict[str, str]:
    """As a run has it, or the system's own. Raises RuntimeError where tcmalloc is not installed."""
    if case.allocator == "system":
        return {}
    if library := tcmalloc():
        return {"LD_PRELOAD": library}
    raise RuntimeError("Install tcmalloc first: apt-get install libtcmalloc-minimal4")


def config_of(case: Case) -> RunConfig:
    values = {
        "model": {"id": str(_model(case.shape))},
        "data": {"source": str(_rows(case)), "validation_source": str(_rows(case, "held"))},
        "train": {"max_steps": 2, "max_length": 2_048},
        "eval": {"eval_steps": 0, "per_device_eval_batch_size": len(case.tokens), "exact_match_rows": 0},
    }
    return parse(apply_overrides(values, list(case.overrides)))


def forecast_of(case: Case) -> Forecast:
    """What the page would say, from the model's config.json and the lengths of the rows."""
    config = config_of(case)
    shape = from_config(json.loads((Path(config.model.id) / "config.json").read_text()))
    memory = psutil.virtual_memory()
    where = {"kind": "cpu", "name": "this CPU", "count": 1, "bfloat16": False, "allocator": case.allocator}
    device = Device(memory_bytes=memory.total, free_bytes=memory.available, **where)
    counts = sorted((sum(row) for row in _counts(case)), reverse=True)
    learned = sum(answer for _, answer in _counts(case)) / sum(counts)
    return forecast(
        config, shape, device, Lengths(len(counts), sum(counts), counts[0], learned, tuple(counts))
    )


def _model(shape: str) -> Path:
    """A checkpoint of random weights, made once."""
    from gemma_tune.workers.measure import make_random

    folder = CACHE / shape.lower().replace(" ", "-").replace(",", "")
    if not (folder / "tokenizer.json").is_file():
        make_random(model_config(shape) | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}, folder)
        for name in TOKENIZER_FILES:
            (folder / name).write_bytes((catalog.POCKET_DIR / name).read_bytes())
    return folder


def _rows(case: Case, side: str = "train") -> Path:
    """Chats of about so many tokens."""
    pairs = any("dpo" in override for override in case.overrides)
    path = CACHE / f"{side}-{'pairs-' * pairs}{'-'.join(map(str, case.tokens))}.jsonl"
    if not path.is_file():
        begin = 0 if side == "train" else 50
        rows = [_chat(tokens, begin + number, pairs) for number, tokens in enumerate(case.tokens)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _chat(tokens: int, number: int, pairs: bool) -> dict:
    """The words are single tokens; the template adds about twelve. Two fifths are the answer."""
    answer = max((2 * tokens) // 5, 4)
    question = [{"role": "user", "content": _words(tokens - answer - 12, number)}]
    reply = [{"role": "assistant", "content": _words(answer, number + 100)}]
    if pairs:
        other = [{"role": "assistant", "content": _words(answer, number + 205)}]
        return {"prompt": question, "chosen": reply, "rejected": other}
    return {"messages": question + reply}


WORDS = ("red", "blue", "green", "small", "big", "old", "new", "the", "a", "in")


def _words(count: int, number: int) -> str:
    """`count` short words in an order of their own, so that no row is a copy of another."""
    return " ".join(
        WORDS[(index * (number + 3) + index // 7 + number) % len(WORDS)] for index in range(max(count, 1))
    )


def _counts(case: Case) -> list[tuple[int, int]]:
    """(prompt tokens, answer tokens) of each row as it is trained on; of a pair the longer answer."""
    from gemma_tune.data.rendering import ChatTokenizer

    chat = ChatTokenizer.from_folder(_model(case.shape))
    counted = []
    for line in _rows(case).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = row.get("prompt") or row["messages"][:1]
        answers = [row[side] for side in ("chosen", "rejected")] if "chosen" in row else [row["messages"][1:]]
        begun = len(_ids(chat, question, open_turn=True))
        whole = max(len(_ids(chat, question + answer)) for answer in answers)
        counted.append((begun, whole - begun))
    return counted


def _ids(chat, messages: list[dict], *, open_turn: bool = False) -> list[int]:
    text = chat.render(messages, add_generation_prompt=open_turn)
    return chat.tokenizer.encode(text, add_special_tokens=False).ids


# ---- the page ----------------------------------------------------------------------------------------------------------
def compared(case: Case, measured: dict) -> tuple[float, float, float]:
    """(measured, forecast) bytes beside what the process held before the model, and the forecast's error."""
    took = measured["peak_bytes"] - measured["before_bytes"]
    told = forecast_of(case).peak_bytes - LIBRARIES_BYTES["cpu"]
    return took, told, told / took - 1


def _row(case: Case, measured: dict) -> str:
    took, told, error = compared(case, measured)
    settings = ", ".join(
        override.partition(".")[2].replace("per_device_train_", "") for override in case.overrides
    )
    rows = " + ".join(map(str, case.tokens))
    settings += ", the system's allocator" if case.allocator == "system" else ""
    return f"| {case.shape} | {rows} | {settings} | {took / 1e6:,.0f} | {told / 1e6:,.0f} | {error:+.0%} |"


def render(results: dict[str, dict]) -> str:
    done = [case for case in CASES if case.key in results]
    errors = [abs(compared(case, results[case.key])[2]) for case in done]
    within = sum(error <= PROMISED for error in errors)
    lines = [
        "# The forecast beside measurements",
        "",
        "Made by `python -m benchmarks.forecast`; do not edit. Peak resident memory of the training process beside what it "
        "held before the model was loaded, in MB, two optimizer steps on the longest rows by our own trainer, and one "
        "validation batch. Random weights in Gemma's true shapes and vocabularies; larger models are cut in depth.",
        "",
        f"Machine: {platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, no GPU; tcmalloc where nothing else is said, one thread; torch "
        f"{version('torch')}, transformers {version('transformers')}, TRL {version('trl')}.",
        "",
        f"{within} of {len(done)} within {PROMISED:.0%}; the largest error is {max(errors, default=0):.0%}.",
        "",
        "The constants of activations come from the live tensors of small models. What an allocator keeps, what optimizers "
        "take for a moment and the chunks of TRL's loss were fitted to rows of this table; its last "
        f"{SET_BEFORE} rows were measured afterwards, but for what the system's allocator keeps, which was set anew from all of "
        "its rows when workers began to ask for huge pages.",
        "",
        "| model | tokens of the rows | settings | measured | forecast | error |",
        "|---|---|---|---|---|---|",
        *(_row(case, results[case.key]) for case in done),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
