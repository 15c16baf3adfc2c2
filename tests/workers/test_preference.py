import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl.experimental.orpo import ORPOTrainer

from gemma_tune import data, hub
from gemma_tune.workers import dataset, preference

from . import tiny

LONG = "boat " * 60


@pytest.fixture
def columns_of(make_run, tmp_path):
    """(rows, tokens, training side as it is written) of a run on these records."""

    def make(objective: str, records: list[dict], *overrides: str):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        run = make_run(
            f"objective.type={objective}", f"data.source={path}", "data.validation_fraction=0", *overrides
        )
        settings = run.config()
        folder = hub.tokenizer_folder(settings.model.id)
        rows = dataset.rows_of(run, settings, None)
        tokens = dataset.tokens_of(rows, settings, folder)
        chat = data.ChatTokenizer.from_folder(folder)
        side, _ = dataset.encode(run, rows, settings, tokens, chat)
        written = Dataset.from_file(str(side.path)) if side.rows else None
        return rows, side, written, chat

    return make


def pairs(count: int = 8) -> list[dict]:
    talks = tiny.conversations()[:count]
    return [
        {"prompt": one["content"], "chosen": two["content"], "rejected": f"Grey {n}."}
        for n, (one, two) in enumerate(talks)
    ]


def labelled(count: int = 8) -> list[dict]:
    return [
        {"prompt": pair["prompt"], "completion": pair["chosen"], "label": n % 2 == 0}
        for n, pair in enumerate(pairs(count))
    ]


def test_pairs_share_their_prompt_and_end_their_turns(columns_of):
    _, side, written, chat = columns_of("dpo", pairs())
    assert side.rows == len(written) == 8
    row, given = written[0], pairs()[0]
    assert chat.decode(row["prompt_ids"], skip_special_tokens=False) == (
        f"<bos><start_of_turn>user\n{given['prompt']}<end_of_turn>\n<start_of_turn>model\n"
    )
    for name in ("chosen", "rejected"):
        told = chat.decode(row[f"{name}_ids"], skip_special_tokens=False)
        assert told == f"{given[name]}<end_of_turn>\n"


def test_a_reward_model_reads_both_sides_whole(columns_of):
    written = columns_of("reward", pairs())[2]
    parts = columns_of("dpo", pairs())[2]
    for row, part in zip(written, parts, strict=True):
        assert row["chosen_ids"] == part["prompt_ids"] + part["chosen_ids"]
        assert row["rejected_ids"] == part["prompt_ids"] + part["rejected_ids"]


@pytest.mark.parametrize("max_length", [128, 30])
def test_odds_are_columns_as_trls_own_trainer_makes_them(columns_of, gemma3, max_length):
    rows, _, written, chat = columns_of("orpo", pairs(), f"train.max_length={max_length}")
    trainer = SimpleNamespace(
        processing_class=AutoTokenizer.from_pretrained(gemma3),
        max_length=max_length,
        is_encoder_decoder=False,
    )
    trainer.build_tokenized_answer = lambda *texts: ORPOTrainer.build_tokenized_answer(trainer, *texts)
    for row, kept in zip(rows.store.rows(rows.train), written, strict=True):
        before = chat.render(row.messages[:-1], add_generation_prompt=True)
        texts = {
            "prompt": before,
            "chosen": chat.render(row.messages)[len(before) :],
            "rejected": chat.render(row.messages[:-1] + row.rejected_messages)[len(before) :],
        }
        theirs = ORPOTrainer.tokenize_row(trainer, texts)
        assert kept == {name: theirs[name] for name in kept}
    longest = max(len(row["chosen_input_ids"]) for row in written)
    assert longest == max_length if max_length == 30 else longest < max_length


def test_labelled_answers_come_mixed_with_the_answer_of_another_prompt(columns_of):
    rows, side, written, _ = columns_of("kto", labelled(), "train.per_device_train_batch_size=3")
    assert side.rows == 8 and sorted(written["label"]) == [False] * 4 + [True] * 4
    order = preference.in_training_order(rows.train, SimpleNamespace(
        objective=SimpleNamespace(type="kto"), train=SimpleNamespace(seed=42)
    ))  # fmt: skip
    assert order.tolist() != rows.train.tolist() and sorted(order) == rows.train.tolist()
    assert written["label"] == [bool(one) for one in rows.store.facts["label"][order]]
    answers = written["completion_ids"]
    assert written["KL_completion_ids"] == [
        answers[n] for n in (2, 0, 1, 5, 3, 4, 7, 6)
    ]  # each the one before it in its batch


def test_prompts_carry_the_answer_that_a_reward_asks_for(columns_of):
    talks = tiny.conversations()[:4]
    *_, written, chat = columns_of("grpo", [{"messages": talk} for talk in talks])
    assert written["answer"] == [talk[1]["content"] for talk in talks]
    assert written["prompt"] == [chat.encode_prompt(talk[:1]) for talk in talks]


@pytest.mark.parametrize(
    ("objective", "left_out", "cut"), [("dpo", [9], 1), ("orpo", [9], 1), ("reward", [9, 10], 0)]
)
def test_what_is_too_long_is_cut_or_left_out_as_the_objective_has_it(columns_of, objective, left_out, cut):
    long_prompt = {"prompt": LONG, "chosen": "Red.", "rejected": "Blue."}
    long_answer = {"prompt": "What?", "chosen": "Red.", "rejected": LONG}
    _, side, written, _ = columns_of(objective, [*pairs(), long_prompt, long_answer], "train.max_length=50")
    assert (side.left_out, side.rows, len(written)) == (left_out, 10 - len(left_out), 10 - len(left_out))
    assert side.cut == cut + (objective != "reward")  # the long prompt counts as too long as well


def test_rows_that_the_template_refuses_are_left_out(columns_of):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    _, side, written, _ = columns_of("dpo", [*pairs(), pairs()[0] | {"tools": tools}])
    assert side.left_out == [9] and len(written) == 8


def test_every_rank_writes_the_same_bytes(columns_of):
    first, second = (columns_of("kto", labelled())[1].path.read_bytes() for _ in range(2))
    assert first == second


def test_the_mixed_order_is_the_same_on_every_start():
    rows = np.arange(50)
    kto = SimpleNamespace(objective=SimpleNamespace(type="kto"), train=SimpleNamespace(seed=1))
    assert np.array_equal(*(preference.in_training_order(rows, kto) for _ in range(2)))
