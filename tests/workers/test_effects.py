"""What each kind of preference training does to Pocket Gemma, seen in its answers to people that it was not trained on.

Of itself it begins its stories in three ways; the rows prefer one of them.
"""

import json
from itertools import product

import pytest

from gemma_tune import config
from gemma_tune.runs.folder import create_run, read_json
from gemma_tune.workers import train

from .conftest import events_of

pytestmark = pytest.mark.training
ASKED = ("Tell me a story about {}.", "Write a story about {}.", "A story about {}, please.")
PLACES = ("market", "garden", "inn", "beach", "school")
TRAINED = [
    "Max",
    "Tom",
    "Lily",
    "Anna",
    "Ben",
    "Rosa",
    "Sam",
    "Mia",
    "Paul",
    "Iris",
    "Karl",
    "Nora",
    "Luis",
    "Rob",
    "Ruby",
    "Nina",
    "Ida",
    "Gus",
    "Eva",
    "Leo",
]
HELD_OUT = ["Zoe", "Ina", "Otto", "Hugo", "Fay", "Amy"]
WANTED, OTHER = "One day {} went to the {}.", "In the morning {} walked to the {}."


def pairs(names):
    for number, (name, asked) in enumerate(product(names, ASKED)):
        place = PLACES[number % len(PLACES)]
        yield {
            "prompt": asked.format(name),
            "chosen": WANTED.format(name, place),
            "rejected": OTHER.format(name, place),
        }


def labels(names):
    for number, pair in enumerate(pairs(names)):
        side = ("chosen", "rejected")[number % 2]
        yield {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}


def chats(names):
    for pair in pairs(names):
        yield {
            "messages": [
                {"role": "user", "content": pair["prompt"]},
                {"role": "assistant", "content": pair["chosen"]},
            ]
        }


@pytest.fixture
def finished(tmp_path):
    """The run of an objective, and the shares of base's and tuned's answers that begin as is preferred."""

    def finish(objective: str, rows, *overrides: str):
        for name, names in (("train", TRAINED), ("held_out", HELD_OUT)):
            lines = "".join(json.dumps(row) + "\n" for row in rows(names))
            (tmp_path / f"{name}.jsonl").write_text(lines)
        values = {
            "model": {"id": "pocket"},
            "data": {"source": str(tmp_path / "train.jsonl"), "validation_source": str(tmp_path / "held_out.jsonl")},
            "objective": {"type": objective},
            "train": {"per_device_train_batch_size": 8, "activation_checkpointing": False, "max_length": 64},
            "eval": {"eval_steps": 0, "exact_match_rows": 18, "max_new_tokens": 6},
            "output": {"save_steps": 1000.0},
        }  # fmt: skip
        run = create_run(config.parse(config.apply_overrides(values, list(overrides))))
        assert train.main([str(run.path)]) == 0, events_of(run, "error")
        answers = read_json(run.report_dir / "report.json").get("answers", [])
        shares = [
            sum(answer[side].startswith("One day") for answer in answers) / max(len(answers), 1)
            for side in ("base", "tuned")
        ]
        print(
            objective, overrides, shares, events_of(run, "report"), events_of(run, "metrics")[-1]["measures"]
        )
        return run, *shares

    return finish


@pytest.mark.parametrize(("objective", "steps", "beta"), [("dpo", 10, 0.1), ("orpo", 16, 2.0)])
def test_pairs_make_the_chosen_answers_the_usual_ones(finished, objective, steps, beta):
    settings = ["train.learning_rate=0.003", f"train.max_steps={steps}", f"objective.beta={beta}"]
    run, base, tuned = finished(objective, pairs, *settings)
    (told,) = events_of(run, "report")
    assert base < 0.3 and tuned > base + 0.2  # measured: 0.94 by DPO, 0.61 by ORPO
    assert told["base_preferred"] < 0.3 and told["tuned_preferred"] > 0.8
    measures = [event["measures"]["rewards/accuracies"] for event in events_of(run, "metrics")]
    assert measures[0] < 0.5 and measures[-1] > 0.9


def test_labels_make_good_answers_likelier_than_bad_ones(finished):
    run, base, tuned = finished("kto", labels, "train.learning_rate=0.003", "train.max_steps=12")
    (told,) = events_of(run, "report")
    assert base < 0.3 and tuned > 0.8
    before, after = (told[f"{side}_other_loss"] - told[f"{side}_loss"] for side in ("base", "tuned"))
    assert after > before + 0.3  # nats per token by which a good answer is the likelier one
    assert events_of(run, "metrics")[-1]["measures"]["rewards/margins"] > 0.5


def test_rewards_make_the_answers_that_earn_them_the_usual_ones(finished):
    run, base, tuned = finished(
        "grpo", chats, "train.learning_rate=0.002", "train.max_steps=8", "train.per_device_train_batch_size=32",
        "objective.reward=regex", "objective.reward_pattern=One day.*", "objective.max_completion_length=4",
        "objective.beta=0",
    )  # fmt: skip
    (told,) = events_of(run, "report")
    assert base < 0.3 and tuned > 0.8
    assert told["tuned_reward"] == tuned > told["base_reward"] == base
    earned = [event["measures"]["reward"] for event in events_of(run, "metrics")]
    assert earned[-1] > earned[0] + 0.3


def test_a_reward_model_scores_the_chosen_answers_of_new_pairs_higher(finished):
    run, _, _ = finished("reward", pairs, "train.learning_rate=0.003", "train.max_steps=6")
    (told,) = events_of(run, "report")
    assert told["accuracy"] > 0.9 and told["margin"] > 0.5
    assert events_of(run, "metrics")[0]["measures"]["accuracy"] < 0.9
