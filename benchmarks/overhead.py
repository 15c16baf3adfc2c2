"""What our events, stop file, markers and hardware sampler cost beside a plain TRL script: `python -m benchmarks.overhead`.

Pocket Gemma, LoRA, the built-in example. Plain and ours take turns in one process, so that a busy machine slows both
alike; CPU seconds are compared, since wall time on a shared machine is noise. The time spent inside our callbacks is
also measured by itself, which is exact. The sampler, a process of its own in a real run, is measured per sample.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["GEMMA_TUNE_HOME"] = tempfile.mkdtemp()

import datasets
import psutil
import torch
import transformers
from transformers import TrainerCallback
from trl import SFTTrainer

from gemma_tune import catalog, config
from gemma_tune.data import ChatTokenizer, prepare
from gemma_tune.runs import hardware
from gemma_tune.runs.events import EventWriter
from gemma_tune.runs.folder import create_run
from gemma_tune.workers import callbacks, dataset, modeling, trainers

POCKET = Path(catalog.local_path("pocket"))
WARM_UP_STEPS = 5
SAMPLE_SECONDS = 2.0  # as the supervisor samples


class Clock(TrainerCallback):
    """CPU and wall seconds from the end of the warm-up to the last step."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == WARM_UP_STEPS:
            self.cpu, self.wall = time.process_time(), time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        steps = state.global_step - WARM_UP_STEPS
        self.cpu_per_step = (time.process_time() - self.cpu) / steps
        self.wall_per_step = (time.perf_counter() - self.wall) / steps


class Stopwatch:
    """Adds up the seconds spent in the methods of our callbacks."""

    def __init__(self, told: list[TrainerCallback]) -> None:
        self.seconds = 0.0
        for callback in told:
            for name in (
                "on_step_begin",
                "on_step_end",
                "on_log",
                "on_evaluate",
                "on_prediction_step",
                "on_save",
            ):
                setattr(callback, name, self._timed(getattr(callback, name)))

    def _timed(self, call):
        def timed(*args, **kwargs):
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    settings = config.parse(
        {
            "data": {"source": "example:pocket-json"},
            "train": {"max_steps": options.steps, "learning_rate": 3e-3, "activation_checkpointing": False},
            "output": {"save_steps": 10.0},
            "eval": {"eval_steps": 0},
        }
    )
    chat = ChatTokenizer.from_folder(POCKET)
    encoded = dataset.encode(chat, prepare(settings).train, settings, lambda: None)
    tokens = encoded.tokens / len(encoded.rows) * settings.train.per_device_train_batch_size
    plain, ours, inside = [], [], []
    for _ in range(options.repeats):
        plain.append(train_plain(settings, encoded.rows))
        clock, share = train_ours(settings, encoded.rows)
        ours.append(clock)
        inside.append(share)
    sampler = sampler_share()
    print_table(plain, ours, inside, sampler, tokens)


def train_plain(settings: config.RunConfig, rows: list[dict]) -> Clock:
    clock = Clock()
    args = trainers.sft_config(settings, Path(tempfile.mkdtemp()), has_validation=False)
    trainer = SFTTrainer(
        modeling.load_model(POCKET, torch.float32),
        args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=modeling.load_tokenizer(POCKET),
        peft_config=trainers.lora_config(settings),
        callbacks=[clock],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return clock


def train_ours(settings: config.RunConfig, rows: list[dict]) -> tuple[Clock, float]:
    """The clock, and the share of the wall time that was spent in our callbacks."""
    run, clock = create_run(settings), Clock()
    with EventWriter(run.path, f"worker-{os.getpid()}") as writer:
        told = [callbacks.EventCallback(run, writer.write), callbacks.StopCallback(run)]
        stopwatch = Stopwatch(told)
        args = trainers.sft_config(settings, run.checkpoints_dir, has_validation=False)
        model, tokenizer = modeling.load_model(POCKET, torch.float32), modeling.load_tokenizer(POCKET)
        trainers.build_trainer(settings, args, model, tokenizer, rows, [], [*told, clock]).train()
    return clock, stopwatch.seconds / settings.train.max_steps / clock.wall_per_step


def sampler_share(samples: int = 20) -> float:
    """CPU seconds of one sample per second between two of them: the share of one core."""
    sampler = hardware.Sampler()
    sampler.sample([psutil.Process()])
    began = time.process_time()
    for _ in range(samples):
        sampler.sample([psutil.Process()])
    return (time.process_time() - began) / samples / SAMPLE_SECONDS


def print_table(
    plain: list[Clock], ours: list[Clock], inside: list[float], sampler: float, tokens: float
) -> None:
    rows = [("plain TRL", plain), ("ours", ours)]
    print(f"\nmedian of {len(plain)}, interleaved       CPU ms/step   wall ms/step   tokens/s")
    for name, clocks in rows:
        cpu = statistics.median(clock.cpu_per_step for clock in clocks)
        wall = statistics.median(clock.wall_per_step for clock in clocks)
        print(f"{name:<32}{cpu * 1e3:>12.1f}{wall * 1e3:>15.1f}{tokens / wall:>11.0f}")
    pairs = [
        ours_one.cpu_per_step / plain_one.cpu_per_step - 1
        for plain_one, ours_one in zip(plain, ours, strict=True)
    ]
    print(f"ours against plain, CPU, median of pairs   {statistics.median(pairs):+.2%}")
    print(f"inside our callbacks, share of wall time   {statistics.median(inside):.2%}")
    print(f"sampler every {SAMPLE_SECONDS:.0f} s, share of one core      {sampler:.3%}")


if __name__ == "__main__":
    logging.getLogger("gemma_tune").setLevel(logging.INFO)
    logging.basicConfig(level=logging.WARNING, handlers=[logging.FileHandler(os.devnull)])
    main()
