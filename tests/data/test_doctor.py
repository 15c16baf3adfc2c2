import json
import math
import re
import shutil
import time
from collections import Counter

import numpy as np
import pytest
from pictures import data_uri, picture
from tiny_tokenizer import build_tokenizer

from gemma_tune import catalog, config
from gemma_tune.data import doctor
from gemma_tune.data.doctor import check
from gemma_tune.data.parallel import Cancelled
from gemma_tune.data.rendering import NOT_LEARNED
from gemma_tune.data.rows import Row
from gemma_tune.errors import ConfigError, DataError

PAIRS = [{"prompt": f"question {n}", "completion": f"answer {n} " + "long " * n} for n in range(20)]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]


@pytest.fixture
def configured(folder_of, folder, monkeypatch):
    """A configuration on a source with a family's tiny tokenizer as the model."""

    def configure(source: str, data: dict | None = None, family: str = "gemma3", **train):
        model = folder_of(family)
        monkeypatch.setenv("GEMMA_TUNE_ROOTS", str(model))
        values = {
            "model": {"id": str(model)},
            "data": {"source": source, **(data or {})},
            "train": {"per_device_train_batch_size": 2, **train},
        }
        return config.parse(values)

    return configure


# ---- counts ----------------------------------------------------------------------------------------------------------
def test_the_report_counts_what_the_tokenizer_gives(configured, write, gemma3):
    report = check(configured(write("a.jsonl", [*PAIRS, {"prompt": "x"}]), max_length=80))
    rows = list(report.prepared.store.rows(report.prepared.train))
    encodings = gemma3.encode_all(rows)
    assert (report.rows_read, report.rows_accepted, report.rows_rejected) == (21, 20, 1)
    assert (report.train_rows, report.validation_rows) == (18, 2)
    assert report.lengths.tolist() == [len(found.ids) for found in encodings]
    assert report.total_tokens == sum(min(80, length) for length in report.lengths)
    learned = [sum(label != NOT_LEARNED for label in found.labels[:80]) for found in encodings]
    assert report.supervised_tokens == sum(learned)
    long = [row.number for row, length in zip(rows, report.lengths, strict=True) if length > 80]
    assert [one.number for one in report.limited] == long and report.cut_rows == len(long) > 0
    assert not report.faults and not report.unlearnable_rows
    assert (
        "cut" in report.limited[0].rule
        and f"max_length to {max(report.lengths)}" in report.limited[-1].way_out
    )
    assert [(one.number, one.field) for one in report.rejected] == [(21, "completion")]
    assert any("cut at the end" in warning.rule for warning in report.warnings)
    assert any("1 of 21 rows are not used" in warning.rule for warning in report.warnings)


def test_with_every_word_learned_every_token_counts(configured, write):
    report = check(configured(write("a.jsonl", PAIRS), assistant_only_loss=False))
    assert report.supervised_tokens == report.total_tokens


def test_the_rows_of_an_epoch_count_as_often_as_their_weight_says(configured, write):
    once = check(configured(write("a.jsonl", PAIRS), {"validation_fraction": 0}))
    twice = check(configured(write("a.jsonl", PAIRS), {"validation_fraction": 0, "weight": 2}))
    assert (twice.train_rows, twice.rows_accepted) == (40, 20)
    assert (twice.total_tokens, twice.steps_per_epoch) == (2 * once.total_tokens, 2 * once.steps_per_epoch)


def test_every_kind_of_row_is_measured(configured, write):
    for name, row in (
        ("text", {"text": "A cat lives here."}),
        ("pair", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("label", {"prompt": "a", "completion": "b", "label": True}),
    ):
        report = check(configured(write(f"{name}.jsonl", [row] * 3), {"validation_fraction": 0}))
        assert not report.faults and report.total_tokens >= report.supervised_tokens > 0, name


def test_answers_that_are_labelled_as_bad_are_not_learned(configured, write):
    rows = [row | {"label": n % 4 > 0} for n, row in enumerate(PAIRS)]
    report = check(configured(write("a.jsonl", rows), {"validation_fraction": 0}))
    assert report.train_rows == 15 and report.prepared.unused == 5 and not report.faults
    assert [one.title for one in report.findings] == ["Balance of the labels"]
    bad = check(configured(write("bad.jsonl", [row | {"label": False} for row in PAIRS])))
    assert "Every answer is labelled as bad" in bad.faults[0].rule and bad.train_rows == 0


# ---- what is left out ------------------------------------------------------------------------------------------------
def test_a_maximum_length_that_leaves_nothing_to_learn_is_a_fault(configured, write):
    report = check(
        configured(write("a.jsonl", [{**row, "prompt": "word " * 30} for row in PAIRS]), max_length=16)
    )
    (fault,) = report.faults
    assert fault.where == "train.max_length" and fault.value == "16"
    assert "No row keeps a token to learn from" in fault.rule and "Set it above" in fault.way_out
    assert report.unlearnable_rows == 18 and report.steps_per_epoch == 0
    assert "no part of an answer, so it is left out" in report.limited[0].rule


def test_up_to_a_twentieth_of_unlearnable_rows_is_a_warning_and_more_a_fault(configured, write):
    long = {"prompt": "word " * 60, "completion": "x"}
    many = [{"prompt": f"q {n}", "completion": f"a {n}"} for n in range(99)]
    data = {"validation_fraction": 0}
    few = check(configured(write("few.jsonl", [*many, long]), data, max_length=64))
    assert not few.faults and any("1 of 100 rows keep no token" in one.rule for one in few.warnings)
    assert few.limited[0].number == 100 and few.unlearnable_rows == 1
    assert few.steps_per_epoch == 50  # of the 99 rows that are left
    edge = check(configured(write("edge.jsonl", [*many[:95], *[long] * 5]), data, max_length=64))
    assert not edge.faults and edge.unlearnable_rows == 5  # just a twentieth
    most = check(configured(write("most.jsonl", [*many, *[long] * 6]), data, max_length=64))
    assert "6 of 105 rows keep no token" in most.faults[0].rule
    enough = int(re.search(r"Set it above (\d+)", most.faults[0].way_out)[1]) + 1
    assert check(configured(write("most.jsonl", [*many, *[long] * 6]), data, max_length=enough - 1)).faults
    assert not check(configured(write("most.jsonl", [*many, *[long] * 6]), data, max_length=enough)).faults


def test_rows_that_the_template_refuses_are_named_and_many_of_them_are_a_fault(configured, write):
    plain = [
        {"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": "a"}]}
        for n in range(40)
    ]
    calling = [row | {"tools": TOOLS} for row in plain]
    data = {"validation_fraction": 0}
    one = check(configured(write("one.jsonl", [*plain, calling[0]]), data))
    assert not one.faults and one.unlearnable_rows == 1 and one.train_rows == 41
    assert (one.limited[0].number, one.limited[0].way_out) == (
        41,
        "Take the row out, or choose another model.",
    )
    assert "no place for tools" in one.limited[0].rule
    most = check(configured(write("most.jsonl", calling), data))
    (fault,) = most.faults
    assert fault.where == "chat template" and "40 of 40 rows are refused" in fault.rule
    assert "use FunctionGemma or Gemma 4" in fault.way_out
    assert not check(configured(write("most.jsonl", calling), data, family="functiongemma")).faults


def test_rows_beyond_the_context_of_the_model_are_warned_of(configured, write, monkeypatch):
    source = write("a.jsonl", PAIRS)
    wanted = configured(source)
    card = catalog.MODELS[catalog.POCKET_ID]
    monkeypatch.setitem(catalog.MODELS, wanted.model.id, card)
    assert not any("reads at most" in one.rule for one in check(wanted).warnings)
    (folder_long,) = [{"prompt": "word " * card.context_tokens, "completion": "x"}]
    report = check(
        configured(write("b.jsonl", [*PAIRS, folder_long]), {"validation_fraction": 0}, max_length=100_000)
    )
    (warning,) = [one for one in report.warnings if "reads at most" in one.rule]
    assert f"Set it to {card.context_tokens}" in warning.way_out


# ---- Gemma's rules ---------------------------------------------------------------------------------------------------
def test_a_second_bos_is_warned_of_with_the_rows(configured, write):
    rows = [*PAIRS[:5], {"prompt": "<bos>question", "completion": "answer"}]
    report = check(configured(write("a.jsonl", rows), {"validation_fraction": 0}))
    (warning,) = [one for one in report.warnings if one.where == "chat template"]
    assert warning.value == "rows 6" and "1 rows do not begin with exactly one <bos>" in warning.rule
    assert not any(
        one.where == "chat template" for one in check(configured(write("b.jsonl", PAIRS))).warnings
    )


def test_a_template_whose_answers_do_not_end_is_warned_of(configured, write, tmp_path, monkeypatch):
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    wanted = configured(write("a.jsonl", PAIRS), {"validation_fraction": 0})
    wanted.model.id = str(build_tokenizer(tmp_path / "model", template))
    (warning,) = [one for one in check(wanted).warnings if one.where == "chat template"]
    assert (
        "20 rows do not learn the end of their answer" in warning.rule
        and warning.value == "rows 1, 2, 3, 4, 5"
    )


@pytest.mark.parametrize("family", ["gemma4", "functiongemma"])
def test_calls_of_functions_break_no_rule(configured, write, family):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}
    talk = [
        {"role": "user", "content": "q"},
        call,
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "a"},
    ]
    rows = [{"messages": talk, "tools": TOOLS}, {"messages": talk[:2], "tools": TOOLS}]
    report = check(configured(write("a.jsonl", rows), {"validation_fraction": 0}, family=family))
    assert not report.faults and not report.limited
    assert not any(one.where == "chat template" for one in report.warnings)


# ---- faults and warnings ---------------------------------------------------------------------------------------------
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
    assert len(report.lengths) == 0 and report.train_rows == 1 and report.tokens is None


def test_all_rows_rejected_is_a_fault_of_the_report_with_every_reason(configured, write):
    report = check(configured(write("a.jsonl", [{"prompt": "x", "completion": 1}] * 5)))
    assert "None of the 5 rows" in report.faults[0].rule and len(report.rejected) == 5
    with pytest.raises(DataError, match="is empty"):
        check(configured(write("b.jsonl", "")))


def test_what_may_surprise_is_a_finding_or_a_warning(configured, write):
    rows = [PAIRS[0], PAIRS[0], PAIRS[1], {"prompt": "q <end_of_turn>", "completion": "a"}]
    held = write("held.jsonl", [PAIRS[0]])
    report = check(configured(write("a.jsonl", rows), {"validation_source": held}))
    titles = [one.title for one in report.findings]
    assert titles[:3] == [
        "Validation rows that are also trained on",
        "Control tokens in the text",
        "Exact copies",
    ]
    assert not any("no validation rows" in warning.rule for warning in report.warnings)
    alone = check(configured(write("a.jsonl", rows), {"validation_fraction": 0}))
    assert any("no validation rows" in warning.rule for warning in alone.warnings)


def test_with_packing_the_steps_are_an_estimate_and_it_says_so(configured, write):
    wanted = configured(write("a.jsonl", PAIRS), max_length=128)
    wanted.train.packing = True
    report = check(wanted)
    assert any("number of steps is an estimate" in one.rule for one in report.warnings)
    assert report.steps_per_epoch == math.ceil(math.ceil(report.total_tokens / 128) / 2)


def test_what_the_fixes_would_save_is_counted_over_all_rows(configured, write, monkeypatch):
    monkeypatch.setattr(doctor, "ROWS_LISTED", 3)
    double = {"messages": [{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "b"}]}
    blank = {"messages": [*double["messages"][1:], {"role": "user", "content": " "}]}
    hopeless = {"messages": [{"role": "assistant", "content": "b"}]}
    good = [{"messages": [{"role": "user", "content": f"q {n}"}, double["messages"][2]]} for n in range(4)]
    source = write("a.jsonl", [*good, *[double] * 5, *[blank] * 4, hopeless])
    report = check(configured(source))
    assert report.fixable == {"merge_turns": 5, "drop_empty_turns": 4}
    assert len(report.rejected) == 3 and report.rows_rejected == 10
    mended = check(configured(source, {"fixes": ["merge_turns", "drop_empty_turns"]}))
    assert (mended.rows_rejected, mended.fixable) == (1, {})


def test_lists_are_cut_and_counts_are_not(configured, write, monkeypatch):
    monkeypatch.setattr(doctor, "ROWS_LISTED", 3)
    rows = [*PAIRS, *[{"prompt": "x", "completion": ""}] * 7]
    report = check(configured(write("a.jsonl", rows), {"validation_fraction": 0}, max_length=48))
    assert (len(report.rejected), report.rows_rejected) == (3, 7)
    assert len(report.limited) == 3 < report.cut_rows == int((report.lengths > 48).sum())


def test_a_check_that_was_made_before_reads_and_tokenises_nothing(configured, write, monkeypatch):
    source = write("a.jsonl", PAIRS)
    before = check(configured(source, max_length=64))
    monkeypatch.setattr("gemma_tune.data.store.convert_piece", pytest.fail)
    monkeypatch.setattr("gemma_tune.data.tokens.tokenise_block", pytest.fail)
    after = check(configured(source, max_length=32))
    assert np.array_equal(before.lengths, after.lengths) and after.cut_rows > before.cut_rows


def test_a_check_tells_how_far_it_is_and_can_be_stopped_anywhere(configured, write):
    wanted, told = configured(write("a.jsonl", PAIRS)), Counter()
    check(wanted, watch=lambda phase, done, total: told.update([phase]))
    assert list(told) == ["opening", "reading", "tokenizing", "looking"]
    for phase in told:

        def stop(now: str, done: int, total: int | None, phase: str = phase) -> None:
            if now == phase:
                raise Cancelled

        fresh = configured(write(f"{phase}.jsonl", [*PAIRS, {"prompt": phase, "completion": "x"}]))
        with pytest.raises(Cancelled):
            check(fresh, watch=stop)
        assert check(fresh).rows_accepted == 21


def test_the_time_of_a_check_grows_with_its_rows_only(configured, write):
    lines = (
        json.dumps({"prompt": f"Add {n} and 1?", "completion": f"It is {n + 1}."}) for n in range(20_000)
    )
    source = write("a.jsonl", "\n".join(lines))
    begun = time.monotonic()
    assert check(configured(source)).rows_accepted == 20_000
    assert time.monotonic() - begun < 20  # about 2 s on two idle cores; a bound against quadratic work only


# ---- lengths of preferences and prompts ------------------------------------------------------------------------------
@pytest.fixture
def aimed(configured):
    def aim(source: str, objective: str, **train):
        values = configured(source, {"validation_fraction": 0}, **train).model_dump()
        return config.parse(values | {"objective": {"type": objective, "num_generations": 2}})

    return aim


SHORT = [{"prompt": f"q {n}", "chosen": "a cat", "rejected": "the house"} for n in range(40)]
LONG_ANSWER = {"prompt": "q", "chosen": "a", "rejected": "word " * 90}
LONG_PROMPT = {"prompt": "word " * 90, "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("objective", "cut", "left_out"), [("dpo", [41, 42], [42]), ("orpo", [41, 42], [42]), ("reward", [], [41, 42])]
)  # fmt: skip
def test_a_pair_is_as_long_as_its_longer_side(aimed, write, gemma3, objective, cut, left_out):
    report = check(aimed(write("a.jsonl", [*SHORT, LONG_ANSWER, LONG_PROMPT]), objective, max_length=64))
    rows = list(report.prepared.store.rows(report.prepared.train))
    sides = [
        [len(gemma3.encode(Row(1, row.messages[:1] + answer)).ids) for answer in (row.messages[1:], row.rejected_messages)]
        for row in rows
    ]  # fmt: skip
    assert report.lengths.tolist() == [max(both) for both in sides]
    assert (report.cut_rows, report.unlearnable_rows) == (len(cut), len(left_out)) and not report.faults
    assert [one.number for one in report.limited] == sorted({*cut, *left_out})
    used = [
        sum(min(64, side) for side in both)
        for row, both in zip(rows, sides, strict=True)
        if row.number not in left_out
    ]
    assert report.total_tokens == sum(used)
    assert report.steps_per_epoch == -(-(42 - len(left_out)) // 2)
    reasons = {one.number: one.rule for one in report.limited}
    assert ("cut" in reasons[41]) == (objective != "reward")


def test_pairs_that_are_mostly_too_long_for_a_reward_model_are_a_fault(aimed, write):
    report = check(aimed(write("a.jsonl", [*SHORT, *[LONG_ANSWER] * 5]), "reward", max_length=64))
    (fault,) = report.faults
    assert fault.where == "train.max_length" and "5 of 45 rows have an answer that ends beyond" in fault.rule
    longest = int(report.lengths.max())
    assert f"Set it above {longest}" in fault.way_out


def test_kto_learns_the_bad_answers_too(aimed, write):
    rows = [{"prompt": f"q {n}", "completion": "a cat", "label": n % 2 == 0} for n in range(10)]
    report = check(aimed(write("a.jsonl", rows), "kto"))
    assert (report.train_rows, report.steps_per_epoch, report.prepared.unused) == (10, 5, 0)
    (balance,) = [one for one in report.findings if one.title == "Balance of the labels"]
    assert "not used" not in balance.words


def test_grpo_counts_prompts_and_the_steps_of_their_answers(aimed, write, gemma3):
    rows = [{"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": "x " * 90}]} for n in range(9)]  # fmt: skip
    report = check(aimed(write("a.jsonl", rows), "grpo", max_length=64, per_device_train_batch_size=8))
    assert report.lengths.max() < 64 and not report.cut_rows and not report.unlearnable_rows
    assert report.steps_per_epoch == 2  # four prompts make a step of eight answers, and the ninth waits
    assert report.total_tokens == report.lengths.sum() and report.supervised_tokens == 0


def test_preferences_learn_answers_only_whatever_the_setting_says(aimed, write):
    source = write("a.jsonl", SHORT)
    one, other = (check(aimed(source, "dpo", assistant_only_loss=wanted)) for wanted in (True, False))
    assert one.supervised_tokens == other.supervised_tokens < one.total_tokens


# ---- images ----------------------------------------------------------------------------------------------------------
def seen(count: int, images: int = 1, colours: int = 20) -> list[dict]:
    return [
        {"images": [data_uri(picture((4 + number % colours, 5)))] * images, "prompt": f"question {number}", "completion": "It is."}
        for number in range(count)
    ]  # fmt: skip


@pytest.fixture
def seeing(seeing_folder, folder, monkeypatch):
    def configure(source: str, family: str = "gemma3", objective: str = "sft", **train):
        model = seeing_folder(family)
        monkeypatch.setenv("GEMMA_TUNE_ROOTS", str(model))
        values = {
            "model": {"id": str(model)}, "data": {"source": source}, "objective": {"type": objective},
            "train": {"per_device_train_batch_size": 2, **train},
        }  # fmt: skip
        return config.parse(values)

    return configure


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_rows_with_images_are_checked_like_others(seeing, write, family):
    report = check(seeing(write("a.jsonl", seen(20)), family))
    assert not report.faults and report.train_rows == 18 and report.tokens.image_ends.all()
    assert not [one for one in report.findings if "copies" in one.title or "same" in one.title]


def test_images_and_a_model_that_reads_text_only_are_one_fault_of_the_set(configured, write):
    report = check(configured(write("a.jsonl", [*seen(3), *PAIRS])))
    (fault,) = report.faults
    assert fault.where == "model.id" and "images" in fault.rule and "data.read_images" in fault.way_out
    assert report.tokens is None and report.rows_accepted == 23 and not report.limited


def test_a_model_whose_image_processor_is_missing_is_one_fault_of_the_set(
    seeing_folder, folder, write, monkeypatch
):
    model = shutil.copytree(seeing_folder("gemma4"), folder / "model")
    (model / "preprocessor_config.json").unlink()
    values = {"model": {"id": str(model)}, "data": {"source": write("a.jsonl", seen(20))}}
    (fault,) = check(config.parse(values)).faults
    assert fault.value == str(model) and "no preprocessor_config.json" in fault.rule


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo", "grpo"])
def test_images_are_learned_from_answers_only_and_another_objective_is_one_fault(seeing, write, objective):
    (fault,) = check(
        seeing(write("a.jsonl", seen(20)), objective=objective, per_device_train_batch_size=8)
    ).faults
    assert (fault.where, fault.value) == ("objective.type", objective) and "sft" in fault.way_out


def test_images_beside_preferences_leave_every_row_out(seeing, write):
    rows = [
        {"image": data_uri(picture()), "prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(5)
    ]
    report = check(seeing(write("a.jsonl", rows), objective="dpo"))
    assert report.rows_rejected == 5 and "None of the 5 rows" in report.faults[0].rule
    assert "not from preferences" in report.faults[1].rule


def test_rows_whose_images_would_be_cut_are_left_out_with_the_length_that_they_need(seeing, write):
    rows = [*seen(58), *seen(2, images=9)]
    whole = check(seeing(write("a.jsonl", rows)))
    limit = int(whole.tokens.image_ends.max()) - 1
    needed = int(whole.tokens.before_learned().max()) + 1
    report = check(seeing(write("a.jsonl", rows), max_length=limit))
    assert not report.faults and report.unlearnable_rows in (1, 2)
    cut = [one for one in report.limited if "never cut" in one.rule]
    assert len(cut) == report.unlearnable_rows and f"max_length to {needed} or more" in cut[0].way_out
    (fault,) = check(seeing(write("b.jsonl", seen(20, images=9)), max_length=limit)).faults
    assert fault.where == "train.max_length" and int(re.search(r"above (\d+)", fault.way_out)[1]) >= limit


def test_the_same_question_about_another_image_is_another_row(seeing, write):
    same = [
        {"image": data_uri(picture((5 + n, 5))), "prompt": "What is this?", "completion": "A square."}
        for n in range(30)
    ]
    report = check(seeing(write("a.jsonl", same)))
    assert [one.title for one in report.findings if one.tone == "warm"] == []
    report = check(seeing(write("b.jsonl", [*same, same[0]])))
    assert [(one.title, one.count) for one in report.findings if "copies" in one.title] == [
        ("Exact copies", 1)
    ]


def test_images_that_are_not_wanted_are_left_out_and_the_text_is_learned(configured, write):
    source = write("a.jsonl", seen(20))
    assert check(configured(source)).faults
    left_out = check(configured(source, {"read_images": False}))
    assert not left_out.faults and "left out, as asked" in left_out.prepared.schema.why
    assert not left_out.prepared.store.has_images
