import pytest

from gemma_tune.catalog import MODELS
from gemma_tune.config import apply_overrides, cross_faults, parse
from gemma_tune.fit import BATCH, make_it_fit
from gemma_tune.forecast import Device, Lengths, forecast

ROWS = Lengths(1_000, 400_000, 4_096, 0.4, tuple(range(4_096, 3_046, -1))[:1_000])
LARGE = "google/gemma-3-4b-it"


def gpu(gibibytes: int, count: int = 1) -> Device:
    return Device("cuda", "NVIDIA H100", count, gibibytes << 30, gibibytes << 30)


def ways(device: Device, *overrides: str, model: str = LARGE, lengths: Lengths | None = ROWS):
    config = parse(apply_overrides({"model": {"id": model}, "train": {"max_length": 4_096}}, list(overrides)))
    return config, make_it_fit(config, MODELS[model].geometry, device, lengths)


def applied(config, changes):
    values = config.model_dump()
    for dotted, value in changes.items():
        section, name = dotted.split(".")
        values[section][name] = value
    return parse(values)


def effective_rows(config) -> int:
    train = config.train
    return (
        train.per_device_train_batch_size * train.gradient_accumulation_steps * config.devices.num_processes
    )


CASES = [
    (gpu(16), ()),
    (gpu(16), ("train.activation_checkpointing=false",)),
    (gpu(24), ("method.type=full",)),
    (gpu(12), ("method.type=full", "train.activation_checkpointing=false")),
    (gpu(24, 2), ("method.type=full", "train.gradient_accumulation_steps=2")),
    (gpu(8), ("objective.type=dpo",)),
    (gpu(12), ("objective.type=kto",)),
    (gpu(16), ("objective.type=grpo", "objective.num_generations=4")),
]


@pytest.mark.parametrize(("device", "overrides"), CASES)
def test_every_way_fits_is_allowed_and_keeps_the_rows_of_a_step(device, overrides):
    config, found = ways(device, *overrides)
    assert not forecast(config, MODELS[LARGE].geometry, device, ROWS).fits and found
    for way in found:
        changed = applied(config, way.changes)
        again = forecast(changed, MODELS[LARGE].geometry, device, ROWS)
        assert again.fits and again == way.forecast
        assert not cross_faults(changed)
        assert effective_rows(changed) == effective_rows(config)
        assert way.why.endswith(".") and way.costs.endswith(".")


def test_the_least_harmful_way_comes_first():
    _, found = ways(gpu(16), "train.activation_checkpointing=true")
    assert set(found[0].changes) >= {BATCH, "train.gradient_accumulation_steps"}
    assert found[0].forecast.peak_bytes <= 16 << 30


def test_the_batch_stays_as_large_as_it_can():
    config, found = ways(gpu(16))
    rows = found[0].changes[BATCH]
    more = applied(
        config, found[0].changes | {BATCH: 2 * rows, "train.gradient_accumulation_steps": 4 // rows}
    )
    assert rows < 8 and not forecast(more, MODELS[LARGE].geometry, gpu(16), ROWS).fits


def test_several_changes_come_together_where_one_is_not_enough():
    _, found = ways(gpu(8), "train.activation_checkpointing=false")
    assert len(found) == 1 and {BATCH, "method.type"} <= set(found[0].changes)


def test_results_that_are_kept_are_given_up():
    _, found = ways(gpu(30), "train.selective_checkpointing=true")
    assert {"train.selective_checkpointing": False} in [way.changes for way in found]


def test_kto_keeps_two_rows():
    _, found = ways(gpu(10), "objective.type=kto")
    assert all(way.changes.get(BATCH, 2) >= 2 for way in found)


def test_a_full_training_that_becomes_an_adapter_gets_its_rate():
    _, found = ways(gpu(24), "method.type=full", "train.learning_rate=2e-5")
    lora = next(way for way in found if way.changes.get("method.type") == "lora")
    assert lora.changes["train.learning_rate"] == 2e-4


def test_what_the_configuration_refuses_is_never_offered():
    _, found = ways(gpu(10), "method.init_lora_weights=pissa")
    assert all(way.changes.get("method.type") != "qlora" for way in found)


def test_experts_make_qlora_no_way_out():
    _, found = ways(gpu(60), "train.per_device_train_batch_size=16", model="google/gemma-4-26B-A4B-it")
    assert found and all("method.type" not in way.changes for way in found)


def test_shorter_rows_say_how_many_lose_their_end():
    _, found = ways(gpu(80), "train.packing=true")
    shorter = next(way for way in found if "train.max_length" in way.changes)
    assert "of 1,000 rows lose their end" in shorter.costs
    _, found = ways(gpu(80), lengths=None)
    assert any("lose their end" in way.costs for way in found)


def test_several_gpus_share_the_model_where_one_is_too_small():
    config, found = ways(gpu(32, 4), "method.type=full", "train.gradient_accumulation_steps=4")
    shared = next(way for way in found if way.changes.get("devices.distributed_type") == "fsdp")
    assert shared.changes["devices.num_processes"] == 4
    assert effective_rows(applied(config, shared.changes)) == effective_rows(config)


def test_nothing_is_offered_where_nothing_helps():
    assert ways(gpu(2), model="google/gemma-3-27b-it")[1] == []


def test_a_run_that_fits_is_shown_what_would_save():
    config, found = ways(gpu(80), lengths=None)
    today = forecast(config, MODELS[LARGE].geometry, gpu(80), None)
    assert found and all(way.forecast.peak_bytes < today.peak_bytes for way in found)
