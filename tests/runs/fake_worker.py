"""Stands in for `accelerate launch … gemma_tune.workers.train RUN_DIR`: trains nothing, behaves in every way asked for."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gemma_tune.runs.checkpoints import write_marker
from gemma_tune.runs.events import EventWriter
from gemma_tune.runs.folder import RunFolder

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--resume-from")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--step-seconds", type=float, default=0.02)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--save-every", type=int, default=2)
    parser.add_argument("--deaf", action="store_true", help="ignores SIGTERM and stop.json")
    parser.add_argument(
        "--grandchildren", action="store_true", help="starts two deaf ones, one in its own session"
    )
    parser.add_argument("--print", default="", help="goes to the log before the end")
    parser.add_argument("--exit", type=int, default=0)
    parser.add_argument("--error", default="", help="cause of an error event")
    parser.add_argument("--fill-disk", action="store_true")
    parser.add_argument("--rows-that-fit", type=int, help="a larger batch runs out of memory")
    parser.add_argument("--oom-step", type=int, default=3, help="where it does")
    options = parser.parse_args()
    folder = RunFolder(options.run_dir)
    writer = EventWriter(folder.path, f"worker-{os.getpid()}")
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.grandchildren:
        for own_session in (False, True):
            subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=own_session)
    print("loading", flush=True)
    writer.write("phase", name="loading")
    time.sleep(options.load_seconds)
    train(options, folder, writer)
    if options.print:
        print(options.print, flush=True)
    if options.error:
        fault = {"where": "line 3", "value": "", "rule": "It is empty.", "way_out": "Fill it."}
        writer.write("error", cause=options.error, faults=[fault])
    if options.exit or options.error:
        sys.exit(options.exit or 3)
    folder.model_dir.mkdir(exist_ok=True)
    writer.write("saved", path="model", bytes=1)


def train(options, folder, writer):
    first = int(options.resume_from.rpartition("-")[2]) if options.resume_from else 0
    writer.write("plan", max_steps=options.steps, device="cpu")
    writer.write("phase", name="training")
    step, stopped = first, False
    while step < options.steps and not stopped:
        time.sleep(options.step_seconds)
        step += 1
        writer.write(
            "metrics", step=step, max_steps=options.steps, loss=1 / step, tokens=10 * step, step_seconds=0.02
        )
        print(f"step {step}", flush=True)
        if options.rows_that_fit is not None and step >= options.oom_step:
            run_out_of_memory(folder, options.rows_that_fit, writer)
        if options.fill_disk and step == 3:
            fill_disk(folder)
        stopped = not options.deaf and folder.stop_mode() is not None
        if step % options.save_every == 0 or stopped:
            checkpoint(folder, step, writer)
    writer.write("trained", step=step, stopped=stopped)


def run_out_of_memory(folder, rows_that_fit, writer):
    if folder.config().train.per_device_train_batch_size > rows_that_fit:
        writer.write("error", cause="out_of_memory", faults=[])
        sys.exit(1)


def checkpoint(folder, step, writer):
    path = folder.checkpoints_dir / f"checkpoint-{step}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "optimizer.pt").write_bytes(b"1234")
    writer.write("checkpoint", step=step, path=str(path), bytes=write_marker(path))


def fill_disk(folder):
    with (folder.path / "filler").open("wb") as file:
        while True:
            file.write(b"\0" * 4096)
            file.flush()


if __name__ == "__main__":
    main()
