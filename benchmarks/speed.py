"""Training speed beside plain TRL and LLaMA-Factory: `python -m benchmarks.speed`, then `--write` for docs/benchmarks.md.

Gemma 3's true shape with random weights, chats of mixed length, one core for each side. Sides take turns (A B C A B C …),
each in a process of its own; what counts is tokens without padding per CPU second after a warm-up step. Results lie in
the cache folder after every turn: a measurement that was broken off goes on where it was, `--fresh` begins anew.
`--make-peer` installs LLaMA-Factory there first; tcmalloc comes from Debian's libtcmalloc-minimal4.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks import speed_setup as setup
from benchmarks import speed_table as table

ROOT = Path(__file__).parent.parent
SIDES_SCRIPT = ROOT / "benchmarks" / "speed_sides.py"
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = setup.CACHE / "speed.json"
HOME = setup.CACHE / "home"  # of our runs; its cache of tokens stays between turns
WARM_UP_STEPS = 1
PATIENCE_SECONDS = 3600

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
LEARNING_RATES = {"lora": 2e-4, "full": 2e-5}
TRL = {"trl": {}, "trl-float32": {"bf16": False}}  # what each changes of TRL's defaults
OURS = {  # and of ours
    "ours": [],
    "ours-selective": ["train.selective_checkpointing=true"],
    "ours-fastest": ["train.activation_checkpointing=false"],
}
if setup.computes_bfloat16():  # smaller weights would be another training in full fine-tuning
    OURS["ours-smallest"] = ["model.dtype=bfloat16"]
SIDES = {
    "lora": [*TRL, "llamafactory", *OURS, "whole-run"],
    "full": [*TRL, "llamafactory", "ours", "ours-selective", "ours-fastest"],
}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.make_peer:
        setup.make_peer()
    elif options.write:
        PAGE.write_text(table.with_section(PAGE.read_text(encoding="utf-8"), section()), encoding="utf-8")
    else:
        measure_all(options)
        print(section())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--make-peer", action="store_true", help="install LLaMA-Factory into the cache folder"
    )
    parser.add_argument(
        "--write", action="store_true", help="render the last results into docs/benchmarks.md"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="measured, after one of warm-up")
    parser.add_argument("--shapes", nargs="+", choices=setup.SHAPES, default=["270m"])
    parser.add_argument("--methods", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--malloc", nargs="+", choices=table.ALLOCATORS, default=list(table.ALLOCATORS))
    parser.add_argument("--sides", nargs="+", choices=SIDES["lora"], default=SIDES["lora"])
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    return parser.parse_args(arguments)


def measure_all(options: argparse.Namespace) -> None:
    """Every combination in turns, each as soon as the last one has ended."""
    if options.fresh:
        RESULTS.unlink(missing_ok=True)
    setup.CACHE.mkdir(parents=True, exist_ok=True)
    known = [one for one in results() if one["steps"] == options.steps]
    names = ("repeat", "shape", "method", "malloc")
    for turn in itertools.product(range(options.repeats), options.shapes, options.methods, options.malloc):
        for side in (side for side in SIDES[turn[2]] if side in options.sides):
            key = dict(zip(names, turn, strict=True)) | {"side": side, "steps": options.steps}
            if not is_measured(known, key):
                known.append(key | measure(key, options))
                RESULTS.write_text(json.dumps({"machine": machine(), "results": known}, indent=1))
                print(table.line(known[-1]), flush=True)


def results() -> list[dict]:
    return json.loads(RESULTS.read_text())["results"] if RESULTS.is_file() else []


def is_measured(known: list[dict], key: dict) -> bool:
    """Whether this turn was taken. A peer as it comes uses the system's allocator, so that it need not run twice."""
    peer = key["side"] in table.PEERS
    same = key | {"malloc": "glibc"} if peer and key["malloc"] == "as-installed" else key
    return any(same.items() <= one.items() or key.items() <= one.items() for one in known)


def measure(key: dict, options: argparse.Namespace) -> dict:
    """One turn of one side."""
    side, method = key["side"], key["method"]
    job = {
        "side": {**dict.fromkeys(TRL, "trl"), **dict.fromkeys(OURS, "ours")}.get(side, side),
        "arguments": TRL.get(side, {}),
        "lora": LORA if method == "lora" else None,
        "learning_rate": LEARNING_RATES[method],
        "micro_batch": setup.MICRO_BATCH,
        "steps": WARM_UP_STEPS + options.steps,
        "model": str(setup.model_folder(key["shape"])),
        "rows": str(setup.rows_folder()),
    }
    counts = setup.token_counts(key["shape"])
    with tempfile.TemporaryDirectory() as folder:
        job |= {"folder": f"{folder}/output", "found": f"{folder}/found.json"}
        environment = base_environment(key["malloc"])
        if side not in table.PEERS:
            environment |= our_job(job, method, OURS.get(side, []), environment)
        spend(job, environment, options.core)
        found = json.loads(Path(job["found"]).read_text())
    if "measured_cpu_seconds" in found:
        first, last = setup.MICRO_BATCH * WARM_UP_STEPS, setup.MICRO_BATCH * job["steps"]
        found["tokens_per_cpu_second"] = sum(counts[first:last]) / found["measured_cpu_seconds"]
    return found


def base_environment(malloc: str) -> dict[str, str]:
    """One thread, no network, the allocator asked for; each side has caches of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment |= {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GEMMA_TUNE_HOME": str(HOME), "GEMMA_TUNE_ROOTS": str(setup.CACHE),
        "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT),  # our side is this tree's, whichever is installed
    }  # fmt: skip
    if malloc == "glibc":
        environment["GEMMA_TUNE_TCMALLOC"] = "0"  # else our worker takes tcmalloc where it is installed
    if malloc == "tcmalloc":
        environment["LD_PRELOAD"] = setup.tcmalloc() or sys.exit("apt-get install libtcmalloc-minimal4")
    return environment


def our_job(job: dict, method: str, overrides: list[str], environment: dict[str, str]) -> dict[str, str]:
    """Makes the run folder that the worker is given; returns the environment in which the product starts it."""
    from gemma_tune import config
    from gemma_tune.runs.folder import create_run
    from gemma_tune.runs.launch import worker_environment

    own = [
        "method.type=" + method,
        *(f"method.{name}={value}" for name, value in (job["lora"] or {}).items()),
    ]
    common = {
        "model": {"id": job["model"]},
        "data": {"source": f"{job['rows']}/messages.jsonl", "validation_fraction": 0.0},
        "train": {
            "per_device_train_batch_size": job["micro_batch"], "max_steps": job["steps"], "warmup_steps": 0,
            "learning_rate": job["learning_rate"], "lr_scheduler_type": "constant",
        },
        "eval": {"eval_steps": 0, "exact_match_rows": 0},
        "output": {"save_steps": 1000},
        "advanced": {"trainer": {"train_sampling_strategy": "sequential"}},
    }  # fmt: skip
    os.environ |= environment
    shutil.rmtree(HOME / "runs", ignore_errors=True)
    settings = config.parse(config.apply_overrides(common, [*own, *overrides]))
    job["config"] = f"{Path(job['found']).parent}/config.yaml"
    Path(job["config"]).write_text(settings.to_yaml())
    if job["side"] == "whole-run":
        return {}
    run = create_run(settings)
    job["run"] = str(run.path)
    return worker_environment(run.path, run.values())


def spend(job: dict, environment: dict[str, str], core: int) -> None:
    """Runs the side on its core; a side that fails ends the measurement with the end of its output."""
    peer = job["side"] == "llamafactory"
    python = str(setup.PEER_PYTHON) if peer else sys.executable
    if peer and not setup.PEER_PYTHON.exists():
        sys.exit("LLaMA-Factory is not installed: python -m benchmarks.speed --make-peer")
    path = Path(job["found"]).with_name("job.json")
    path.write_text(json.dumps(job))
    done = subprocess.run(
        ["taskset", "--cpu-list", str(core), python, str(SIDES_SCRIPT), str(path)],
        env=environment | {"HF_HOME": str(setup.CACHE / f"hf-{job['side']}")},
        cwd=path.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    if not Path(job["found"]).is_file():
        sys.exit(f"{job['side']} ended with {done.returncode}:\n{done.stdout[-5000:]}")


def machine() -> str:
    """Processor, cores, memory and versions in one line."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    processor = names[0].partition(": ")[2] if names else platform.machine()
    return f"{len(names) or os.cpu_count()} cores ({processor}), {memory:.0f} GiB, Python {platform.python_version()}, {versions}"


def section() -> str:
    stored = json.loads(RESULTS.read_text())
    return table.section(stored["machine"], stored["results"], setup.TITLES)


if __name__ == "__main__":
    main()
