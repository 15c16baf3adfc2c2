"""The method step without a browser: what applies, what is recommended, what the data allow."""

from types import SimpleNamespace

import numpy as np
import pytest

from gemma_tune.config import applies
from gemma_tune.data.facts import KINDS
from gemma_tune.ui import method_events, method_views
from gemma_tune.ui.form import CONDITIONAL, SetUp


def values(tab: SetUp, **changes) -> dict:
    return {name: widget.value for name, widget in tab.form.widgets.items()} | changes


def shown(tab: SetUp, **changes) -> dict:
    updates = method_events.advised(tab, values(tab, **changes))
    assert set(updates) <= set(method_events.outputs(tab))
    names = {id(part): name for name, part in (tab.parts | tab.form.widgets | tab.groups).items()}
    return {names[id(part)]: update for part, update in updates.items()}


def test_a_setting_is_shown_exactly_where_it_applies(tab):
    for changes in (
        {"objective.type": "sft", "method.type": "full"},
        {"objective.type": "dpo", "objective.loss_type": "robust", "method.type": "qlora"},
        {"objective.type": "grpo", "objective.reward": "regex"},
        {"method.type": "qlora", "method.quantization": "int8"},
        {"devices.distributed_type": "deepspeed"},
    ):
        updates = shown(tab, **changes)
        written = {name: one["value"] for name, one in updates.items() if "value" in one and "." in name}
        for name in CONDITIONAL:
            assert updates[name]["visible"] == applies(name, values(tab, **changes) | written), name


def test_the_form_begins_with_what_applies_to_its_defaults(tab):
    hidden = {name for name in CONDITIONAL if not tab.form.widgets[name].visible}
    assert {"objective.beta", "method.quantization", "devices.zero_stage"} <= hidden
    assert not {"method.r", "train.packing"} & hidden


def test_a_group_without_a_setting_that_applies_is_hidden_with_its_heading(tab):
    assert not shown(tab, **{"objective.type": "sft"})["objective"]["visible"]
    assert shown(tab, **{"objective.type": "dpo"})["objective"]["visible"]
    assert not shown(tab, **{"method.type": "full"})["method"]["visible"]


def test_another_objective_or_method_brings_its_rate_with_its_source(tab):
    lora = shown(tab, **{"objective.type": "dpo", "model.id": "google/gemma-3-1b-it"})
    assert lora["train.learning_rate"]["value"] == 1e-5 and "LoRA Without Regret" in lora["advice"]
    full = shown(tab, **{"objective.type": "dpo", "method.type": "full", "model.id": "google/gemma-3-1b-it"})
    assert full["train.learning_rate"]["value"] == 1e-6 and "DPOConfig" in full["advice"]


def test_what_suited_the_model_before_is_taken_back(tab):
    pocket = shown(tab, **{"model.id": "pocket"})
    assert (
        pocket["train.activation_checkpointing"]["value"] is False
        and "what suits Pocket Gemma" in pocket["advice"]
    )
    larger = shown(tab, **{"model.id": "google/gemma-3-12b-it"})
    assert larger["train.activation_checkpointing"]["value"] is True
    assert (
        larger["train.per_device_train_batch_size"]["value"]
        * larger["train.gradient_accumulation_steps"]["value"]
        == 8
    )
    assert (
        shown(tab, **{"model.id": "google/gemma-3-1b-it"})["train.gradient_accumulation_steps"]["value"] == 1
    )


def test_another_model_brings_the_method_that_suits_its_size(tab):
    raw = tuple(values(tab, **{"model.id": "google/gemma-3-27b-it"}).values())
    assert method_events._advise_model(tab, *raw)[tab.form.widgets["method.type"]] == "qlora"


def test_a_number_of_ones_own_is_marked_beside_the_recommended_one(tab):
    assert "yours: 0.1" in method_events.advice_of(values(tab, **{"train.learning_rate": 0.1}))


def report(*kinds: str):
    facts = np.array([(KINDS.index(kind),) for kind in kinds], [("kind", "u1")])
    return SimpleNamespace(prepared=SimpleNamespace(store=SimpleNamespace(facts=facts, has_images=False)))


@pytest.mark.parametrize(
    ("kinds", "offered"),
    [
        (("pair",), ["sft", "dpo", "orpo", "reward"]),
        (("label",), ["sft", "kto"]),
        (("text",), ["sft"]),
        (("messages",), ["sft", "grpo"]),
        (("messages", "pair"), ["sft", "dpo", "orpo", "reward", "grpo"]),
        ((), ["sft", "dpo", "kto", "orpo", "reward", "grpo"]),
    ],
)
def test_only_objectives_that_learn_from_the_data_are_offered_and_the_others_say_why(kinds, offered):
    found = method_events.kinds_of(report(*kinds))
    assert set(found) == set(kinds)
    assert [name for _, name in method_views.objective_choices(found)] == offered
    said = method_views.left_out(found)
    assert said.count("<li>") == 6 - len(offered)


def test_plain_text_is_said_to_go_on_with_pre_training_and_pairs_to_be_learned_by_the_better_answer():
    assert method_views.objective_choices(("text",))[0][0].startswith("Continued pre-training\n")
    assert "better answer of each pair" in method_views.objective_choices(("pair",))[0][0]


def test_from_rows_with_images_only_answers_are_learned():
    (label, name), *others = method_views.objective_choices(("messages", method_views.IMAGES), "gemma4")
    assert name == "sft" and not others and label.startswith("Answers\nLearns to answer")
    said = method_views.left_out(("messages", method_views.IMAGES), "gemma4")
    assert (
        "5 others need other data than conversations with images" in said
        and "conversations without images" in said
    )


def test_an_objective_that_the_data_do_not_allow_gives_way_to_the_first_that_they_do():
    assert method_views.fitting("dpo", ("text",)) == "sft" and method_views.fitting("dpo", ("pair",)) == "dpo"


def test_values_read_as_people_write_them():
    assert [method_views.plain(one) for one in (True, 2e-5, 0.5, 8, "nf4")] == [
        "on",
        "2e-5",
        "0.5",
        "8",
        "nf4",
    ]


def test_a_reward_model_is_not_offered_where_transformers_has_none():
    names = [name for _, name in method_views.objective_choices(("pair",), "gemma4")]
    assert "reward" not in names and {"dpo", "orpo"} <= set(names)
    assert "reward" in [name for _, name in method_views.objective_choices(("pair",), "gemma3_text")]
    said = method_views.left_out(("pair",), "gemma4")
    assert "no reward model of this architecture" in said and "not offered here" in said
    assert method_views.fitting("reward", ("pair",), "gemma4") == "sft"
