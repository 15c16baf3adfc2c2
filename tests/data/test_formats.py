import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_tune.data.formats import FORMATS, convert, recognise
from gemma_tune.data.rows import Table
from gemma_tune.errors import DataError


def table_of(*records: dict) -> Table:
    columns = list(dict.fromkeys(column for record in records for column in record))
    return Table(columns, list(enumerate(records, 1)), [], "f", "a.json")


def one(record: dict, format: str = "auto", columns: dict | None = None):
    """The messages of a single row, or its Rejected."""
    table = table_of(record)
    rows, rejected = convert(table, recognise(table, format, columns))
    return rows[0] if rows else rejected[0]


def turns(*contents: str, system: str = "") -> list[dict]:
    found = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + found


def sharegpt(*contents: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(contents)]


@pytest.mark.parametrize(
    ("record", "format", "expected"),
    [
        ({"messages": turns("a", "b", "c", "d")}, "messages", turns("a", "b", "c", "d")),
        ({"messages": turns("a", "b", system="s")}, "messages", turns("a", "b", system="s")),
        ({"chat": turns("a", "b"), "id": "7"}, "messages", turns("a", "b")),
        ({"whatever": turns("a", "b")}, "messages", turns("a", "b")),
        ({"messages": json.dumps(turns("a", "b"))}, "messages", turns("a", "b")),
        ({"conversations": sharegpt("a", "b"), "system": "s"}, "sharegpt", turns("a", "b", system="s")),
        ({"conversations": sharegpt("a", "b"), "system": ""}, "sharegpt", turns("a", "b")),
        ({"conversations": turns("a", "b")}, "messages", turns("a", "b")),
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca", turns("a", "b")),
        ({"instruction": "a", "output": "b"}, "alpaca", turns("a", "b")),
        ({"instruction": "a", "input": None, "output": "b"}, "alpaca", turns("a", "b")),
        ({"instruction": "a", "input": "x", "output": "b", "system": "s"}, "alpaca", turns("a\n\nx", "b", system="s")),
        (
            {"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]}, "alpaca",
            turns("a", "b", "c", "d"),
        ),
        ({"instruction": "a", "context": "x", "response": "b"}, "alpaca", turns("a\n\nx", "b")),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", turns("a", "b")),
        ({"Question": "a", "Answer": "b"}, "prompt_completion", turns("a", "b")),
        ({"input": "a", "output": "b"}, "prompt_completion", turns("a", "b")),
        (
            {"prompt": turns("a", "b", "c"), "completion": [{"role": "assistant", "content": "d"}]},
            "prompt_completion", turns("a", "b", "c", "d"),
        ),
    ],
)  # fmt: skip
def test_a_schema_is_recognised_and_read(record, format, expected):
    schema = recognise(table_of(record))
    assert schema.format == format and 0 < schema.confidence <= 1 and schema.why
    assert one(record).messages == expected


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "chosen": "good", "rejected": "bad"},
        {"prompt": "a", "chosen": turns("a", "good"), "rejected": turns("a", "bad")},
        {"prompt": turns("a"), "chosen": turns("a", "good")[1:], "rejected": turns("a", "bad")[1:]},
        {"chosen": turns("a", "good"), "rejected": turns("a", "bad")},
        {
            "conversations": sharegpt("a"),
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
)
def test_preference_pairs_are_read_in_every_spelling(record):
    assert recognise(table_of(record)).format == "preference"
    row = one(record)
    assert row.messages == turns("a", "good")
    assert row.rejected_messages == [{"role": "assistant", "content": "bad"}]


def test_an_implicit_prompt_is_all_that_both_sides_share():
    row = one({"chosen": turns("a", "b", "c", "x"), "rejected": turns("a", "b", "c", "y")})
    assert row.messages == turns("a", "b", "c", "x")
    assert row.rejected_messages == turns("c", "y")[1:]


def test_a_prompt_repeated_behind_a_system_turn_is_no_second_turn():
    sides = {name: turns("a", name, system="s") for name in ("chosen", "rejected")}
    assert one({"prompt": "a", **sides}).messages == turns("a", "chosen", system="s")


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("record", "field", "value", "rule", "way_out"),
    [
        ({"instruction": "a", "output": ""}, "output", "", "The answer is empty.", "take the row out"),
        ({"instruction": "a", "output": " \n"}, "output", "", "The answer is empty.", "take the row out"),
        ({"instruction": "a", "output": 42}, "output", "42", "must be text, not a number", '"42"'),
        ({"instruction": "a", "output": None}, "output", "nothing", "The answer is missing", "Fill in output"),
        ({"instruction": "", "output": "b"}, "instruction", "", "instruction is empty", "Fill in"),
        ({"instruction": "a", "input": 3.5, "output": "b"}, "input", "3.5", "not a number", "quotes"),
        ({"instruction": "a", "output": ["b"]}, "output", "['b']", "not a list", "map another column"),
        ({"instruction": "a", "output": "b", "history": "x"}, "history", "x", "list of [question, answer]", "Write it"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "history[0]", "['q']", "[question, answer]", "Write both"),
        ({"prompt": "a", "completion": True}, "completion", "True", "not a number", "quotes"),
        ({"prompt": "a", "completion": "\ud800"}, "completion", "ud800", "lone surrogate", "UTF-8"),
        (
            {"messages": [user("a"), answer("b"), answer("c")]}, "messages[2].role", "c",
            "Two assistant turns in a row.", "Merge them",
        ),
        ({"messages": [user("a"), user("b"), answer("c")]}, "messages[1].role", "b", "Two user turns", "Merge"),
        ({"messages": [{"role": "system", "content": "s"}]}, "messages", "s", "only a system turn", "Add a user turn"),
        ({"messages": [user("a")]}, "messages[0].role", "user", "does not end with an assistant turn", "Add the answer"),
        ({"messages": [answer("a"), user("b")]}, "messages[0].role", "assistant", "first turn must be the user's", "Begin"),
        ({"messages": [user("a"), answer("")]}, "messages[1].content", "", "The answer is empty", "take the row out"),
        ({"messages": [user("a"), answer(7)]}, "messages[1].content", "7", "not a number", "quotes"),
        ({"messages": [user("a"), {"role": "tool", "content": "b"}]}, "messages[1].role", "tool", "not known", "assistant"),
        (
            {"messages": [user("a"), {"role": "system", "content": "s"}, answer("b")]}, "messages[1].role", "system",
            "can only stand first", "beginning",
        ),
        ({"messages": [user("a"), "b"]}, "messages[1]", "b", "must be an object", '{"role"'),
        ({"messages": [user("a"), {"content": "b"}]}, "messages[1]", "content", "has no role", '{"role"'),
        ({"messages": [user("a"), {"role": "assistant"}]}, "messages[1].content", "nothing", "missing", "Fill in"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "conversations[0].role", "user", "does not end", "Add"),
        (
            {"messages": turns("a", "b", system="s"), "system": "t"}, "system", "t", "a system text and a system turn",
            "Keep one",
        ),
        ({"prompt": "a", "chosen": "x", "rejected": "x"}, "rejected", "x", "Both answers are the same", "Take the row out"),
        ({"chosen": "x", "rejected": "y"}, "chosen", "x", "needs a prompt", "Add a prompt column"),
        ({"prompt": "a", "chosen": "", "rejected": "y"}, "chosen", "", "is empty", "take the row out"),
        (
            {"prompt": turns("a", "b"), "chosen": "x", "rejected": "y"}, "prompt + chosen[2].role", "x",
            "Two assistant turns", "Merge",
        ),
    ],
)  # fmt: skip
def test_a_row_that_breaks_a_rule_is_rejected_with_its_reason(record, field, value, rule, way_out):
    found = one(record)
    assert found.number == 1
    assert found.field == field
    assert value in found.value
    assert rule in found.rule
    assert way_out in found.way_out
    assert found.as_dict()["rule"] == found.rule and str(found.as_fault("a.json")).startswith(
        "a.json row 1, "
    )


def test_rows_and_reasons_keep_their_numbers_and_order():
    good = {"instruction": "a", "output": "b"}
    table = table_of(good, {"instruction": "a"}, good, {"output": "b"}, good)
    rows, rejected = convert(table, recognise(table))
    assert [row.number for row in rows] == [1, 3, 5]
    assert [(one.number, one.field) for one in rejected] == [(2, "output"), (4, "instruction")]


def test_columns_mapped_by_hand_win_over_names():
    record = {"prompt": "a", "completion": "b", "better": "c"}
    assert one(record, columns={"completion": "better"}).messages == turns("a", "c")
    odd = {"frage": "a", "antwort": "b"}
    assert one(odd, columns={"prompt": "frage", "completion": "antwort"}).messages == turns("a", "b")
    assert one(odd, "alpaca", {"instruction": "frage", "output": "antwort"}).messages == turns("a", "b")


def faults_of(record: dict, format: str = "auto", columns: dict | None = None):
    with pytest.raises(DataError) as caught:
        recognise(table_of(record), format, columns)
    return caught.value.faults


def test_a_missing_column_is_named_with_the_way_to_map_it():
    (fault,) = faults_of({"instruction": "a", "reply_text": "b"})
    assert fault.where == "a.json" and fault.value == "instruction, reply_text"
    assert "column output is missing for the schema alpaca" in fault.rule
    assert "data.columns.output" in fault.way_out
    (fault,) = faults_of({"frage": "a"}, "prompt_completion")
    assert "prompt and completion is missing" in fault.rule


def test_columns_of_no_schema_are_answered_with_what_there_is():
    (fault,) = faults_of({"x": "a", "y": "b"})
    assert "No known schema" in fault.rule
    assert all(name in fault.way_out for name in FORMATS)


def test_every_fault_of_a_mapping_is_told_at_once():
    first, second = faults_of(
        {"question": "a", "answer": "b"}, columns={"prompt": "qestion", "completion": "x"}
    )
    assert first.where == "data.columns.prompt" and "Did you mean question?" in first.way_out
    assert second.where == "data.columns.completion" and "There are: question, answer." in second.way_out
    (fault,) = faults_of({"a": "b"}, columns={"promt": "a"})
    assert fault.where == "data.columns.promt" and "no such field" in fault.rule


def test_a_column_of_turns_that_holds_none_is_named():
    (fault,) = faults_of({"messages": "hello"}, "messages")
    assert "No row holds a list of turns" in fault.rule
    assert one({"messages": [{"role": "user"}]}).rule == "The user turn is missing."


text = st.text(max_size=8) | st.none() | st.integers()
role = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", ""])
message = st.fixed_dictionaries({"role": role, "content": text}) | st.fixed_dictionaries(
    {"from": role, "value": text}
)


@given(st.lists(st.lists(message, max_size=5), min_size=1, max_size=6))
def test_a_conversation_comes_out_whole_and_in_order_or_with_a_reason(conversations):
    table = table_of(*({"messages": conversation} for conversation in conversations))
    schema = recognise(table, "messages", {"messages": "messages"})
    rows, rejected = convert(table, schema)
    assert sorted([row.number for row in rows] + [one.number for one in rejected]) == list(
        range(1, len(table.rows) + 1)
    )
    for row in rows:
        given_texts = [turn.get("content", turn.get("value")) for turn in conversations[row.number - 1]]
        assert [message["content"] for message in row.messages] == given_texts
        roles = [message["role"] for message in row.messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
    assert all(one.rule and one.way_out and one.field for one in rejected)
