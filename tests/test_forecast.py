import subprocess
import sys
import time
from dataclasses import replace

import pytest

from gemma_tune.catalog import MODELS
from gemma_tune.config import apply_overrides, parse
from gemma_tune.forecast import Device, Forecast, Lengths, forecast

CPU = Device("cpu", "a CPU", 1, 24 << 30, 20 << 30, cores=2, bfloat16=False)
GPU = Device("cuda", "NVIDIA H100 80GB HBM3", 1, 80 << 30, 79 << 30)
ROWS = Lengths(1_000, 300_000, 1_024, 0.4, (1_024, 1_000, 900, 700, 600, 500, 400, 300))
SMALL, LARGE = "google/gemma-3-270m-it", "google/gemma-3-4b-it"


def told(
    *overrides: str, model: str = SMALL, device: Device = GPU, lengths: Lengths | None = ROWS
) -> Forecast:
    config = parse(apply_overrides({"model": {"id": model}}, list(overrides)))
    return forecast(config, MODELS[model].geometry, device, lengths)


@pytest.mark.parametrize(
    "less",
    [
        "train.per_device_train_batch_size=1",
        "train.activation_checkpointing=true",
        "method.type=qlora",
        "train.max_length=256",
        "train.optim=adamw_8bit",
        "method.r=4",
    ],
)
def test_what_needs_less_is_forecast_to_need_less(less):
    usual = ("train.activation_checkpointing=false", "eval.eval_steps=0", "method.r=64")
    assert told(*usual, less, model=LARGE).peak_bytes < told(*usual, model=LARGE).peak_bytes


def test_full_needs_more_than_lora_and_lora_more_than_qlora():
    full, lora, qlora = (told(f"method.type={kind}", model=LARGE) for kind in ("full", "lora", "qlora"))
    assert full.peak_bytes > 2 * lora.peak_bytes > 3 * qlora.peak_bytes
    assert full.trained_parameters == MODELS[LARGE].parameters


def test_parts_add_up_and_are_those_of_the_shape():
    shown = told("method.type=full", "train.optim=adamw_torch", "model.dtype=float32", device=CPU)
    count = MODELS[SMALL].parameters
    assert shown.parts["weights"] == 4 * count and shown.parts["optimizer"] == 8 * count
    assert sum(shown.parts.values()) == shown.peak_bytes and shown.parts["adapters"] == 0


def test_lora_parameters_are_those_that_peft_makes():
    hand = 0
    for inputs, outputs in (
        (640, 1024),
        (640, 256),
        (640, 256),
        (1024, 640),
        (640, 2048),
        (640, 2048),
        (2048, 640),
    ):
        hand += 18 * 8 * (inputs + outputs)
    assert told("method.r=8").trained_parameters == hand
    assert told("method.r=8", "method.target_modules=attention").trained_parameters == 18 * 8 * (
        1664 + 896 + 896 + 1664
    )


def test_experts_and_tables_stay_whole_under_qlora():
    moe = "google/gemma-4-26B-A4B-it"
    assert told("method.type=qlora", model=moe).parts["weights"] > 0.9 * told(model=moe).parts["weights"]
    tables = MODELS["google/gemma-3n-E2B-it"].geometry.ple_parameters
    assert told("method.type=qlora", model="google/gemma-3n-E2B-it").parts["weights"] > 2 * tables


def test_without_padding_the_longest_rows_count_as_they_are():
    padded = told("train.padding_free=false", "train.per_device_train_batch_size=4")
    packed = told("train.per_device_train_batch_size=4")
    assert padded.batch_tokens == 4 * 1_024 and packed.batch_tokens == 1_024 + 1_000 + 900 + 700
    assert told("train.per_device_train_batch_size=4", lengths=None).batch_tokens == 4 * 1_024
    assert told("train.max_length=800", "train.per_device_train_batch_size=4").batch_tokens == 3 * 800 + 700


def test_pairs_are_two_rows_and_answers_of_grpo_are_added():
    one = "train.per_device_train_batch_size=1"
    assert told("objective.type=dpo", one).batch_tokens == 2 * 1_024
    grown = told(
        "objective.type=grpo", "train.per_device_train_batch_size=8", "objective.max_completion_length=100"
    )
    assert grown.batch_tokens == 8 * 1_124


def test_orpo_writes_its_scores_down_and_a_reward_model_has_none():
    usual = ("eval.eval_steps=0", "train.per_device_train_batch_size=1")
    kinds = ("sft", "dpo", "orpo", "reward")
    scores = {kind: told(f"objective.type={kind}", *usual, device=CPU).parts["logits"] for kind in kinds}
    assert scores["orpo"] > scores["dpo"] > scores["sft"] > 0 and scores["reward"] == 0


def test_the_fused_loss_needs_a_fraction_of_whole_scores():
    whole = 1_024 * 8 * 262_144 * 4
    assert told("eval.eval_steps=0", device=CPU).parts["logits"] < whole / 20


def test_steps_are_counted_as_the_trainer_does():
    assert told("train.num_train_epochs=2", "train.per_device_train_batch_size=3",
                "train.gradient_accumulation_steps=4").steps == 2 * 84  # fmt: skip
    assert told("train.max_steps=7").steps == 7
    assert told("train.max_steps=7", lengths=None).steps == 7 and told(lengths=None).steps is None
    assert told("train.num_train_epochs=0.5", "train.per_device_train_batch_size=8").steps == 63
    packed = told("train.packing=true", "train.num_train_epochs=1", "train.per_device_train_batch_size=1")
    assert packed.steps == 293
    halves = told(
        "devices.num_processes=2", "train.num_train_epochs=1", "train.per_device_train_batch_size=8"
    )
    assert halves.steps == 63


def test_time_is_a_range_around_its_middle_and_unknown_for_an_unknown_gpu():
    shown = told(model=LARGE)
    low, high = shown.seconds_range
    assert 0 < low < shown.seconds < high
    assert told(model=LARGE, device=replace(GPU, name="Some other card")).seconds is None
    assert told(model=LARGE, device=replace(GPU, name="Some other card", flops=1e15)).seconds is not None
    assert told("train.activation_checkpointing=false", device=CPU).seconds < told(device=CPU).seconds


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_sharing_out_lessens_what_each_device_holds(kind):
    several = replace(GPU, count=4)
    usual = ("devices.num_processes=4", "method.type=full", "devices.zero_stage=3")
    alone = told("method.type=full", model=LARGE)
    whole = told(*usual, model=LARGE, device=several)
    shared = told(*usual, f"devices.distributed_type={kind}", model=LARGE, device=several)
    assert whole.peak_bytes > alone.peak_bytes > shared.peak_bytes
    part = (
        1 if kind == "fsdp" else 12 / 4
    ) / 4  # ZeRO's moments are float32, and beside them lie float32 weights
    assert shared.parts["optimizer"] == pytest.approx(whole.parts["optimizer"] * part, rel=1e-3)


def test_each_stage_of_zero_shares_more():
    usual = ("devices.num_processes=4", "method.type=full", "devices.distributed_type=deepspeed")
    stages = [told(*usual, f"devices.zero_stage={stage}", model=LARGE) for stage in (1, 2, 3)]
    assert stages[0].peak_bytes > stages[1].peak_bytes > stages[2].peak_bytes


def test_disk_holds_checkpoints_and_result():
    shown = told("method.type=full", "model.dtype=float32", "output.save_total_limit=1")
    count = MODELS[SMALL].parameters
    assert shown.disk_bytes == pytest.approx(2 * 12 * count + 4 * count, rel=0.01)


def test_whether_it_fits_is_asked_of_what_is_free():
    assert told(model=LARGE).fits
    assert not told(model=LARGE, device=replace(GPU, free_bytes=4 << 30)).fits
    two = told("devices.num_processes=2", device=CPU)
    assert two.available_bytes == CPU.free_bytes // 2


def test_a_forecast_takes_milliseconds_and_no_torch():
    told(model="google/gemma-4-31B-it")
    began = time.perf_counter()
    told(model="google/gemma-4-31B-it")
    assert time.perf_counter() - began < 0.05
    code = "import sys, gemma_tune.fit; print(sorted({'torch', 'transformers', 'gradio', 'numpy'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout.strip() == "[]", shown.stderr


def test_rows_with_images_are_padded_and_bring_the_towers_along():
    config = parse({"model": {"id": "google/gemma-3-4b-it"}, "train": {"per_device_train_batch_size": 4}})
    shape = MODELS["google/gemma-3-4b-it"].geometry
    text = forecast(config, shape, GPU, ROWS)
    seen = forecast(config, shape, GPU, replace(ROWS, tower_parameters=400_000_000))
    assert seen.parts["weights"] - text.parts["weights"] == 800_000_000  # bfloat16
    assert seen.batch_tokens == 4 * 1_024 > text.batch_tokens


def test_looking_at_many_images_can_be_what_needs_the_most():
    """Of the tower nothing is kept, so it counts only where it takes more than the language part after it."""
    config = parse(
        {"model": {"id": SMALL}, "train": {"per_device_train_batch_size": 4}, "eval": {"eval_steps": 0}}
    )
    shape = MODELS[SMALL].geometry
    few, many = (forecast(config, shape, GPU, replace(ROWS, image_numbers=count)) for count in (1, 10**9))
    assert few.parts == forecast(config, shape, GPU, replace(ROWS)).parts
    assert many.parts["activations"] == 4 * 2 * 10**9 and many.parts["logits"] == 0
    measured = parse({"model": {"id": SMALL}, "eval": {"per_device_eval_batch_size": 16, "eval_steps": 0.5}})
    held = forecast(measured, shape, GPU, replace(ROWS, image_numbers=10**9))
    assert held.parts["activations"] == 16 * 2 * 10**9


def test_results_that_are_kept_cost_memory_and_save_time():
    kept, again, all_kept = (
        told(one, device=CPU)
        for one in (
            "train.selective_checkpointing=true",
            "train.activation_checkpointing=true",
            "train.activation_checkpointing=false",
        )
    )
    assert again.peak_bytes < kept.peak_bytes < all_kept.peak_bytes
    assert again.seconds > kept.seconds > all_kept.seconds
