"""Two real steps on the longest rows: `python -m gemma_tune.workers.measure CONFIG_YAML [--random]`.

Each line of standard output is JSON: {"kind": "phase", "name": …} as it goes on, at the end one of kind "measured" with
peak_bytes (of this process; on a GPU of the device), before_bytes (before the model was loaded), tokens (of the largest
micro-batch), seconds_per_step (of usual rows), longest_step_seconds and device. Nothing is downloaded but what names the
tokens, and nothing stays on disk. Exit 0: measured; 3: a fault that the user can mend, on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_tune import config as configuration
from gemma_tune import hub, support
from gemma_tune.config import RunConfig
from gemma_tune.errors import ConfigError, DataError, GemmaTuneError, ModelError
from gemma_tune.forecast import LIBRARIES_BYTES
from gemma_tune.objectives import OBJECTIVES
from gemma_tune.runs.folder import RunFolder
from gemma_tune.workers import dataset, startup

if TYPE_CHECKING:
    from datasets import Dataset

FAULT_EXIT = 3
STEPS = 2  # the first one makes the optimizer's state, the second one is timed
MOST_ACCUMULATED = 2  # more micro-batches in a step take no more memory


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--random", action="store_true", help="random weights where there are none on disk")
    options = parser.parse_args(arguments)
    try:
        config = configuration.load(options.config)
        with tempfile.TemporaryDirectory(prefix="gemma-tune-measure-") as folder:
            told = measure(
                config, Path(folder), os.environ.get("HF_TOKEN") or None, allow_random=options.random
            )
        _tell("measured", **told)
    except GemmaTuneError as error:
        sys.stderr.write(f"{error}\n")
        return FAULT_EXIT
    return 0


def measure(config: RunConfig, folder: Path, token: str | None, *, allow_random: bool = False) -> dict:
    """The fields of the last line. `folder` holds what is made meanwhile. Raises GemmaTuneError."""
    run = RunFolder(folder / "run")
    run.data_dir.mkdir(parents=True)
    _tell("phase", name="tokenizing")
    facts = hub.inspect_model(config.model.id, config.model.revision, token)
    tokenizer_folder = hub.tokenizer_folder(config.model.id, facts.revision or "main", token)
    rows = dataset.rows_of(run, config, token)
    tokens = dataset.tokens_of(rows, config, tokenizer_folder)
    images = rows.store.has_images
    if fault := support.fault_of(config, facts.model_type, images=images):
        raise ConfigError(fault)
    weights = _weights(config, facts, folder, allow_random=allow_random, images=images)

    from gemma_tune.data.rendering import ChatTokenizer

    session = startup.import_session(config)
    session._quiet()
    _import_rest(config, facts, images)
    train, validation = dataset.encode(run, rows, config, tokens, ChatTokenizer.from_folder(tokenizer_folder))
    dataset.refuse_nothing_to_learn(train, config)
    _tell("phase", name="loading")
    before = _resident_bytes("VmRSS")
    trainer, usual_share = _trainer(
        config, facts, weights, folder, tokenizer_folder, train.path, validation, rows
    )
    _forget_peak()
    _tell("phase", name="training")
    timed = _Timer()
    trainer.add_callback(timed.callback())
    trainer.train()
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    scale = config.train.gradient_accumulation_steps / trainer.args.gradient_accumulation_steps
    return {
        "peak_bytes": _peak_bytes(),
        "before_bytes": before,
        "tokens": _tokens(trainer.train_dataset, config.train.per_device_train_batch_size),
        "seconds_per_step": timed.last_seconds * scale * usual_share,
        "longest_step_seconds": timed.last_seconds * scale,
        "device": str(trainer.args.device),
        "random": weights != _on_disk(facts),
    }


def _import_rest(config: RunConfig, facts: hub.ModelFacts, images: bool) -> None:
    """What is imported late otherwise, and would count as the model's."""
    import trl

    from gemma_tune.workers import modeling

    if images:
        importlib.import_module("gemma_tune.workers.images")
        modeling.whole_class(Path(config.model.id), facts.model_type)
    else:
        modeling.text_class(facts.model_type)
    getattr(trl, OBJECTIVES[config.objective.type].trainer, None)


def _tell(kind: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"kind": kind, **fields}) + "\n")
    sys.stdout.flush()


# ---- the model -------------------------------------------------------------------------------------------------------
def _on_disk(facts: hub.ModelFacts) -> Path | None:
    return Path(facts.path) if facts.on_disk and facts.path else None


def _weights(
    config: RunConfig, facts: hub.ModelFacts, folder: Path, *, allow_random: bool, images: bool = False
) -> Path:
    """The folder that the model is loaded from."""
    if found := _on_disk(facts):
        return found
    shape = hub.config_path(config.model.id, facts.revision or "main")
    if not allow_random or shape is None:
        raise ModelError.at(
            "model.id", config.model.id, "Its weights are not on this disk, and measuring downloads nothing.",
            "Take the estimate, or start the run: it downloads them first.",
        )  # fmt: skip
    _tell("phase", name="making random weights")
    made = folder / "random"
    make_random(json.loads(shape.read_text(encoding="utf-8")), made, images=images)
    return made


def make_random(values: dict, folder: Path, *, images: bool = False) -> None:
    """A checkpoint with random weights in bfloat16, made by a process of its own: the text model, with `images` the whole.

    `values`: of a config.json, multimodal or not. What making it takes does not count for the process that measures.
    """
    child = multiprocessing.get_context("spawn").Process(target=_save_random, args=(values, folder, images))
    child.start()
    child.join()
    if child.exitcode:
        raise ModelError.at(
            "model.id", "", "Random weights of this shape could not be made.", "See the log for the reason."
        )


def _save_random(values: dict, folder: Path, images: bool) -> None:
    import torch
    from transformers import CONFIG_MAPPING

    from gemma_tune.workers import modeling

    text = values if images else values.get("text_config") or values
    kind = text.get("model_type") or values["model_type"]
    if not images and not kind.endswith("_text") and f"{kind}_text" in CONFIG_MAPPING:
        kind = f"{kind}_text"
    config = CONFIG_MAPPING[kind](**{name: one for name, one in text.items() if name != "model_type"})
    made = modeling.whole_class(folder, kind) if images else modeling.text_class(kind)
    with torch.device("meta"):
        model = made(config).to(torch.bfloat16)
    model.to_empty(device="cpu").tie_weights()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.02) if weights.dim() > 1 else weights.zero_()
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(1)
    model.save_pretrained(folder)


def _trainer(
    config: RunConfig,
    facts: hub.ModelFacts,
    weights: Path,
    folder: Path,
    tokenizer_folder: Path,
    train_path: Path,
    validation: dataset.Side,
    kept: dataset.Rows,
) -> tuple:
    """(our trainer of the objective on the longest rows, how much shorter usual rows are)."""
    from datasets import Dataset

    from gemma_tune.workers import adapters, arguments, modeling, session, trainers

    rows = Dataset.from_file(str(train_path))
    accumulated = min(config.train.gradient_accumulation_steps, MOST_ACCUMULATED)
    longest = longest_rows(rows, config.train.per_device_train_batch_size, STEPS * accumulated)
    measures = bool(config.eval.eval_steps and validation.rows)
    held = Dataset.from_file(str(validation.path)) if measures else None
    held = longest_rows(held, config.eval.per_device_eval_batch_size, 1) if measures else None
    args = arguments.training_arguments(
        config, folder / "checkpoints", has_validation=measures, parameters=facts.parameters or 0
    )
    args.max_steps, args.gradient_accumulation_steps = STEPS, accumulated
    args.save_strategy = args.eval_strategy = "no"
    args.load_best_model_at_end = False
    args.train_sampling_strategy = "sequential"  # each micro-batch holds the longest rows once
    images = kept.store.has_images
    model = modeling.load_start(config, facts, weights, partial(_tell, "warning"), images=images)
    tokenizer = modeling.load_tokenizer(tokenizer_folder)
    collator = session.collator_of(session.pictures_of(kept, model, tokenizer_folder), tokenizer)
    adapter = adapters.adapter_config(config, model)
    if adapters.takes_from_base(adapter):
        model, _ = adapters.begun(model, adapter)
        adapter = None
    trainer = trainers.build_trainer(config, args, model, tokenizer, longest, held, adapter, [], collator)
    return trainer, _mean_tokens(rows) / max(_mean_tokens(longest), 1)


# ---- rows ------------------------------------------------------------------------------------------------------------
def longest_rows(rows: Dataset, batch: int, batches: int) -> Dataset:
    """The longest `batch` rows, so many times over. Raises DataError where there is none."""
    import numpy as np

    if not len(rows):
        raise DataError.at("data", "", "There is no row to measure with.", "Add rows.")
    longest = np.argsort(-row_lengths(rows), kind="stable")[:batch]
    return rows.select(np.resize(np.tile(longest, batches), batch * batches))


def row_lengths(rows: Dataset):
    """(n,) tokens of all sides of each row."""
    import numpy as np
    import pyarrow.compute as compute

    columns = [name for name in rows.column_names if name == "prompt" or name.endswith("_ids")]
    table = rows.with_format("arrow")[:]
    return sum(np.asarray(compute.list_value_length(table[name]), dtype=np.int64) for name in columns)


def _mean_tokens(rows: Dataset) -> float:
    return float(row_lengths(rows).mean())


def _tokens(rows: Dataset, batch: int) -> int:
    return int(row_lengths(rows)[:batch].sum())


# ---- what it took ----------------------------------------------------------------------------------------------------
class _Timer:
    """How long the last step took."""

    last_seconds = 0.0
    _began = 0.0

    def callback(self):
        from transformers import TrainerCallback

        timer = self

        class Clock(TrainerCallback):
            def on_step_begin(self, *_, **__):
                timer._began = time.perf_counter()

            def on_step_end(self, *_, **__):
                timer.last_seconds = time.perf_counter() - timer._began

        return Clock()


def _peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() + LIBRARIES_BYTES["cuda"]
    return _resident_bytes("VmHWM")


def _forget_peak() -> None:
    """Loading maps the files of the weights, which counts as resident though the system takes it back when it must."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes(name: str) -> int:
    """Of this process: VmRSS, or VmHWM for its peak. Linux's own figure: ru_maxrss begins with that of the parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines[name].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    sys.exit(main())
