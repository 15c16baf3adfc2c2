"""From a configuration to the rows of both sides, with every fault of the set at once."""

import json

import pytest

from gemma_tune import config, hub
from gemma_tune.data import Cancelled, prepare
from gemma_tune.data.fitting import WORDS
from gemma_tune.data.prepare import gather, parts_of
from gemma_tune.errors import DataError, Fault
from gemma_tune.objectives import OBJECTIVES

PAIRS = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(20)]
EMPTY = {"prompt": "no answer", "completion": ""}


def configured(source: str, batch: int = 1, **data) -> config.RunConfig:
    return config.parse({"data": {"source": source, **data}, "train": {"per_device_train_batch_size": batch}})


def faults_of(configuration: config.RunConfig) -> tuple[Fault, ...]:
    with pytest.raises(DataError) as caught:
        prepare(configuration)
    return caught.value.faults


def answers(prepared, side: str) -> set[str]:
    return {row.answer_text() for row in prepared.store.rows(getattr(prepared, side))}


def test_prepare_gives_both_sides_and_every_reason(write):
    prepared = prepare(configured(write("a.jsonl", [*PAIRS, EMPTY])))
    assert (len(prepared.train), len(prepared.validation), prepared.store.rejected_count) == (18, 2, 1)
    (rejected,) = prepared.store.rejected()
    assert (rejected.number, rejected.field, rejected.side) == (21, "completion", "train")
    assert prepared.schema.format == "prompt_completion" and prepared.source == "a.jsonl"
    assert prepared.fingerprint == prepared.store.key and not prepared.faults and not prepared.warnings
    assert len(answers(prepared, "train") | answers(prepared, "validation")) == 20


def test_the_same_data_read_the_same_way_have_one_fingerprint(write):
    one, other = write("a.jsonl", PAIRS), write("b.jsonl", PAIRS)
    key = prepare(configured(one)).fingerprint
    assert prepare(configured(other, split_seed=1, validation_fraction=0.3)).fingerprint == key
    different = [
        prepare(configured(write("c.jsonl", PAIRS[:-1]))).fingerprint,
        prepare(configured(one, fixes=["strip"])).fingerprint,
        prepare(configured(one, columns={"prompt": "completion", "completion": "prompt"})).fingerprint,
    ]
    assert len({key, *different}) == 4


def test_a_set_without_a_usable_row_shows_the_first_reasons(write):
    source = write("a.jsonl", [{"prompt": "x", "completion": ""} for _ in range(9)])
    faults = faults_of(configured(source))
    assert "None of the 9 rows can be used" in faults[0].rule and len(faults) == 4
    assert faults[1].where == "a.jsonl row 1, completion" and "The answer is empty" in faults[1].rule
    found = gather(configured(source))
    assert found.store.rejected_count == len(list(found.store.rejected())) == 9
    assert tuple(found.faults) == faults and not len(found.train)


def test_a_set_of_unreadable_lines_shows_the_first_reasons(write):
    faults = faults_of(configured(write("a.jsonl", "{\n{\n")))
    assert "None of the 2 rows can be used" in faults[0].rule
    assert [fault.where for fault in faults] == ["a.jsonl", "a.jsonl row 1", "a.jsonl row 2"]


def test_a_set_smaller_than_one_batch_is_refused(write):
    (fault,) = faults_of(configured(write("a.jsonl", PAIRS), batch=19))
    assert fault.value == "18 training rows" and "smaller than one batch of 19" in fault.rule
    assert "per_device_train_batch_size to 18" in fault.way_out
    assert not prepare(configured(write("a.jsonl", PAIRS), batch=18)).faults
    assert not prepare(configured(write("a.jsonl", PAIRS), batch=19, weight=2)).faults


def test_validation_rows_may_come_from_a_source_of_their_own(write):
    source = write("a.jsonl", PAIRS)
    held = write("held.json", [{"prompt": "v", "completion": "w"}, {"prompt": "v", "completion": ""}])
    prepared = prepare(configured(source, validation_source=held))
    assert len(prepared.train) == 20 and answers(prepared, "validation") == {"w"}
    (rejected,) = prepared.store.rejected()
    assert (rejected.number, rejected.side, rejected.file) == (2, "validation", "held.json")
    assert list(rejected.as_dict()) == ["file", "number", "field", "value", "rule", "way_out"]
    assert rejected.as_dict()["field"] == "validation completion"


def test_the_training_rows_cannot_validate_themselves(write):
    source = write("a.jsonl", PAIRS)
    (fault,) = faults_of(configured(source, validation_source=source))
    assert fault.where == "data.validation_source" and "the training rows themselves" in fault.rule


def test_a_validation_source_without_a_usable_row_is_refused_and_nothing_is_split_off_instead(write):
    bad = write("bad.json", [{"prompt": "v", "completion": ""}, *[{"prompt": "v", "completion": 3}] * 4])
    faults = faults_of(configured(write("a.jsonl", [*PAIRS, EMPTY]), validation_source=bad))
    assert (faults[0].where, faults[0].rule) == ("validation bad.json", "None of the 5 rows can be used.")
    assert faults[1].where == "bad.json row 1, completion" and len(faults) == 4


def test_validation_rows_are_read_as_the_training_rows_where_their_columns_allow_it(write):
    columns = {"prompt": "frage", "completion": "antwort"}
    source = write("a.jsonl", [{"frage": f"f{n}", "antwort": f"a{n}", "output": "x"} for n in range(5)])
    same = write("b.jsonl", [{"frage": "v", "antwort": "w", "prompt": "not", "completion": "this"}])
    other = write("c.json", [{"instruction": "v", "output": "z"}])
    assert answers(prepare(configured(source, columns=columns, validation_source=same)), "validation") == {
        "w"
    }
    assert answers(prepare(configured(source, columns=columns, validation_source=other)), "validation") == {
        "z"
    }


def test_an_example_is_validated_on_its_held_out_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "examples_folder", lambda: tmp_path)
    (tmp_path / "small").mkdir()
    for name, rows in (("train", PAIRS[:15]), ("held_out", PAIRS[15:])):
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / "small" / f"{name}.jsonl").write_text(lines)
    prepared = prepare(configured("example:small", split="a Hub split chosen before"))
    assert (len(prepared.train), len(prepared.validation)) == (15, 5)
    assert answers(prepared, "validation") == {f"answer {n}" for n in range(15, 20)}
    other = prepare(configured("example:small", validation_source="example:small#held_out"))
    assert other.fingerprint == prepared.fingerprint


def test_the_note_on_an_encoding_becomes_a_warning(write):
    source = write("a.csv", "prompt,completion\nOlá,café\nb,c\nd,e\n".encode("cp1252"))
    (warning,) = prepare(configured(source)).warnings
    assert "Windows-1252" in warning.rule and warning.where == "a.csv"
    (warning,) = prepare(configured(write("b.jsonl", PAIRS), validation_source=source)).warnings
    assert warning.where == "validation a.csv"


def test_a_csv_with_a_missing_column_is_refused_before_any_row_is(write):
    source = write("a.csv", "instruction,input\nSay hello,\nSay bye,\n")
    with pytest.raises(
        DataError, match="a.csv: The column output is missing.*instruction, input.*data.columns.output"
    ):
        prepare(configured(source))


def test_the_sources_of_a_mix_have_each_a_schema_of_their_own(write):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "talk"}]
    mix = [
        {"source": write("b.jsonl", [{"messages": talk}])},
        {"source": write("c.csv", "frage,antwort\nf,mapped\n"), "columns": {"prompt": "frage", "completion": "antwort"}},
    ]  # fmt: skip
    source = write("a.jsonl", PAIRS)
    prepared = prepare(configured(source, mix=mix, validation_fraction=0))
    assert [part.schema.format for part in prepared.parts] == [
        "prompt_completion",
        "messages",
        "prompt_completion",
    ]
    assert answers(prepared, "train") == {*(f"answer {n}" for n in range(20)), "talk", "mapped"}
    files = {row.file for row in prepared.store.rows(prepared.train)}
    assert files == {"a.jsonl", "b.jsonl", "c.csv"}


def test_a_source_of_a_mix_without_a_usable_row_is_told_by_its_name(write):
    bad = write("b.jsonl", [EMPTY] * 2)
    faults = faults_of(configured(write("a.jsonl", [*PAIRS, EMPTY]), mix=[{"source": bad}]))
    assert (faults[0].where, faults[0].rule) == ("b.jsonl", "None of the 2 rows can be used.")
    assert [fault.where for fault in faults[1:]] == ["b.jsonl row 1, completion", "b.jsonl row 2, completion"]


def test_every_source_of_a_mix_that_cannot_be_read_is_told_at_once(write):
    mix = [{"source": write("b.json", "[")}, {"source": write("c.csv", "colour,shape,taste\na,b,c\n")}]
    faults = faults_of(configured(write("a.jsonl", ""), mix=mix))
    assert [fault.where.split(" ")[0] for fault in faults] == ["a.jsonl", "b.json", "c.csv"]


def test_the_files_of_a_folder_are_read_each_by_its_own_schema(folder, write):
    (folder / "set").mkdir()
    (folder / "set" / "a.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    (folder / "set" / "b.csv").write_text("instruction,output\nSay,said\n,empty\n")
    prepared = prepare(configured(str(folder / "set"), validation_fraction=0))
    assert [part.schema.format for part in prepared.parts] == ["prompt_completion", "alpaca"]
    assert len(prepared.train) == 21 and "said" in answers(prepared, "train")
    (rejected,) = prepared.store.rejected()
    assert (rejected.file, rejected.number, rejected.field) == ("b.csv", 2, "instruction")
    (fault,) = faults_of(configured(str(folder / "set"), batch=50, validation_fraction=0))
    assert fault.where == "a.jsonl and 1 other"


def test_a_split_column_decides_and_must_be_there(write):
    rows = [row | {"part": "train" if number < 15 else "dev"} for number, row in enumerate(PAIRS)]
    source = write("a.jsonl", [*rows, PAIRS[0] | {"part": "both"}])
    prepared = prepare(configured(source, split_column="part"))
    assert answers(prepared, "validation") == {f"answer {n}" for n in range(15, 20)}
    (rejected,) = prepared.store.rejected()
    assert (rejected.number, rejected.field, rejected.value) == (21, "part", "both")
    (fault,) = faults_of(configured(source, split_column="side"))
    assert (fault.where, fault.value) == ("data.split_column", "side")
    assert "There are: prompt, completion, part." in fault.way_out


def test_a_split_column_that_holds_every_row_back_is_refused(write):
    source = write("a.jsonl", [row | {"part": "test"} for row in PAIRS])
    (fault,) = faults_of(configured(source, split_column="part"))
    assert fault.where == "data.split_column" and "every row among the validation rows" in fault.rule


def test_a_weight_that_leaves_no_row_is_refused(write):
    (fault,) = faults_of(configured(write("a.jsonl", PAIRS[:3]), weight=0.05))
    assert fault.where == "data.weight" and "no row is left" in fault.rule


def test_answers_that_are_labelled_as_bad_are_kept_but_not_learned(write):
    rows = [row | {"label": number % 4 != 0} for number, row in enumerate(PAIRS)]
    prepared = prepare(configured(write("a.jsonl", rows)))
    assert prepared.unused == 5 and len(prepared.store) == 20
    assert len(prepared.train) + len(prepared.validation) == 15
    (fault,) = faults_of(configured(write("b.jsonl", [row | {"label": False} for row in PAIRS])))
    assert "labelled as bad" in fault.rule and fault.value == "20 rows"


def test_fixes_that_are_asked_for_are_applied(write):
    rows = [
        {"messages": [{"role": "user", "content": " a "}] * 2 + [{"role": "assistant", "content": "b"}]}
    ] * 3
    source = write("a.jsonl", rows)
    assert {one.fixes for one in gather(configured(source)).store.rejected()} == {("merge_turns",)}
    prepared = prepare(configured(source, fixes=["strip", "merge_turns"]))
    assert prepared.store.row(0).messages[0]["content"] == "a\n\na"


def test_the_watch_is_told_each_phase_and_can_stop_the_work(write):
    source = write("a.jsonl", PAIRS)
    told = []
    prepare(configured(source), watch=lambda *progress: told.append(progress))
    assert told[0] == ("opening", 0, None) and told[-1][0] == "reading" and told[-1][1] == told[-1][2]

    def stop(phase, done, total):
        if phase == "reading":
            raise Cancelled

    with pytest.raises(Cancelled):
        prepare(configured(write("b.jsonl", PAIRS[:9])), watch=stop)
    assert len(prepare(configured(source)).train) == 18


def test_parts_tell_what_is_opened_and_how_it_is_read(write):
    data = configured(write("a.jsonl", PAIRS), validation_source=write("b.jsonl", PAIRS[:3])).data
    train, validation = parts_of(data, None)
    assert (train.opened.name, train.held_back) == ("a.jsonl", False)
    assert (validation.opened.name, validation.held_back) == ("b.jsonl", True)
    assert train.schema == validation.schema and train.key() != validation.key()


# ---- rows that do not fit the objective ------------------------------------------------------------------------------
KINDS = {
    "messages": [{"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}"}]} for n in range(8)],
    "pair": [{"prompt": f"q {n}", "chosen": f"a {n}", "rejected": "b"} for n in range(8)],
    "label": [{"prompt": f"q {n}", "completion": f"a {n}", "label": n % 2 == 0} for n in range(8)],
    "text": [{"text": f"A plain text number {n}."} for n in range(8)],
}  # fmt: skip


def aimed(source: str, objective: str, **more) -> config.RunConfig:
    return config.parse({
        "data": {"source": source, "validation_fraction": 0},
        "objective": {"type": objective, "num_generations": 2, **more},
        "train": {"per_device_train_batch_size": 2},
    })  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_an_objective_takes_its_own_rows_and_names_those_that_would_suit_the_others(write, kind, objective):
    found = gather(aimed(write(f"{kind}.jsonl", KINDS[kind]), objective))
    if kind in OBJECTIVES[objective].rows:
        assert not found.faults
        assert len(found.train) == (4 if (kind, objective) == ("label", "sft") else 8)
        return
    (fault,) = found.faults
    assert (fault.where, fault.value, len(found.train)) == ("objective.type", objective, 0)
    assert f"8 {WORDS[kind]}" in fault.rule
    assert all(name in fault.way_out for name, one in OBJECTIVES.items() if kind in one.rows)


def test_bad_answers_are_learned_from_by_kto_alone(write):
    source = write("labels.jsonl", KINDS["label"])
    found = gather(aimed(source, "kto"))
    assert (len(found.train), found.unused, found.unused_bad) == (8, 0, 0)
    found = gather(aimed(source, "sft"))
    assert (len(found.train), found.unused, found.unused_bad) == (4, 4, 4)


def test_rows_of_a_mix_that_do_not_fit_are_counted_and_not_used(write):
    settings = aimed(write("pairs.jsonl", KINDS["pair"]), "dpo").model_dump()
    settings["data"]["mix"] = [{"source": write("talks.jsonl", KINDS["messages"][:3])}]
    found = gather(config.parse(settings))
    assert not found.faults and (len(found.train), found.unused, found.unused_bad) == (8, 3, 0)
    (warning,) = found.warnings
    assert warning.where == "objective.type" and "3 conversations are not used" in warning.rule


def test_labels_that_are_all_alike_are_warned_of(write):
    good = [row | {"label": True} for row in KINDS["label"]]
    (warning,) = gather(aimed(write("good.jsonl", good), "kto")).warnings
    assert "Every answer is labelled as good" in warning.rule and "bad answers" in warning.way_out


def test_a_reward_for_calls_needs_functions(write):
    source = write("talks.jsonl", KINDS["messages"])
    (fault,) = gather(aimed(source, "grpo", reward="tool_call")).faults
    assert fault.where == "objective.reward" and "No row has functions" in fault.rule
    assert not gather(aimed(source, "grpo", reward="exact_match")).faults


def test_grpo_needs_the_prompts_of_one_step(write):
    settings = aimed(write("talks.jsonl", KINDS["messages"][:3]), "grpo").model_dump()
    settings["train"] |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    (fault,) = gather(config.parse(settings)).faults  # 8 answers, 2 to each prompt
    assert "smaller than one batch of 4 rows" in fault.rule
