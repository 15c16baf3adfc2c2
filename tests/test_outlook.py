import json
from types import SimpleNamespace

import numpy as np
import pytest

from gemma_tune import outlook
from gemma_tune.catalog import MODELS, local_path
from gemma_tune.config import parse
from gemma_tune.data import check


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path))


def gpu(index: int, name: str, gibibytes: int, used: int = 0) -> dict:
    return {
        "index": index,
        "name": name,
        "memory_total_bytes": gibibytes << 30,
        "memory_used_bytes": used << 30,
    }


@pytest.fixture
def gpus(monkeypatch):
    def there_are(*found: dict) -> None:
        monkeypatch.setattr(outlook, "_sampler", lambda: SimpleNamespace(gpus=lambda: list(found)))

    return there_are


def test_without_a_gpu_the_free_memory_of_the_machine_counts(gpus):
    gpus()
    device = outlook.device_of(parse({}))
    assert device.kind == "cpu" and 0 < device.free_bytes < device.memory_bytes and not device.bfloat16


def test_of_several_gpus_the_fullest_of_those_used_counts(gpus):
    gpus(gpu(0, "NVIDIA H100", 80, 70), gpu(1, "NVIDIA H100", 80, 10), gpu(2, "NVIDIA H100", 80))
    assert outlook.device_of(parse({})).free_bytes == 10 << 30
    two = parse({"devices": {"num_processes": 2, "gpu_ids": "1,2"}})
    assert outlook.device_of(two).free_bytes == 70 << 30 and outlook.device_of(two).count == 3


def test_a_gpu_before_ampere_does_not_compute_bfloat16(gpus):
    gpus(gpu(0, "Tesla T4", 16))
    assert not outlook.device_of(parse({})).bfloat16
    gpus(gpu(0, "NVIDIA L4", 24))
    assert outlook.device_of(parse({})).bfloat16


def test_the_shape_of_a_folder_is_read_and_of_an_unknown_model_unknown():
    assert outlook.geometry_of(local_path("pocket")) == MODELS["pocket"].geometry
    assert (
        outlook.geometry_of("me/unknown") is None
        and outlook.forecast_of(parse({"model": {"id": "me/x"}})) is None
    )


def test_checked_rows_are_counted_from_the_longest():
    report = SimpleNamespace(
        lengths=np.array([5, 9, 7]), train_rows=3, unlearnable_rows=0, supervised_tokens=7, total_tokens=21
    )
    lengths = outlook.lengths_of(report)
    assert (lengths.rows, lengths.total_tokens, lengths.longest) == (3, 21, 9)
    assert lengths.longest_rows == (9, 7, 5) and lengths.learned_share == pytest.approx(1 / 3)
    assert outlook.lengths_of(None) is None


def test_a_run_leads_back_to_the_model_it_began_from():
    from gemma_tune.runs.folder import create_run

    first = create_run(parse({"model": {"id": "google/gemma-3-1b-it"}}))
    second = create_run(parse({"model": {"id": f"run:{first.id}"}}))
    assert outlook.base_of(f"run:{second.id}") == "google/gemma-3-1b-it"
    assert outlook.card_of(f"run:{second.id}") is MODELS["google/gemma-3-1b-it"]
    assert outlook.base_of("run:gone") == "run:gone"


def test_images_count_by_the_tower_of_the_model_and_the_most_of_a_row(monkeypatch, tmp_path, gpus):
    gpus(gpu(0, "NVIDIA H100", 80))
    rows = [SimpleNamespace(images=[{}]), SimpleNamespace(images=[{}, {}])]
    store = SimpleNamespace(has_images=True, folder=tmp_path / "rows", rows=lambda _: rows)
    monkeypatch.setattr(
        outlook, "Store", lambda folder: type("Two", (), {"__len__": lambda _: 2, "rows": lambda *_: rows})()
    )
    report = SimpleNamespace(
        lengths=np.array([400, 700]), train_rows=2, unlearnable_rows=0, supervised_tokens=7, total_tokens=21,
        prepared=SimpleNamespace(store=store),
    )  # fmt: skip
    config = parse({"model": {"id": "google/gemma-3-4b-it"}})
    _, _, lengths = outlook._known(config, report)
    assert lengths.tower_parameters == MODELS["google/gemma-3-4b-it"].other_bytes // 2
    assert lengths.image_numbers == 2 * outlook.image_numbers_of("google/gemma-3-4b-it") > 0
    report.prepared.store.has_images = False
    assert outlook._known(config, report)[2].image_numbers == 0
    assert (
        outlook.image_numbers_of("google/gemma-4-31B-it")
        > outlook.image_numbers_of("google/gemma-4-E2B-it")
        > 0
    )
    assert outlook.image_numbers_of("google/gemma-3-1b-it") == outlook.image_numbers_of("me/unknown") == 0


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"devices": {"num_processes": 2}},
        {"advanced": {"trainer": {"dataloader_drop_last": True}}},
        {"objective": {"type": "grpo"}, "train": {"per_device_train_batch_size": 8}},
    ],
    ids=["rows that are left out", "two processes", "a batch that is left out", "answers to each prompt"],
)
def test_the_forecast_has_the_steps_of_the_check(changed, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_ROOTS", str(tmp_path))
    questions = ["Where is it?"] * 42 + ["Where is it now? " * 40] * 5  # these leave no room for an answer
    rows = [
        {"prompt": f"{n}. {question}", "completion": "In the garden."} for n, question in enumerate(questions)
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    train = {"max_length": 64, "per_device_train_batch_size": 4} | changed.get("train", {})
    config = parse({"data": {"source": str(source), "validation_fraction": 0.0}, **changed, "train": train})
    report = check(config)
    assert report.unlearnable_rows == 5
    assert outlook.forecast_of(config, report).steps == report.total_steps
