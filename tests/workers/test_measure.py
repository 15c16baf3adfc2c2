import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from gemma_tune import config
from gemma_tune.errors import DataError
from gemma_tune.forecast import Device, Lengths, forecast
from gemma_tune.geometry import from_config
from gemma_tune.workers import measure, modeling

ROOT = Path(__file__).parents[2]


def measured(folder: Path, values: dict, *overrides: str) -> tuple[int, list[dict], str]:
    """Exit code, lines and log of the command as the page starts it."""
    path = folder / "config.yaml"
    path.write_text(config.parse(config.apply_overrides(values, list(overrides))).to_yaml())
    done = subprocess.run(
        [sys.executable, "-m", "gemma_tune.workers.measure", str(path)], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.training
def test_two_real_steps_tell_what_they_took_and_leave_nothing(gemma3, talks, tmp_path, home):
    values = {"model": {"id": str(gemma3)}, "data": {"source": str(talks)}, "train": {"max_length": 64}}
    code, lines, log = measured(tmp_path, values, "train.gradient_accumulation_steps=4", "eval.eval_steps=1")
    assert code == 0, log
    assert [line["name"] for line in lines[:-1] if line["kind"] == "phase"] == [
        "tokenizing",
        "loading",
        "training",
    ]
    told = lines[-1]
    assert told["kind"] == "measured" and told["device"] == "cpu" and not told["random"]
    assert 300e6 < told["before_bytes"] < told["peak_bytes"] < 3e9
    assert 8 * 10 < told["tokens"] <= 8 * 64
    assert 0 < told["seconds_per_step"] <= told["longest_step_seconds"]
    assert not list(home.glob("runs/*"))
    shape = from_config(json.loads((gemma3 / "config.json").read_text()))
    device = Device("cpu", "this CPU", 1, 1 << 34, 1 << 34, bfloat16=False)
    expected = forecast(config.parse(values), shape, device, Lengths(58, 2_000, 40, 0.4))
    assert expected.peak_bytes == pytest.approx(told["peak_bytes"], rel=0.15)


@pytest.mark.training
def test_a_fault_of_the_user_ends_with_its_words(tmp_path, talks):
    values = {"model": {"id": str(tmp_path / "nowhere")}, "data": {"source": str(talks)}}
    code, lines, log = measured(tmp_path, values)
    assert code == measure.FAULT_EXIT and "nowhere" in log and "Traceback" not in log
    assert all(line["kind"] != "measured" for line in lines)


@pytest.mark.training
def test_random_weights_have_the_shape_of_the_language_part(multimodal, tmp_path):
    values = json.loads((multimodal / "config.json").read_text())
    measure.make_random(values, tmp_path / "made")
    model = modeling.load_model(tmp_path / "made", modeling.weights_dtype("auto"))
    shape = from_config(values)
    assert sum(weights.numel() for weights in model.parameters()) == shape.parameters
    assert float(model.get_input_embeddings().weight.detach().std()) == pytest.approx(0.02, rel=0.2)


def rows(*lengths: int) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [[1] * count for count in lengths], "labels": [[1] * count for count in lengths]}
    )


def test_each_micro_batch_holds_the_longest_rows_once():
    chosen = measure.longest_rows(rows(3, 9, 1, 7, 8), batch=2, batches=3)
    assert measure.row_lengths(chosen).tolist() == [9, 8] * 3


def test_fewer_rows_than_a_batch_are_taken_again():
    assert measure.row_lengths(measure.longest_rows(rows(3, 5), batch=4, batches=1)).tolist() == [5, 3, 5, 3]
    with pytest.raises(DataError):
        measure.longest_rows(rows(), batch=1, batches=1)


def test_both_sides_of_a_pair_count():
    pairs = Dataset.from_dict({"prompt_ids": [[1, 2]], "chosen_ids": [[1] * 4], "rejected_ids": [[1] * 5]})
    assert measure.row_lengths(pairs).tolist() == [11]


def test_the_peak_is_that_of_this_process():
    measure._forget_peak()  # of what other tests held and gave back
    before = measure._resident_bytes("VmHWM")
    ballast = bytearray(64_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert measure._resident_bytes("VmHWM") >= measure._resident_bytes("VmRSS") > before - 1_000_000
    del ballast
    measure._forget_peak()
    assert measure._resident_bytes("VmHWM") < before + 64_000_000
