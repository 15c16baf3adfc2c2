"""The images of rows as a model takes them, and what of the whole multimodal model is loaded, left alone and refused."""

import base64
import inspect
import json
import shutil

import pytest
import torch
from data.pictures import picture
from PIL import Image
from transformers import AutoImageProcessor

from gemma_tune import config, support
from gemma_tune.errors import ConfigError, ModelError
from gemma_tune.workers import images, measure, memory, modeling, quantization, towers, train
from gemma_tune.workers.chat import Chat

from . import pictures
from .conftest import events_of, losses_of
from .test_image_training import FULL, LORA, seeing_run, work
from .test_measure import measured

__all__ = ["seeing_run"]
FAMILIES = ["multimodal", "multimodal_gemma4"]
IMAGES = [Image.new("RGB", (28, 28), "red"), Image.new("RGB", (40, 20), "blue")]


@pytest.fixture(params=FAMILIES)
def seeing(request):
    """(folder, the whole model) of a family."""
    folder = request.getfixturevalue(request.param)
    return folder, modeling.load_model(folder, torch.float32, images=True)


# ---- what the model takes --------------------------------------------------------------------------------------------
def test_pixels_and_token_types_are_laid_beside_the_ids_in_the_order_of_the_images(seeing):
    folder, model = seeing
    reader = images.ImageReader.of(model, folder)
    ids = torch.tensor([[2, reader.image_token_id, 7], [2, 7, reader.image_token_id]])
    found = reader.inputs(ids, IMAGES)
    assert found[reader.token_types].tolist() == [[0, 1, 0], [0, 0, 1]]
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=IMAGES, return_tensors="pt")
    assert torch.equal(found["pixel_values"], pixels["pixel_values"])
    assert set(found) <= set(inspect.signature(model.forward).parameters)


def test_rows_without_an_image_have_token_types_and_no_pixels(seeing):
    folder, model = seeing
    reader = images.ImageReader.of(model, folder)
    found = reader.inputs(torch.tensor([[2, 7, 8]]), [])
    assert {name: one.tolist() for name, one in found.items()} == {reader.token_types: [[0, 0, 0]]}


def test_the_images_of_a_question_are_checked_as_those_of_rows_are():
    packed = [base64.b64encode(picture((8, 6), "red")).decode()]
    (named,), (opened,) = images.question_images(packed)
    assert (named["width"], named["height"]) == opened.size == (8, 6)
    assert opened.getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ConfigError) as caught:
        images.question_images([*packed, base64.b64encode(b"no picture").decode()])
    (fault,) = caught.value.faults
    assert fault.where == "image 2" and "broken" in fault.rule


def test_a_folder_that_does_not_say_how_images_are_read_is_refused(seeing, tmp_path):
    folder, model = seeing
    bare = shutil.copytree(folder, tmp_path / "bare")
    for name in images.PROCESSOR_FILES:
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="image processor cannot be read"):
        images.ImageReader.of(model, bare)


# ---- the whole model -------------------------------------------------------------------------------------------------
def test_towers_keep_nothing_for_a_gradient_and_what_brings_images_in_gets_one(seeing):
    folder, model = seeing
    reader = images.ImageReader.of(model, folder)
    pixels = reader.inputs(torch.tensor([[2]]), IMAGES[:1])
    pixels.pop(reader.token_types)
    seen = model.get_image_features(**pixels | {"pixel_values": pixels["pixel_values"].requires_grad_()})
    assert not seen.last_hidden_state.requires_grad
    places = sum(one.shape[0] for one in seen.pooler_output)
    ids = torch.tensor([[2, *[reader.image_token_id] * places, 7]])
    model(ids, **reader.inputs(ids, IMAGES[:1])).logits.square().mean().backward()
    for part in towers.frozen_parts(model).values():
        assert all(one.grad is None and not one.requires_grad for one in part.parameters())
    named = model.named_parameters()
    projector = [one for name, one in named if any(part in name for part in towers.PROJECTORS)]
    assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in projector)
    assert "what brings the images into it" in towers.note(model)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_model_keeps_its_towers_whole(seeing, kind):
    folder, _ = seeing
    settings = config.parse({"method": {"type": "qlora", "quantization": kind}})
    model = modeling.load_base(settings, folder, images=True)
    assert quantization.is_quantized(model)
    parts = [*towers.FROZEN, *towers.PROJECTORS]
    types = {name: one.dtype for name, one in model.named_parameters()}
    of_images = {name: kind for name, kind in types.items() if any(part in name for part in parts)}
    assert set(of_images.values()) == {torch.float32}
    assert any(kind in (torch.uint8, torch.int8) for name, kind in types.items() if "language" in name)


def test_the_towers_count_where_it_is_asked_whether_a_model_fits(seeing):
    folder, model = seeing
    whole = sum(one.numel() for one in model.parameters())
    counted = memory.bytes_in(folder, torch.float32, images=True) / 4
    assert 0 <= counted - whole < 200  # the bounds of clipped layers stand in the file too
    assert memory.bytes_in(folder, torch.float32) / 4 < whole


@pytest.mark.parametrize("family", ["gemma3", "gemma3n", "gemma4_unified"])
def test_other_models_are_not_loaded_whole(request, family):
    with pytest.raises(ModelError, match="reads no images here"):
        modeling.load_model(request.getfixturevalue(family), torch.float32, images=True)


def test_what_reads_images_is_what_is_offered_for_them():
    assert set(modeling.WHOLE_CLASSES) == set(images.TOKEN_TYPES) == set(support.IMAGE_MODEL_TYPES)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("train.packing=true", "train.packing"),
        ("objective.type=dpo", "objective.type"),
        ("devices.distributed_type=fsdp", "devices.distributed_type"),
        ("model.attn_implementation=flash_attention_2", "model.attn_implementation"),
    ],
)
def test_what_was_not_tried_with_images_is_refused(override, where):
    asked = config.parse(config.apply_overrides({}, [override]))
    fault = support.fault_of(asked, "gemma3", images=True)
    assert fault.where == where and fault.rule and fault.way_out
    assert support.fault_of(asked, "gemma3") is None


# ---- runs ------------------------------------------------------------------------------------------------------------
def with_plain_rows(painted, path):
    """Painted rows, and after them some without an image."""
    plain = {"messages": [{"role": "user", "content": "Say hat."}, {"role": "assistant", "content": "hat"}]}
    lines = painted.read_text().splitlines()[:24]
    path.write_text("\n".join([*lines, *[json.dumps(plain | {"row": row}) for row in range(24)]]))
    return path


@pytest.mark.training
def test_checkpointing_and_rows_without_images_between_change_no_loss(seeing_run, painted, tmp_path):
    mixed = with_plain_rows(painted, tmp_path / "mixed.jsonl")
    more = ["train.max_steps=6", f"data.source={mixed}", "train.per_device_train_batch_size=1"]
    losses = []
    for value in ("true", "false"):
        run = seeing_run("multimodal", FULL, *more, f"train.activation_checkpointing={value}")
        assert work(run) == 0, events_of(run, "error")
        losses.append(losses_of(run))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.training
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_learned_with_images_goes_on_with_images_and_is_merged_for_full(seeing_run, talks, family):
    first = seeing_run(family, LORA, "train.learning_rate=0.01")
    assert work(first) == 0
    for method in (LORA, FULL):
        second = seeing_run(family, method, f"model.id=run:{first.id}")
        assert work(second) == 0, events_of(second, "error")
        assert losses_of(second)[0] < losses_of(first)[0]
    text = seeing_run(family, LORA, f"model.id=run:{first.id}", f"data.source={talks}")
    assert work(text) == train.FAULT_EXIT
    (fault,) = events_of(text, "error")[0]["faults"]
    assert "belongs to the whole model" in fault["rule"]


@pytest.mark.training
def test_an_adapter_of_a_text_run_does_not_go_on_with_images(seeing_run, talks):
    text = seeing_run("multimodal", LORA, f"data.source={talks}")
    assert work(text) == 0
    run = seeing_run("multimodal", LORA, f"model.id=run:{text.id}")
    assert work(run) == train.FAULT_EXIT
    (fault,) = events_of(run, "error")[0]["faults"]
    assert "belongs to the text model alone" in fault["rule"]


@pytest.mark.training
def test_a_model_that_does_not_say_how_it_reads_images_is_refused_by_that(seeing_run, multimodal, tmp_path):
    bare = shutil.copytree(multimodal, tmp_path / "bare")
    for name in images.PROCESSOR_FILES:
        (bare / name).unlink(missing_ok=True)
    run = seeing_run("multimodal", f"model.id={bare}")
    assert work(run) == train.FAULT_EXIT
    (fault,) = events_of(run, "error")[0]["faults"]
    assert "no preprocessor_config.json" in fault["rule"] and fault["value"] == str(bare)


class Said:
    """What a chat worker sends."""

    def __init__(self) -> None:
        self.text = {"base": "", "tuned": ""}

    def send(self, kind: str, **fields) -> None:
        if kind == "piece":
            self.text[fields["column"]] += fields["text"]

    def is_stopped(self, request_id: int) -> bool:
        return False


@pytest.mark.training
@pytest.mark.parametrize("method", [FULL, "method.use_dora=true"])
def test_a_checkpoint_is_asked_about_an_image_and_a_text_run_about_none(seeing_run, talks, method):
    steps = ["train.max_steps=2", "output.save_steps=2", "train.learning_rate=0.01"]
    run = seeing_run("multimodal", method, *steps)
    assert work(run) == 0
    asked = {
        "id": 1,
        "messages": [{"role": "user", "content": f"{pictures.PLACE}What colour is this?"}],
        "sampling": {"temperature": 0, "max_new_tokens": 4},
        "images": [base64.b64encode(picture((28, 28), "red")).decode()],
    }
    result, checkpoint = Said(), Said()
    Chat(run, None, None).answer(asked, result)
    Chat(run, run.checkpoints_dir / "checkpoint-2", None).answer(asked, checkpoint)
    assert result.text == checkpoint.text and result.text["base"] != result.text["tuned"]
    text = seeing_run("multimodal", method, f"data.source={talks}")
    assert work(text) == 0
    with pytest.raises(ConfigError, match="reads no images"):
        Chat(text, None, None).answer(asked, Said())


@pytest.mark.training
def test_two_real_steps_are_measured_with_the_whole_model(multimodal_gemma4, painted, tmp_path):
    values = {"model": {"id": str(multimodal_gemma4)}, "data": {"source": str(painted)}}
    code, lines, log = measured(tmp_path, values, "train.max_length=128", "eval.eval_steps=1")
    assert code == 0, log
    assert lines[-1]["kind"] == "measured" and lines[-1]["tokens"] > 8 * 64  # of which each image takes 64
    code, _, log = measured(tmp_path, values, "objective.type=dpo")
    assert code != 0 and "Only answers are learned from rows with images" in log


@pytest.mark.training
def test_random_weights_are_those_of_the_whole_model_where_rows_have_images(multimodal, tmp_path):
    values = json.loads((multimodal / "config.json").read_text())
    measure.make_random(values, tmp_path / "made", images=True)
    assert towers.frozen_parts(modeling.load_model(tmp_path / "made", torch.bfloat16, images=True))
