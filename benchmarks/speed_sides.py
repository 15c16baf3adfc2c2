"""One side of the speed benchmark, in a process of its own: `python benchmarks/speed_sides.py JOB.json`.

It runs under LLaMA-Factory's Python too, so nothing of the project is imported but by our own side. Every side trains
on the same rows in the same order; a clock writes what it saw after the last step and ends the process there, before
anything is saved.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

SEED = 42
POLL_SECONDS = 0.02
PATIENCE_SECONDS = 900


def trl(job: dict) -> None:
    """TRL's SFTTrainer as its documentation shows it; the model by its path."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=job["folder"], train_sampling_strategy="sequential", use_cpu=True, disable_tqdm=True,
        save_strategy="no", **job["arguments"], **steps_of(job),
    )  # fmt: skip
    lora = (
        LoraConfig(**job["lora"], target_modules="all-linear", task_type="CAUSAL_LM") if job["lora"] else None
    )
    rows = load_dataset("json", data_files=f"{job['rows']}/trl.jsonl", split="train")
    torch.manual_seed(SEED)  # adapters begin alike
    SFTTrainer(job["model"], args, train_dataset=rows, peft_config=lora, callbacks=[clock(job)]).train()


def llamafactory(job: dict) -> None:
    """What `llamafactory-cli train` does with these settings; everything else as it comes."""
    from llamafactory.train.tuner import run_exp

    lora = job["lora"]
    method = {"finetuning_type": "full"}
    if lora:
        method = {
            "finetuning_type": "lora",
            "lora_rank": lora["r"],
            "lora_alpha": lora["lora_alpha"],
            "lora_target": "all",
        }
    settings = {
        "stage": "sft", "do_train": True, "model_name_or_path": job["model"], "template": "gemma",
        "dataset": "chats", "dataset_dir": job["rows"], "output_dir": job["folder"], "disable_shuffling": True,
        "save_strategy": "no", **method, **steps_of(job),
    }  # fmt: skip
    run_exp(settings, callbacks=[clock(job)])


def ours(job: dict) -> None:
    """The training worker on a run folder, as the supervisor starts it; only its trainer is given the clock."""
    from gemma_tune.workers import startup, train

    def import_with_clock(config):
        session = startup.import_session(config)
        import torch

        from gemma_tune.workers import trainers

        build = trainers.build_trainer

        def build_with_clock(*args, **kwargs):
            torch.manual_seed(SEED)
            trainer = build(*args, **kwargs)
            trainer.add_callback(clock(job))
            return trainer

        trainers.build_trainer = build_with_clock
        return session

    sys.exit(train.main([job["run"]], import_session=import_with_clock))


def whole_run(job: dict) -> None:
    """Start as the page does it: CPU seconds of supervisor, launcher and worker until the first step is told."""
    import psutil

    from gemma_tune import config
    from gemma_tune.runs import engine
    from gemma_tune.runs.events import read_events
    from gemma_tune.runs.folder import find_run

    run = find_run(engine.start(config.load(job["config"])))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(event["kind"] == "metrics" for event in read_events(run.events_path)[0]):
        if not engine.read_state(run.id).is_live or time.monotonic() > deadline:
            sys.exit(run.log_path.read_text(encoding="utf-8")[-3000:])
        time.sleep(POLL_SECONDS)
    supervisor = psutil.Process(json.loads(run.process_path.read_text(encoding="utf-8"))["supervisor"]["pid"])
    used = sum(sum(one.cpu_times()[:4]) for one in [supervisor, *supervisor.children(recursive=True)])
    write(job, {"first_step_cpu_seconds": used})
    engine.stop(run.id, now=True)
    while engine.read_state(run.id).is_live:
        time.sleep(POLL_SECONDS)


SIDES = {"trl": trl, "llamafactory": llamafactory, "ours": ours, "whole-run": whole_run}


def steps_of(job: dict) -> dict:
    """Arguments of Transformers that are the same for all sides."""
    return {
        "per_device_train_batch_size": job["micro_batch"], "max_steps": job["steps"], "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant", "logging_steps": 1, "report_to": "none", "seed": SEED,
    }  # fmt: skip


def clock(job: dict):
    """A callback that notes CPU seconds after the first and the last step, and the losses."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        losses: list[float] = []

        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 1:
                self.first = cpu_seconds()
            if state.global_step == job["steps"]:
                self.last = cpu_seconds()

        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            self.losses += [logs["loss"]] if "loss" in logs else []
            if len(self.losses) == job["steps"]:
                write(job, {
                    "first_step_cpu_seconds": self.first, "measured_cpu_seconds": self.last - self.first,
                    "peak_mb": peak_mb(), "losses": self.losses,
                })  # fmt: skip
                os._exit(0)

    return Clock()


def cpu_seconds() -> float:
    """User and system time of this process and of those it waited for, since it was started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_mb() -> float:
    """Largest resident memory of this process; ru_maxrss would remember what it was before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def write(job: dict, found: dict) -> None:
    Path(job["found"]).write_text(json.dumps(found))


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    SIDES[given["side"]](given)
