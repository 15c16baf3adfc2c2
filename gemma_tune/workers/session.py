"""One training from tokens to report: encode, load, train, save, compare. Everything with torch that `train` leads to."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from transformers import TrainerState
from trl.trainer.utils import add_fused_lm_head

from gemma_tune import hub
from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.data.rows import Row
from gemma_tune.runs.folder import write_json
from gemma_tune.workers import callbacks, dataset, evaluate, modeling, trainers
from gemma_tune.workers.job import Job

log = logging.getLogger(__name__)

SAMPLES = 8  # answers of both models that the report shows
ROWS_NAMED = 5  # in a warning


def work(job: Job) -> None:
    """Raises GemmaTuneError, and callbacks.StoppedNow."""
    _quiet()
    state = PartialState(cpu=not torch.cuda.is_available())
    state.wait_for_everyone()  # until the first rank has written the rows
    chat = ChatTokenizer.from_folder(
        hub.tokenizer_folder(job.config.model.id, job.facts.revision or "main", job.token)
    )
    rows = dataset.rows_of(job.run, job.config, job.token)
    train, validation = _encode(job, rows)
    model, tokenizer = _load(job, chat)
    if callbacks.stop_mode(job.run):
        job.write("trained", step=_step_of(job.resume_from), stopped=True)
        return
    model, stopped = _train(job, model, tokenizer, train, validation)
    if not stopped and state.is_main_process and job.config.eval.exact_match_rows and validation:
        job.write("phase", name="evaluating")
        try:
            _report(job, chat, model, rows.store.rows(rows.validation), validation)
        except evaluate.ReportStopped:
            log.info("The report was stopped; the model is saved.")
        except Exception as error:  # the model is saved: whatever the report meets must not fail the run
            log.exception("The report failed.")
            job.write("warning", message=f"The report could not be made; the model is saved. {error}")


def _encode(job: Job, rows: dataset.Rows) -> tuple[Dataset, Dataset | None]:
    """Both sides as TRL takes them, memory-mapped; None where nothing is left to validate on."""
    folder = hub.tokenizer_folder(job.config.model.id, job.facts.revision or "main", job.token)
    train, validation = sides = dataset.encode(
        job.run, rows, job.config, dataset.tokens_of(rows, job.config, folder)
    )
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
            numbers = ", ".join(map(str, side.left_out[:ROWS_NAMED]))
            job.write(
                "warning",
                message=f"{len(side.left_out)} {side.name} rows are left out (rows {numbers}…): nothing of their answer "
                f"is within the maximum length of {job.config.train.max_length} tokens, or the template refuses them.",
            )
    loaded = [Dataset.from_file(str(side.path)) if side.rows else None for side in sides]
    return loaded[0], loaded[1]


def _load(job: Job, chat: ChatTokenizer):
    """Model and tokenizer, checked against each other."""
    if not job.facts.on_disk:
        job.write("phase", name="downloading")
    folder = modeling.fetch(job.facts, job.token)
    job.write("phase", name="loading")
    model = modeling.load_model(folder, modeling.weights_dtype(job.config.model.dtype))
    tokenizer = modeling.load_tokenizer(folder)
    modeling.refuse_foreign_tokenizer(tokenizer, model)
    model.generation_config.eos_token_id = chat.end_ids  # what is saved stops at the end of a turn
    return model, tokenizer


def _train(job: Job, model, tokenizer, train_rows: Dataset, validation_rows: Dataset | None):
    """The trained model, saved, and whether the user stopped it. The optimizer is freed on return."""
    config, run = job.config, job.run
    args = trainers.sft_config(config, run.checkpoints_dir, has_validation=bool(validation_rows))
    stop = callbacks.StopCallback(run)
    told = [callbacks.EventCallback(run, job.write), stop]
    trainer = trainers.build_trainer(config, args, model, tokenizer, train_rows, validation_rows, told)
    job.write("phase", name="training")
    if _is_trained(job.resume_from):  # Transformers would train one step too many
        trainer._load_from_checkpoint(str(job.resume_from))
        trainer.state.global_step = _step_of(job.resume_from)
    else:
        trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
    job.write("trained", step=trainer.state.global_step, stopped=stop.stopped)
    job.write("phase", name="saving")
    save_model(job, trainer)
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    return trained, stop.stopped


def save_model(job: Job, trainer: trainers.Trainer) -> None:
    """Writes the folder `model` whole or not at all; one of an earlier attempt stays until then."""
    draft, final, old = (job.run.path / name for name in ("model.part", "model", "model.old"))
    first = PartialState().is_main_process
    if first:
        for rest in (draft, old):
            shutil.rmtree(rest, ignore_errors=True)
    PartialState().wait_for_everyone()
    trainer.save_model(str(draft))
    if not first:
        return
    (draft / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody needs
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


def _report(job: Job, chat: ChatTokenizer, model, rows: Iterable[Row], encoded: Dataset) -> None:
    """Both models on the validation rows, as events and report/report.json."""
    config = job.config
    stop = partial(callbacks.stop_mode, job.run)
    context_tokens = model.config.max_position_embeddings
    questions = evaluate.questions_of(
        rows, chat, config.eval.exact_match_rows, context_tokens, config.eval.max_new_tokens
    )
    if not questions:
        job.write("warning", message="No report: no validation prompt fits the model's context.")
        return
    measure = partial(
        evaluate.measure,
        chat=chat,
        questions=questions,
        validation_rows=encoded,
        max_new_tokens=config.eval.max_new_tokens,
        batch_rows=config.eval.per_device_eval_batch_size,
        stop=stop,
    )
    tuned = measure(model)
    if config.method.type == "lora":
        with model.disable_adapter():
            base = measure(model)
    else:
        model.to("meta")  # frees the tuned weights before the base is loaded
        _free_memory()
        folder = modeling.fetch(job.facts, job.token)
        model = modeling.load_model(folder, modeling.weights_dtype(config.model.dtype))
        add_fused_lm_head(model)
        base = measure(model)
    _tell(job, questions, base, tuned)


def _tell(
    job: Job, questions: list[evaluate.Question], base: evaluate.Measured, tuned: evaluate.Measured
) -> None:
    answers = [
        {
            "row": question.row,
            "prompt": evaluate.shown_prompt(question.messages),
            "expected": question.expected,
            "base": base_answer,
            "tuned": tuned_answer,
        }
        for question, base_answer, tuned_answer in zip(questions, base.answers, tuned.answers, strict=True)
    ]
    summary = {
        "rows": len(questions),
        "base_exact_match": base.exact_match(questions),
        "tuned_exact_match": tuned.exact_match(questions),
        "base_loss": base.loss,
        "tuned_loss": tuned.loss,
    }
    job.run.report_dir.mkdir(exist_ok=True)
    write_json(job.run.report_dir / "report.json", summary | {"answers": answers})
    for answer in answers[:SAMPLES]:
        job.write("sample", **answer)
    job.write("report", **summary)


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


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
