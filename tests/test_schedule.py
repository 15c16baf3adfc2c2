import math

import pytest

from gemma_tune import config
from gemma_tune.schedule import steps_per_epoch, total_steps


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
