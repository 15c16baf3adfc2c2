import json
import math
import re

import pytest

from gemma_tune import config
from gemma_tune.data.doctor import check, steps_per_epoch, total_steps
from gemma_tune.data.rendering import NOT_LEARNED
from gemma_tune.errors import ConfigError, DataError

PAIRS = [{"prompt": f"question {n}", "completion": f"answer {n} " + "long " * n} for n in range(20)]


@pytest.fixture
def configured(gemma3_folder, folder, monkeypatch):
    """A configuration on a source with the tiny tokenizer as the model."""
    monkeypatch.setenv("GEMMA_TUNE_ROOTS", str(gemma3_folder))

    def configure(source: str, data: dict | None = None, **train):
        values = {
            "model": {"id": str(gemma3_folder)},
            "data": {"source": source, **(data or {})},
            "train": {"per_device_train_batch_size": 2, **train},
        }
        return config.parse(values)

    return configure


def test_the_report_counts_what_the_tokenizer_gives(configured, write, gemma3):
    report = check(configured(write("a.jsonl", [*PAIRS, {"prompt": "x"}]), max_length=80))
    encodings = gemma3.encode_all([row.messages for row in report.prepared.train])
    assert (report.rows_read, report.rows_accepted, report.rows_rejected) == (21, 20, 1)
    assert (report.train_rows, report.validation_rows) == (18, 2)
    assert report.lengths == [len(found.ids) for found in encodings]
    assert report.total_tokens == sum(min(80, length) for length in report.lengths)
    learned = [sum(label != NOT_LEARNED for label in found.labels[:80]) for found in encodings]
    assert report.supervised_tokens == sum(learned)
    assert [one.number for one in report.cut_rows] == [
        row.number for row, length in zip(report.prepared.train, report.lengths, strict=True) if length > 80
    ]
    assert report.cut_rows and not report.faults and not report.unlearnable_rows
    assert any("cut at the end" in warning.rule for warning in report.warnings)
    assert any("1 of 21 rows are not used" in warning.rule for warning in report.warnings)


def test_a_maximum_length_that_leaves_nothing_to_learn_is_a_fault(configured, write):
    report = check(
        configured(write("a.jsonl", [{**row, "prompt": "word " * 30} for row in PAIRS]), max_length=16)
    )
    (fault,) = report.faults
    assert fault.where == "train.max_length" and fault.value == "16"
    assert "No row keeps a token to learn from" in fault.rule and "Set it above" in fault.way_out
    assert len(report.unlearnable_rows) == 18 and report.steps_per_epoch == 0


def test_up_to_a_twentieth_of_unlearnable_rows_is_a_warning_and_more_a_fault(configured, write):
    long = {"prompt": "word " * 60, "completion": "x"}
    many = [{"prompt": f"q {n}", "completion": f"a {n}"} for n in range(99)]
    data = {"validation_fraction": 0}
    few = check(configured(write("few.jsonl", [*many, long]), data, max_length=64))
    assert not few.faults and any("1 of 100 rows keep no token" in one.rule for one in few.warnings)
    assert few.unlearnable_rows[0].number == 100
    assert few.steps_per_epoch == 50  # of the 99 rows that are left
    most = check(configured(write("most.jsonl", [*many, *[long] * 6]), data, max_length=64))
    assert "6 of 105 rows keep no token" in most.faults[0].rule
    enough = int(re.search(r"Set it above (\d+)", most.faults[0].way_out)[1]) + 1
    assert check(configured(write("most.jsonl", [*many, *[long] * 6]), data, max_length=enough - 1)).faults
    assert not check(configured(write("most.jsonl", [*many, *[long] * 6]), data, max_length=enough)).faults


def test_a_maximum_length_of_4_is_refused_by_the_configuration(configured):
    with pytest.raises(ConfigError, match="train.max_length.*at least 16.*found: 4"):
        configured("a.jsonl", max_length=4)


def test_every_fault_is_told_at_once_also_of_a_model_that_cannot_be_had(configured, write, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wanted = configured(write("a.jsonl", PAIRS[:1]))
    wanted.model.id = "nobody/not-on-this-disk"
    report = check(wanted)
    assert [fault.where for fault in report.faults] == ["a.jsonl", "nobody/not-on-this-disk"]
    assert "smaller than one batch" in report.faults[0].rule and "HF_HUB_OFFLINE" in report.faults[1].rule
    assert report.lengths == [] and report.train_rows == 1


def test_all_rows_rejected_is_a_fault_of_the_report_with_every_reason(configured, write):
    report = check(configured(write("a.jsonl", [{"prompt": "x", "completion": 1}] * 5)))
    assert "None of the 5 rows" in report.faults[0].rule and len(report.rejected) == 5
    with pytest.raises(DataError, match="is empty"):
        check(configured(write("b.jsonl", "")))


def test_what_may_surprise_is_a_warning(configured, write):
    rows = [PAIRS[0], PAIRS[0], PAIRS[1], {"prompt": "q <end_of_turn>", "completion": "a"}]
    held = write("held.jsonl", [PAIRS[0]])
    report = check(configured(write("a.jsonl", rows), {"validation_source": held}))
    rules = " ".join(warning.rule for warning in report.warnings)
    assert "1 of 4 training rows are exact copies" in rules
    assert "1 of 1 validation rows are among the training rows" in rules
    assert "control tokens" in rules
    alone = check(configured(write("a.jsonl", rows), {"validation_fraction": 0}))
    assert any("no validation rows" in warning.rule for warning in alone.warnings)


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "expected"),
    [(10, 1, 1, 10), (10, 3, 1, 4), (10, 3, 2, 2), (10, 3, 4, 1), (8, 8, 1, 1)],
)
def test_steps_are_counted_as_the_trainer_counts_them(rows, batch, accumulation, expected):
    train = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    wanted = config.parse({"train": {**train, "num_train_epochs": 2.5}})
    assert steps_per_epoch(rows, 0, wanted) == expected
    assert total_steps(expected, wanted) == math.ceil(2.5 * expected)
    assert total_steps(expected, config.parse({"train": {"max_steps": 7}})) == 7


def test_the_time_of_a_check_grows_with_its_rows_only(configured, write):
    import time

    lines = (
        json.dumps({"prompt": f"Add {n} and 1?", "completion": f"It is {n + 1}."}) for n in range(20_000)
    )
    source = write("a.jsonl", "\n".join(lines))
    begun = time.monotonic()
    assert check(configured(source)).rows_accepted == 20_000
    assert time.monotonic() - begun < 20  # about 2 s on two idle cores; a bound against quadratic work only
