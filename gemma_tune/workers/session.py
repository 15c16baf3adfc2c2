"""One training from tokens to report: encode, load, train, save, compare. Everything with torch that `train` leads to."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerState

from gemma_tune import data, hub
from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.errors import ConfigError, ModelError
from gemma_tune.runs.folder import write_json
from gemma_tune.workers import (
    adapters,
    arguments,
    callbacks,
    dataset,
    evaluate,
    guards,
    modeling,
    report,
    sft,
    towers,
    trainers,
)
from gemma_tune.workers.first_step import FirstStepCallback
from gemma_tune.workers.job import Job

log = logging.getLogger(__name__)

ROWS_NAMED = 5  # in a warning


def work(job: Job) -> None:
    """Raises GemmaTuneError, and callbacks.StoppedNow."""
    _quiet()
    state = PartialState(cpu=not torch.cuda.is_available())
    state.wait_for_everyone()  # until the first rank has written the rows
    folder = hub.tokenizer_folder(job.config.model.id, job.facts.revision or "main", job.token)
    chat = ChatTokenizer.from_folder(folder)
    rows = dataset.rows_of(job.run, job.config, job.token)
    _refuse_unread(job, rows, chat)
    tokens = dataset.tokens_of(rows, job.config, folder)
    train, validation = _encode(job, rows, tokens, chat)
    model, tokenizer, pictures = _load(job, chat, rows)
    if callbacks.stop_mode(job.run):
        job.write("trained", step=_step_of(job.resume_from), stopped=True)
        return
    result = _train(job, model, tokenizer, train, validation, pictures)
    if not result.stopped and state.is_main_process and job.config.eval.exact_match_rows and validation:
        job.write("phase", name="evaluating")
        try:
            report.write_report(
                job,
                chat,
                result.model,
                rows,
                tokens,
                validation,
                keeps_base=result.keeps_base,
                pictures=pictures,
            )
        except evaluate.ReportStopped:
            log.info("The report was stopped; the model is saved.")
        except Exception as error:  # the model is saved: whatever the report meets must not fail the run
            log.exception("The report failed.")
            job.write("warning", message=f"The report could not be made; the model is saved. {error}")


@dataclass(frozen=True)
class Result:
    """The trained model, saved. The optimizer is freed."""

    model: torch.nn.Module
    stopped: bool  # by the user
    keeps_base: bool  # the base is still there beneath the adapter


def _refuse_unread(job: Job, rows: dataset.Rows, chat: ChatTokenizer) -> None:
    """Where the model cannot read the rows' images, or has an adapter that cannot; else every row would be left out."""
    images = rows.store.has_images
    if job.facts.adapter:
        guards.refuse_other_model(job.config, Path(job.facts.adapter), images)
    if images and chat.no_images:
        raise ModelError(replace(chat.no_images, value=job.config.model.id))


def _encode(
    job: Job, rows: dataset.Rows, tokens: data.Tokens, chat: ChatTokenizer
) -> tuple[Dataset, Dataset | None]:
    """Both sides as TRL takes them, memory-mapped; None where nothing is left to validate on."""
    train, validation = sides = dataset.encode(job.run, rows, job.config, tokens, chat)
    dataset.refuse_nothing_to_learn(train, job.config)
    job.write(
        "data",
        train_rows=train.rows,
        validation_rows=validation.rows,
        rejected_rows=rows.store.rejected_count,
        cut_rows=train.cut + validation.cut,
        tokens=train.tokens,
    )
    for side in sides:
        if side.left_out:
            job.write("warning", message=_left_out(side, job.config.train.max_length))
    loaded = [Dataset.from_file(str(side.path)) if side.rows else None for side in sides]
    return loaded[0], loaded[1]


def _left_out(side: dataset.Side, max_length: int) -> str:
    count = len(side.left_out)
    numbers = ", ".join(map(str, side.left_out[:ROWS_NAMED])) + ("…" if count > ROWS_NAMED else "")
    rows, are, their = ("row", "is", "its") if count == 1 else ("rows", "are", "their")
    return (
        f"{count} {side.name} {rows} {are} left out ({rows} {numbers}): nothing of {their} answer is within the maximum "
        f"length of {max_length} tokens, or the template refuses {'it' if count == 1 else 'them'}."
    )


def _load(job: Job, chat: ChatTokenizer, rows: dataset.Rows):
    """Model and tokenizer, checked against each other; and the rows' images as the model reads them, None without any."""
    if job.facts.adapter and job.config.objective.type == "reward" and job.config.method.type != "full":
        raise ConfigError.at(
            "model.id", job.config.model.id, "An adapter that writes answers cannot go on as one that scores them.",
            "Begin from its base, or choose the method full.",
        )  # fmt: skip
    if not job.facts.on_disk:
        job.write("phase", name="downloading")
    folder = modeling.fetch(job.facts, job.token)
    job.write("phase", name="loading")
    transformers.set_seed(job.config.train.seed)  # a new head of a reward model is drawn at random
    images = rows.store.has_images
    model = modeling.load_start(job.config, job.facts, folder, partial(_warn, job), images=images)
    tokenizer = modeling.load_tokenizer(folder)
    modeling.refuse_foreign_tokenizer(tokenizer, model)
    if getattr(model, "generation_config", None):  # a reward model writes nothing
        model.generation_config.eos_token_id = chat.end_ids  # what is saved stops at the end of a turn
    return model, tokenizer, pictures_of(rows, model, folder)


def pictures_of(rows: dataset.Rows, model, folder: Path):
    """The rows' images as the model reads them (`images.StoredImages`); None where they have none."""
    if not rows.store.has_images:
        return None
    from gemma_tune.workers.images import ImageReader, StoredImages

    return StoredImages(ImageReader.of(model, folder), rows.store)


def _warn(job: Job, message: str) -> None:
    job.write("warning", message=message)


def _train(
    job: Job, model, tokenizer, train_rows: Dataset, validation_rows: Dataset | None, pictures=None
) -> Result:
    config, run = job.config, job.run
    args = arguments.training_arguments(
        config,
        run.checkpoints_dir,
        has_validation=bool(validation_rows),
        parameters=job.facts.parameters or 0,
    )
    adapter = adapters.adapter_config(config, model)
    start, origin = None, None
    if adapters.takes_from_base(adapter):
        start = adapter.init_lora_weights
        model, origin = adapters.begun(model, adapter)
        adapter = None
    stop = callbacks.StopCallback(run)
    told = [FirstStepCallback(config), callbacks.EventCallback(run, job.write), stop]
    if args.metric_for_best_model and config.eval.early_stopping_patience:
        told.append(EarlyStoppingCallback(config.eval.early_stopping_patience))
    trainer = trainers.build_trainer(
        config,
        args,
        model,
        tokenizer,
        train_rows,
        validation_rows,
        adapter,
        told,
        collator_of(pictures, tokenizer),
    )
    if pictures and (note := towers.note(trainer.model)):
        _warn(job, note)
    if start:  # in a checkpoint it must say so: what is left of the base is found again by it
        trainer.model.peft_config["default"].init_lora_weights = start
    for reason in trainer.levers.reasons if isinstance(trainer, sft.Trainer) else ():
        _warn(job, reason)
    job.write("phase", name="training")
    _run(job, trainer)
    state = trainer.state
    early = not stop.stopped and state.global_step < state.max_steps
    best = state.best_global_step if args.load_best_model_at_end else None
    job.write("trained", step=state.global_step, stopped=stop.stopped, early_stopped=early, best_step=best)
    job.write("phase", name="saving")
    save_model(job, trainer, None if start == "loftq" else origin, pictures)
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    return Result(trained, stop.stopped, keeps_base=config.method.type != "full" and not origin)


def collator_of(pictures, tokenizer):
    """Of rows with images; TRL's own for any other."""
    if pictures is None:
        return None
    from gemma_tune.workers.images import Collator

    return Collator(pictures, tokenizer.pad_token_id)


def _run(job: Job, trainer: Trainer) -> None:
    """Trains, unless that was done before an interruption: Transformers would train one step too many."""
    if not _is_trained(job.resume_from):
        trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
        return
    trainer._load_from_checkpoint(str(job.resume_from))
    trainer.state = TrainerState.load_from_json(str(job.resume_from / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint
    if trainer.args.load_best_model_at_end and best:
        trainer._load_from_checkpoint(best)


def save_model(job: Job, trainer: Trainer, origin: adapters.Origin | None = None, pictures=None) -> None:
    """Writes the folder `model` whole or not at all; one of an earlier attempt stays until then.

    `origin`: what an adapter began with that took it from the base. `pictures`: of rows with images; how they are read
    is saved with the model.
    """
    draft, final, old = (job.run.path / name for name in ("model.part", "model", "model.old"))
    first = trainer.args.should_save  # one process of each host that keeps the result
    if first:
        for rest in (draft, old):
            shutil.rmtree(rest, ignore_errors=True)
    PartialState().wait_for_everyone()
    with modeling.named_as_published(
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    ):
        trainer.save_model(str(draft))
    if not first:
        return
    (draft / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody needs
    shutil.rmtree(draft / "ref", ignore_errors=True)  # the adapter that the preference was learned against
    if origin:
        adapters.make_plain(draft, origin)
    if pictures:
        pictures.reader.save(draft)
    _name_base(draft / "adapter_config.json", job.facts)
    if final.exists():
        final.rename(old)
    draft.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    size = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
    job.write("saved", path=final.name, bytes=size)
    log.info("model saved, %.1f MB", size / 1e6)


def _name_base(path: Path, facts: hub.ModelFacts) -> None:
    """Lets an adapter name its base as others can find it, in place of a folder of this machine's cache."""
    if path.is_file() and facts.revision:
        values = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, values | {"base_model_name_or_path": facts.id, "revision": facts.revision})


def _is_trained(checkpoint: Path | None) -> bool:
    if checkpoint is None:
        return False
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state.global_step >= state.max_steps


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _quiet() -> None:
    """Progress bars have no place in a log."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
