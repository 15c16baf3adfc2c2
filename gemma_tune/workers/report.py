"""The end of a run: what base and tuned model answer to the rows held back, as events and report/report.json.

A reward model writes no answers: its report tells how often it scores the chosen one higher.
"""

from __future__ import annotations

import gc
from functools import partial

import torch
from datasets import Dataset
from trl.trainer.utils import add_fused_lm_head, pad

from gemma_tune import data
from gemma_tune.config import RunConfig
from gemma_tune.data.rendering import NOT_LEARNED, ChatTokenizer
from gemma_tune.runs.folder import write_json
from gemma_tune.workers import callbacks, dataset, evaluate, modeling, rewards
from gemma_tune.workers.evaluate import HeldOut, Measured, Question
from gemma_tune.workers.job import Job

SAMPLES = 8  # answers of both models that the page shows


def write_report(
    job: Job,
    chat: ChatTokenizer,
    model,
    rows: dataset.Rows,
    tokens: data.Tokens,
    encoded: Dataset,
    *,
    keeps_base: bool,
    pictures=None,
) -> None:
    """`keeps_base`: the base is the tuned model without its adapter; else it is loaded again. `pictures`: the images of
    the rows (`images.StoredImages`), where they have some. Raises ReportStopped.
    """
    if job.config.objective.type == "reward":
        _tell_scores(job, model, encoded)
        return
    config = job.config
    calls = config.objective.type == "grpo" and config.objective.reward == "tool_call"
    context_tokens = model.config.get_text_config().max_position_embeddings
    questions = evaluate.questions_of(
        rows.store.rows(rows.validation), chat, config.eval.exact_match_rows, context_tokens,
        config.eval.max_new_tokens, calls=calls,
    )  # fmt: skip
    if not questions:
        job.write("warning", message="No report: no validation prompt fits the model's context.")
        return
    measure = partial(
        evaluate.measure,
        chat=chat,
        questions=questions,
        held_out=held_out(config, rows, tokens, encoded),
        max_new_tokens=config.eval.max_new_tokens,
        batch_rows=config.eval.per_device_eval_batch_size,
        stop=partial(callbacks.stop_mode, job.run),
        calls=calls,
        beside=pictures.beside if pictures else evaluate.nothing_beside,
    )
    tuned, base = _both(job, model, measure, keeps_base, images=pictures is not None)
    _tell(job, questions, base, tuned)


def held_out(config: RunConfig, rows: dataset.Rows, tokens: data.Tokens, encoded: Dataset) -> HeldOut:
    """The validation rows as they are scored; of preferences and rewards as many as the report has questions."""
    kind = config.objective.type
    if kind == "sft":
        return HeldOut(encoded)
    usable = rows.validation[data.lengths_of(tokens, config).usable[rows.validation]]
    usable = usable[: config.eval.exact_match_rows]
    limit = config.train.max_length
    if kind == "kto":
        good = rows.store.facts["label"][usable] == 1
        wanted, others = (
            [_scored(*tokens.sides(i)[:2], limit) for i in usable[side]] for side in (good, ~good)
        )
        return HeldOut(wanted, others)
    sides = [tokens.sides(index) for index in usable]
    wanted = [_scored(prompt, answer, limit) for prompt, answer, _ in sides]
    others = [_scored(prompt, rejected, limit) for prompt, _, rejected in sides if rejected]
    return HeldOut(wanted, others, paired=bool(others))


def _scored(prompt: list[int], answer: list[int], limit: int) -> evaluate.Encoded:
    return {
        "input_ids": (prompt + answer)[:limit],
        "labels": ([NOT_LEARNED] * len(prompt) + answer)[:limit],
    }


def _both(
    job: Job, model, measure: partial, keeps_base: bool, *, images: bool = False
) -> tuple[Measured, Measured]:
    """(tuned, base)"""
    _score_like_trl(model)
    tuned = measure(model)
    if keeps_base:
        with modeling.as_started(model, job.facts):
            return tuned, measure(model)
    model.to("meta")  # frees the tuned weights before the base is loaded
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    model = modeling.load_start(job.config, job.facts, modeling.fetch(job.facts, job.token), images=images)
    _score_like_trl(model)
    return tuned, measure(model)


def _score_like_trl(model) -> None:
    """Some of TRL's trainers score in another way (GRPO by its temperature) or with the whole vocabulary."""
    add_fused_lm_head(model.get_base_model() if hasattr(model, "get_base_model") else model)


def _tell(job: Job, questions: list[Question], base: Measured, tuned: Measured) -> None:
    answers = [
        {
            "row": question.row,
            "prompt": evaluate.shown_prompt(question.messages),
            "expected": question.expected,
            "base": base_answer,
            "tuned": tuned_answer,
        }
        | ({"images": question.image_files} if question.image_files else {})
        for question, base_answer, tuned_answer in zip(questions, base.answers, tuned.answers, strict=True)
    ]
    summary = {"rows": len(questions)} | {
        f"{side}_{name}": value
        for name in ("exact_match", "loss", "other_loss", "preferred", "reward")
        for side, one in (("base", base), ("tuned", tuned))
        if (value := _figure(name, one, questions, job.config)) is not None
    }
    job.run.report_dir.mkdir(exist_ok=True)
    write_json(job.run.report_dir / "report.json", summary | {"answers": answers})
    for answer in answers[:SAMPLES]:
        job.write("sample", **answer)
    job.write("report", **summary)


def _figure(name: str, one: Measured, questions: list[Question], config: RunConfig) -> float | None:
    if name == "exact_match":
        return one.exact_match(questions)
    if name != "reward":
        return getattr(one, name)
    if config.objective.type != "grpo":
        return None
    rule = rewards.rule_of(config.objective)
    earned = [rule(answer, asked.expected) for answer, asked in zip(one.answers, questions, strict=True)]
    return sum(earned) / len(earned)


# ---- reward models ---------------------------------------------------------------------------------------------------
def _tell_scores(job: Job, model, pairs: Dataset) -> None:
    """Whether the chosen answers of the pairs held back score higher. A base has no score to compare with."""
    config = job.config
    pairs = pairs.select(range(min(len(pairs), config.eval.exact_match_rows)))
    batch_rows, stop = config.eval.per_device_eval_batch_size, partial(callbacks.stop_mode, job.run)
    chosen, rejected = (
        scores(model, pairs[side], batch_rows, stop) for side in ("chosen_ids", "rejected_ids")
    )
    margins = [one - other for one, other in zip(chosen, rejected, strict=True)]
    summary = {
        "rows": len(pairs),
        "accuracy": sum(margin > 0 for margin in margins) / len(margins),
        "margin": sum(margins) / len(margins),
    }
    job.run.report_dir.mkdir(exist_ok=True)
    each = [{"chosen": one, "rejected": other} for one, other in zip(chosen, rejected, strict=True)]
    write_json(job.run.report_dir / "report.json", summary | {"scores": each})
    job.write("report", **summary)


def scores(model, rows: list[list[int]], batch_rows: int, stop: evaluate.Stop) -> list[float]:
    """What a reward model gives for each row of ids."""
    found: list[float] = []
    model.eval()
    for start in range(0, len(rows), batch_rows):
        if stop():
            raise evaluate.ReportStopped
        ids = [torch.tensor(row) for row in rows[start : start + batch_rows]]
        attended = [torch.ones_like(one) for one in ids]
        with torch.no_grad():
            out = model(
                input_ids=pad(ids, padding_value=model.config.get_text_config().pad_token_id).to(
                    model.device
                ),
                attention_mask=pad(attended, padding_value=0).to(model.device),
            )
        found += out.logits[:, 0].float().tolist()
    return found
