"""Supervised fine-tuning on rows with images: what the whole multimodal model learns, keeps, saves and answers."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, Gemma3Processor
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
from trl import SFTConfig, SFTTrainer

from gemma_tune.runs.chat import ChatSession
from gemma_tune.workers import dataset, modeling, towers, train

from . import pictures
from .conftest import events_of, losses_of

pytestmark = pytest.mark.training
FAMILIES = ["multimodal", "multimodal_gemma4"]
STEPS = 6
LORA, FULL = "method.type=lora", "method.type=full"
LEARNING = (
    "train.max_steps=60",
    "train.per_device_train_batch_size=8",
    "eval.exact_match_rows=8",
    "data.validation_fraction=0.2",
)


@pytest.fixture
def seeing_run(request, make_run, painted):
    """A run on the painted rows of the family of that name."""

    def make(family: str, *overrides: str):
        folder = request.getfixturevalue(family)
        return make_run(f"model.id={folder}", f"data.source={painted}", *overrides)

    return make


def work(run, *arguments: str) -> int:
    return train.main([str(run.path), *arguments])


@pytest.mark.parametrize(("family", "rate"), [("multimodal", 0.01), ("multimodal_gemma4", 0.003)])
def test_only_who_sees_the_picture_can_answer_and_the_tuned_model_does(seeing_run, painted, family, rate):
    run = seeing_run(family, FULL, *LEARNING, f"train.learning_rate={rate}")
    assert work(run) == 0, events_of(run, "error")
    (told,) = events_of(run, "report")
    assert told["base_exact_match"] == 0 and told["tuned_exact_match"] > 0.9

    # The result is a whole model, from which an adapter learns other names for what it sees.
    other = run.path / "other.jsonl"
    other.write_text(pictures.other_names(painted.read_text()))
    source = (f"model.id={run.model_dir}", f"data.source={other}", "train.learning_rate=0.01")
    adapted = seeing_run(family, LORA, *LEARNING, *source)
    assert work(adapted) == 0, events_of(adapted, "error")
    (told,) = events_of(adapted, "report")
    assert told["base_exact_match"] == 0 and told["tuned_exact_match"] > 0.9

    asked = Image.new("RGB", (28, 28), (225, 25, 35))
    asked.save(run.path / "red.png")
    session = ChatSession(adapted.id)
    session.start()
    assert session.wait_ready()["images"]
    question = [{"role": "user", "content": f"{pictures.PLACE}What colour is this?"}]
    said = {"base": "", "tuned": ""}
    for line in session.ask(
        question, {"temperature": 0.0, "max_new_tokens": 8}, [(run.path / "red.png").read_bytes()]
    ):
        said[line["column"]] += line.get("text", "")
    session.close()
    assert {column: text.strip() for column, text in said.items()} == {"base": "red", "tuned": "hat"}


@pytest.mark.parametrize(("family", "rate"), [("multimodal", 3e-3), ("multimodal_gemma4", 5e-4)])
@pytest.mark.parametrize("method", [LORA, FULL])
def test_losses_are_those_of_trls_own_trainer_of_images(
    request, seeing_run, painted, tmp_path, family, rate, method
):
    folder = request.getfixturevalue(family)
    # So that rounding in a gradient near 0 does not become a whole step of Adam's.
    epsilon = "advanced.trainer.adam_epsilon=0.0001"
    run = seeing_run(family, method, f"train.max_steps={STEPS}", f"train.learning_rate={rate}", epsilon)
    assert work(run) == 0, events_of(run, "error")

    kept = dataset.rows_of(run, run.config(), None)
    given = painted.read_text().splitlines()
    rows = [as_trl(json.loads(given[number - 1])) for number in kept.store.facts["number"][kept.train]]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    for part in towers.frozen_parts(model).values():
        part.requires_grad_(False)
    args = SFTConfig(
        str(tmp_path / "plain"), max_steps=STEPS, per_device_train_batch_size=8, learning_rate=rate, warmup_steps=0.03,
        gradient_checkpointing=False, max_length=None, logging_steps=1, seed=42, bf16=False, use_cpu=True,
        save_strategy="no", disable_tqdm=True, adam_epsilon=1e-4,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=modeling.lora_targets(model), task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=processor_of(folder),
        peft_config=lora if method == LORA else None,
    )  # fmt: skip
    trainer.train()
    plain = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses_of(run) == pytest.approx(plain, rel=1e-5, abs=0)
    assert plain[-1] < plain[0] - 0.1


class OfImages(Gemma4Processor):
    """Without the parts for sound and video, of which the latter needs torchvision."""

    def check_argument_for_proper_class(self, name: str, argument: object) -> None:
        pass


def processor_of(folder: Path):
    """Transformers' own, as TRL takes it."""
    reader = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokens = AutoTokenizer.from_pretrained(folder)
    if json.loads((folder / "config.json").read_text())["model_type"] == "gemma3":
        return Gemma3Processor(reader, tokens, image_seq_length=4, chat_template=tokens.chat_template)
    found = OfImages(None, reader, tokens, None, chat_template=tokens.chat_template)
    found.boa_token = found.eoa_token = "<sound>"  # it asks for them though there is no sound
    return found


def as_trl(row: dict) -> dict:
    """A painted row as TRL's own trainer of images takes it."""
    question, answer = row["messages"]
    image, text = question["content"]
    return {
        "images": [pictures.opened(image["image"])],
        "prompt": [{"role": "user", "content": text["text"]}],
        "completion": [answer],
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [LORA, FULL])
def test_a_resumed_run_is_the_run_that_was_not_and_the_towers_stay(
    request, seeing_run, break_off, family, method
):
    overrides = [method, "train.max_steps=4", "train.learning_rate=0.003"]
    straight, broken = seeing_run(family, *overrides), seeing_run(family, *overrides)
    assert work(straight) == 0
    break_off(broken, 2)
    assert losses_of(broken) == pytest.approx(losses_of(straight), abs=1e-4)

    told = [event["message"] for event in events_of(straight, "warning")]
    assert any("numbers of its towers are not trained" in one for one in told)
    if method == FULL:
        before = load_file(request.getfixturevalue(family) / "model.safetensors")
        after = load_file(straight.model_dir / "model.safetensors")
        assert before.keys() == after.keys()
        still = {name for name in before if torch.equal(before[name], after[name])}
        assert {name for name in before if "vision_tower" in name} <= still
        moved = before.keys() - still
        assert any("language_model" in name for name in moved)
        assert any(part in name for name in moved for part in towers.PROJECTORS)
    else:
        adapter = load_file(straight.model_dir / "adapter_model.safetensors")
        assert adapter and all(".language_model." in name for name in adapter)


def test_rows_with_images_and_a_model_that_reads_none_are_a_fault(make_run, painted):
    run = make_run(f"data.source={painted}")
    assert work(run) == train.FAULT_EXIT
    (fault,) = events_of(run, "error")[0]["faults"]
    assert fault["where"] == "model.id" and "images" in fault["rule"] and "gemma3, gemma4" in fault["way_out"]


def test_a_text_run_of_a_multimodal_model_trains_the_language_part_alone(seeing_run, talks):
    run = seeing_run("multimodal", FULL, f"data.source={talks}")
    assert work(run) == 0
    assert not any("vision" in name for name in load_file(run.model_dir / "model.safetensors"))
