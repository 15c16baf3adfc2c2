"""One cell of `benchmarks.support`: a family's tiny model, an objective and a method through the product's own way.

A run folder, the training worker with the form's defaults, two optimizer steps with a validation after each, the result
loaded anew. It works if the losses are numbers, the model answers otherwise than before, and what was saved answers as
what was trained.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.support_table import FAILS, REFUSED, WORKS, Cell, Outcome
from gemma_tune.config import RunConfig, apply_overrides, parse
from gemma_tune.data import Store

ROOT = Path(__file__).parent.parent

FAMILIES = {  # row of the table -> (model_type of its config.json, builder in tests/workers/tiny.py)
    "Gemma": ("gemma", "save_gemma"),
    "Gemma 2": ("gemma2", "save_gemma2"),
    "Gemma 3, text": ("gemma3_text", "save_gemma3"),
    "Gemma 3, multimodal": ("gemma3", "save_multimodal_gemma3"),
    "FunctionGemma": ("gemma3_text", "save_function_gemma"),
    "Gemma 3n, text": ("gemma3n_text", "save_gemma3n"),
    "Gemma 3n, multimodal": ("gemma3n", "save_multimodal_gemma3n"),
    "Gemma 4, text": ("gemma4_text", "save_gemma4"),
    "Gemma 4, multimodal": ("gemma4", "save_multimodal_gemma4"),
    "Gemma 4, experts": ("gemma4_text", "save_gemma4_moe"),
    "Gemma 4, unified": ("gemma4_unified", "save_gemma4_unified"),
}
METHODS = {
    "full": ("method.type=full",),
    "LoRA": ("method.type=lora",),
    "QLoRA nf4": ("method.type=qlora",),
    "QLoRA int8": ("method.type=qlora", "method.quantization=int8"),
    "DoRA": ("method.use_dora=true",),
    "rsLoRA": ("method.use_rslora=true",),
    "gaussian": ("method.init_lora_weights=gaussian",),
    "PiSSA": ("method.init_lora_weights=pissa",),
    "OLoRA": ("method.init_lora_weights=olora",),
    "LoftQ": ("method.init_lora_weights=loftq",),
}
OBJECTIVES = {  # column title -> (settings, the file of `write_rows` that it learns from)
    "SFT": (("objective.type=sft",), "messages"),
    "SFT, images": (("objective.type=sft",), "images"),
    "Text": (("objective.type=sft",), "text"),
    "DPO": (("objective.type=dpo",), "pairs"),
    "KTO": (("objective.type=kto",), "labels"),
    "ORPO": (("objective.type=orpo",), "pairs"),
    "Reward model": (("objective.type=reward",), "pairs"),
    "GRPO": (
        ("objective.type=grpo", "objective.reward=regex", "objective.reward_pattern=[^aeo]*",
         "objective.max_completion_length=2", "objective.temperature=2", "train.per_device_train_batch_size=16"),
        "messages",
    ),
}  # fmt: skip
WITH_EVERY_OBJECTIVE = ("full", "LoRA", "QLoRA nf4")
WITH_IMAGES = (*WITH_EVERY_OBJECTIVE, "QLoRA int8", "DoRA")
COMMON = (
    "train.max_steps=2", "train.per_device_train_batch_size=4", "train.learning_rate=0.01", "train.warmup_steps=0",
    "eval.eval_steps=1", "output.save_steps=2", "eval.exact_match_rows=0", "data.validation_rows=4",
)  # fmt: skip
SAME = 1e-4  # largest difference of logits of what was trained and what was loaded


def cells(only: str = "") -> list[Cell]:
    """All cells of the families whose name or model_type holds `only`, family by family."""
    return [
        Cell(family, objective, method)
        for family, (model_type, _) in FAMILIES.items()
        for objective in OBJECTIVES
        for method in METHODS
        if method in {"SFT": METHODS, "SFT, images": WITH_IMAGES}.get(objective, WITH_EVERY_OBJECTIVE)
        and only in (family + model_type)
    ]


def build(family: str, folder: Path) -> Path:
    """The tiny model of a family, in a new folder."""
    return getattr(_of_tests("tiny"), FAMILIES[family][1])(folder)


def _of_tests(name: str):
    """The tests' own module of tiny models, or of pictures."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        return importlib.import_module(f"workers.{name}")
    finally:
        sys.path.remove(str(ROOT / "tests"))


def write_rows(folder: Path) -> Path:
    """Twelve rows of each kind in one file per kind."""
    _of_tests("pictures").write_pictures(folder / "images.jsonl", 12)
    talks = _of_tests("tiny").conversations()[:12]
    for kind in ("messages", "text", "pairs", "labels"):
        rows = [_row(kind, number, *talk) for number, talk in enumerate(talks)]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _row(kind: str, number: int, question: dict, answer: dict) -> dict:
    colour = answer["content"].split()[-1]
    if kind == "messages":
        return {"messages": [question, answer]}
    if kind == "text":
        return {"text": f"{question['content']} {answer['content']}"}
    if kind == "pairs":
        return {"prompt": question["content"], "chosen": answer["content"], "rejected": colour}
    return {
        "prompt": question["content"],
        "completion": [answer["content"], colour][number % 2],
        "label": number % 2 == 0,
    }


def config_of(cell: Cell, model: Path, rows: Path) -> RunConfig:
    settings, kind = OBJECTIVES[cell.objective]
    values = {"model": {"id": str(model)}, "data": {"source": str(rows / f"{kind}.jsonl")}}
    return parse(apply_overrides(values, [*COMMON, *settings, *METHODS[cell.method]]))


def run_cell(cell: Cell, model: Path, rows: Path) -> Outcome:
    """Trains and judges it in this process; GEMMA_TUNE_HOME says where."""
    from gemma_tune.runs.events import read_events
    from gemma_tune.runs.folder import create_run
    from gemma_tune.workers import train

    run = create_run(config_of(cell, model, rows))
    with _seen() as seen:
        code = train.main([str(run.path)])
    events, _ = read_events(run.events_path)
    if code == train.FAULT_EXIT:
        faults = [fault for event in events if event["kind"] == "error" for fault in event["faults"]]
        outcome = Outcome(REFUSED, " ".join(fault["rule"] for fault in faults))
    elif code:
        outcome = Outcome(FAILS, f"{type(seen['error']).__name__}: {seen['error']}")
    else:
        told = [event for event in events if event["kind"] in ("metrics", "evaluated")]
        losses = [event.get("loss", event.get("eval_loss")) for event in told]
        faults = _judge(run, model, losses, seen["trained"])
        outcome = Outcome(FAILS, faults) if faults else Outcome(WORKS)
    shutil.rmtree(run.path)
    return outcome


@contextmanager
def _seen() -> Iterator[dict]:
    """What the worker shows of itself meanwhile: "trained", logits of the model that it saves; "error", what it logs."""
    from gemma_tune.workers import session, train

    found, saves = {}, session.save_model

    def save_and_look(job, trainer, *rest):
        saves(job, trainer, *rest)
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        for parameter in (one for one in model.parameters() if one.requires_grad):
            parameter.data = parameter.data.float()  # TRL trains QLoRA's in bfloat16; it is loaded as float32
        found["trained"] = _logits(model)

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                found["error"] = record.exc_info[1]

    catch = Catch()
    train.log.addHandler(catch)
    session.save_model = save_and_look
    try:
        yield found
    finally:
        session.save_model = saves
        train.log.removeHandler(catch)


def _judge(run, folder: Path, losses: list[float], trained) -> str:
    """What is wrong with a run that ended well; empty where nothing is."""
    if len(losses) != 4 or not all(isinstance(loss, float) and math.isfinite(loss) for loss in losses):
        return f"Two steps and two validations gave the losses {losses}."
    config = run.config()
    images = Store(run.data_dir).has_images
    before = _logits(_base(config, folder, images))
    after = _logits(_loaded(config, folder, run.model_dir, images))
    if (away := float((after - trained).abs().max())) > SAME:
        return f"Loaded again, its logits differ by {away:.2g}."
    if not float((after - before).abs().max()) > SAME:
        return "Its answers are those of the base."
    return ""


def _base(config: RunConfig, folder: Path, images: bool):
    import transformers

    from gemma_tune.workers import modeling

    transformers.set_seed(config.train.seed)  # the head of a reward model is drawn as the run drew it
    return modeling.load_base(config, folder, images=images)


def _loaded(config: RunConfig, folder: Path, result: Path, images: bool):
    """The saved result, by the product's own loading."""
    from gemma_tune.workers import modeling

    if config.method.type == "full":
        dtype = modeling.weights_dtype(config.model.dtype)
        return modeling.load_model(result, dtype, scores=config.objective.type == "reward", images=images)
    return modeling.load_adapter(modeling.load_base(config, folder, images=images), result)


def _logits(model):
    """(1, tokens, vocabulary), or (1, 1) of a reward model."""
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([[2, 9, 17, 30, 41, 52]])).logits.float()
