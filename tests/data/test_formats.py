import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_tune.data.formats import FORMATS, convert, reader, recognise
from gemma_tune.data.rows import Rejected, Row, Schema, Table
from gemma_tune.errors import DataError


def table_of(*records: dict) -> Table:
    columns = list(dict.fromkeys(column for record in records for column in record))
    return Table(columns, list(enumerate(records, 1)), [], "a.json")


def one(record: dict, format: str = "auto", columns: dict | None = None, fixes: tuple[str, ...] = ()):
    """The single row, or its Rejected."""
    table = table_of(record)
    rows, rejected = convert(table, recognise(table, format, columns), frozenset(fixes))
    return rows[0] if rows else rejected[0]


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def turns(*contents: str, system: str = "", role: str = "system") -> list[dict]:
    found = [(user, answer)[i % 2](text) for i, text in enumerate(contents)]
    return ([{"role": role, "content": system}] if system else []) + found


def sharegpt(*contents: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(contents)]


def parts(*texts: str) -> list[dict]:
    return [{"type": "text", "text": text} for text in texts]


# ---- which schema, and why -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("record", "format", "expected"),
    [
        ({"messages": turns("a", "b", "c", "d")}, "messages", turns("a", "b", "c", "d")),
        ({"messages": turns("a", "b", system="s")}, "messages", turns("a", "b", system="s")),
        ({"messages": turns("a", "b", system="s", role="developer")}, "messages", turns("a", "b", system="s", role="developer")),
        ({"messages": turns("a", "b"), "system": "s"}, "messages", turns("a", "b", system="s")),
        ({"messages": [user(parts("a", "x")), answer(parts("b"))]}, "messages", turns("a\nx", "b")),
        ({"messages": [user(["a", {"text": "x"}]), answer("b")]}, "messages", turns("a\nx", "b")),
        ({"chat": turns("a", "b"), "id": "7"}, "messages", turns("a", "b")),
        ({"whatever": turns("a", "b")}, "messages", turns("a", "b")),
        ({"messages": json.dumps(turns("a", "b"))}, "messages", turns("a", "b")),
        ({"messages": [{"role": "Model ", "content": "b"}][:0] + turns("a", "b")}, "messages", turns("a", "b")),
        ({"conversations": sharegpt("a", "b"), "system": "s"}, "sharegpt", turns("a", "b", system="s")),
        ({"conversations": sharegpt("a", "b"), "system": ""}, "sharegpt", turns("a", "b")),
        ({"conversations": turns("a", "b")}, "messages", turns("a", "b")),
        ({"dialogue": sharegpt("a", "b")}, "sharegpt", turns("a", "b")),
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca", turns("a", "b")),
        ({"instruction": "a", "output": "b"}, "alpaca", turns("a", "b")),
        ({"instruction": "a", "input": None, "output": "b"}, "alpaca", turns("a", "b")),
        ({"instruction": "a", "input": "x", "output": "b", "system": "s"}, "alpaca", turns("a\n\nx", "b", system="s")),
        (
            {"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]}, "alpaca",
            turns("a", "b", "c", "d"),
        ),
        (
            {"instruction": "e", "input": "x", "output": "f", "history": [["a", "b"], ("c", "d")], "system": "s"}, "alpaca",
            turns("a", "b", "c", "d", "e\n\nx", "f", system="s"),
        ),
        ({"instruction": "a", "context": "x", "response": "b"}, "alpaca", turns("a\n\nx", "b")),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", turns("a", "b")),
        ({"prompt": "a", "completion": "b", "system_prompt": "s"}, "prompt_completion", turns("a", "b", system="s")),
        ({"Question": "a", "Answer": "b"}, "prompt_completion", turns("a", "b")),
        ({"input": "a", "output": "b"}, "prompt_completion", turns("a", "b")),
        ({"source": "a", "target": "b"}, "prompt_completion", turns("a", "b")),
        ({"query": "a", "response": "b", "score": 3}, "prompt_completion", turns("a", "b")),
        ({"problem": "a", "solution": "b"}, "prompt_completion", turns("a", "b")),
        ({" HUMAN ": "a", "Assistant": "b"}, "prompt_completion", turns("a", "b")),
        ({"prompt": turns("a", "b", "c"), "completion": [answer("d")]}, "prompt_completion", turns("a", "b", "c", "d")),
        ({"prompt": user("a"), "completion": answer("b")}, "prompt_completion", turns("a", "b")),
        ({"prompt": turns("a", "b", "c"), "completion": "d"}, "prompt_completion", turns("a", "b", "c", "d")),
    ],
)  # fmt: skip
def test_a_schema_is_recognised_and_read(record, format, expected):
    schema = recognise(table_of(record))
    assert schema.format == format and 0 < schema.confidence <= 1
    assert schema.why.startswith("Recognised by its columns: ") and schema.why.endswith(".")
    assert one(record).messages == expected


@pytest.mark.parametrize(
    ("record", "format", "columns"),
    [
        ({"frage": "Wer?", "antwort": "Ich.", "id": 3}, "prompt_completion", {"prompt": "frage", "completion": "antwort"}),
        ({"nr": "17", "a": "Wer?", "b": "Ich."}, "prompt_completion", {"prompt": "a", "completion": "b"}),
        ({"absatz": "Es war einmal.", "seite": 3}, "text", {"text": "absatz"}),
        ({"absatz": "Es war einmal.", "seite": "3.5"}, "text", {"text": "absatz"}),
    ],
)  # fmt: skip
def test_where_no_name_tells_anything_the_columns_of_text_are_a_guess(record, format, columns):
    schema = recognise(table_of(*[record] * 3))
    assert (schema.format, schema.columns) == (format, columns)
    assert schema.confidence < 0.5 and schema.why.startswith("A guess, since no column has a known name")


def test_a_column_of_a_few_words_that_come_again_is_a_class_and_no_text():
    records = [{"satz": f"Satz {n}", "klasse": ("gut", "schlecht")[n % 2]} for n in range(20)]
    assert recognise(table_of(*records)).columns == {"text": "satz"}
    assert recognise(table_of(*records[:10])).columns == {"prompt": "satz", "completion": "klasse"}


def test_nothing_is_guessed_from_three_columns_of_text_or_beside_a_known_name():
    for record in ({"a": "x", "b": "y", "c": "z"}, {"frage": "a", "output": "b"}, {"a": 1, "b": 2}):
        with pytest.raises(DataError):
            recognise(table_of(record))


@pytest.mark.parametrize("name", ["text", "Content", "document", "body"])
def test_a_column_of_plain_text_is_a_text(name):
    record = {name: " Once upon a time. ", "url": "https://example.org"}
    schema = recognise(table_of(record))
    assert schema.format == "text" and "url" in schema.why
    row = one(record)
    assert row == Row(1, text=" Once upon a time. ") and row.kind == "text"
    assert one(record, fixes=("strip",)).text == "Once upon a time."


def test_the_schema_that_explains_more_is_believed_more():
    sure = recognise(table_of({"messages": turns("a", "b")}))
    less = recognise(table_of({"question": "a", "answer": "b"}))
    half = recognise(table_of({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}))
    exact = recognise(table_of({"prompt": "a", "completion": "b"}))
    assert sure.confidence == 1.0 > exact.confidence > less.confidence and half.confidence < 0.5
    both = {"text": "t", "prompt": "a", "completion": "b"}
    assert recognise(table_of(both)).format == "prompt_completion"
    assert (
        recognise(table_of({"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d"})).format
        == "preference"
    )


# ---- pairs and labels ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "chosen": "good", "rejected": "bad"},
        {"question": "a", "Chosen": "good", "Rejected": "bad"},
        {"prompt": "a", "chosen": turns("a", "good"), "rejected": turns("a", "bad")},
        {"prompt": turns("a"), "chosen": turns("a", "good")[1:], "rejected": turns("a", "bad")[1:]},
        {"prompt": user("a"), "chosen": answer("good"), "rejected": answer("bad")},
        {"prompt": "a", "chosen": json.dumps(turns("a", "good")), "rejected": json.dumps(turns("a", "bad"))},
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
    assert row.messages == turns("a", "good") and row.prompt_turns == 1 and row.kind == "pair"
    assert row.rejected_messages == [answer("bad")]


def test_an_implicit_prompt_is_all_that_both_sides_share():
    record = {"chosen": turns("a", "b", "c", "x"), "rejected": turns("a", "b", "c", "y")}
    for spelled in (record, record | {"prompt": "a"}):
        row = one(spelled)
        assert row.messages == turns("a", "b", "c", "x") and row.prompt_turns == 3
        assert row.rejected_messages == [answer("y")]


def test_a_prompt_repeated_behind_a_system_turn_is_no_second_turn():
    sides = {name: turns("a", name, system="s") for name in ("chosen", "rejected")}
    assert one({"prompt": "a", **sides}).messages == turns("a", "chosen", system="s")
    assert one({"prompt": "a", "system": "s", "chosen": "x", "rejected": "y"}).messages == turns(
        "a", "x", system="s"
    )


@pytest.mark.parametrize(
    ("yes", "no"),
    [(True, False), (1, 0), ("true", "false"), ("Yes", "No"), ("👍", "👎"), ("good", "bad"), (" thumbs_up", "thumbs_down"),
     ("chosen", "rejected"), ("desirable", "undesirable")],
)  # fmt: skip
def test_a_labelled_answer_is_read_in_every_spelling_of_the_label(yes, no):
    records = [{"prompt": "a", "completion": "b", "label": label} for label in (yes, no)]
    table = table_of(*records)
    schema = recognise(table)
    assert schema.format == "kto" and schema.confidence > 0.9
    rows, rejected = convert(table, schema)
    assert [row.label for row in rows] == [True, False] and not rejected
    assert all(
        row.messages == turns("a", "b") and row.prompt_turns == 1 and row.kind == "label" for row in rows
    )


def test_a_labelled_conversation_ends_with_the_labelled_answer():
    row = one({"completion": turns("a", "b", "c", "d"), "label": False})
    assert (row.messages, row.prompt_turns, row.label) == (turns("a", "b", "c", "d"), 3, False)
    assert "has no prompt" in one({"completion": "b", "label": True}, "kto").rule


def test_a_class_label_is_not_taken_for_a_good_or_bad_answer():
    records = [{"prompt": f"q{n}", "completion": "b", "label": n} for n in range(6)]
    schema = recognise(table_of(*records))
    assert schema.format == "prompt_completion" and "Not used: label" in schema.why
    assert one(records[0] | {"label": 4}, "kto", {"label": "label"}).rule.startswith("The label must say")


# ---- tools -----------------------------------------------------------------------------------------------------------
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
ADD = {
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
}


@pytest.mark.parametrize(
    "spelled", [[WEATHER], json.dumps([WEATHER]), [WEATHER["function"]], WEATHER, [json.dumps(WEATHER)]]
)
def test_tools_are_one_json_list_however_they_are_written(spelled):
    row = one({"messages": turns("a", "b"), "tools": spelled})
    assert json.loads(row.tools) == [WEATHER]


@pytest.mark.parametrize("none", [None, "", [], "[]", {}])
def test_a_row_may_have_no_tools(none):
    assert one({"messages": turns("a", "b"), "tools": none}).tools == ""


def test_arguments_stay_json_strings_with_another_signature_in_every_row():
    """Arrow would unify objects: every call would then have every argument of all rows."""
    given = [{"city": "Rome"}, {"a": 1, "b": [None, {"c": "é"}]}, {}]
    records = [
        {
            "messages": [
                user("q"),
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": wanted}}]},
                {"role": "tool", "name": "f", "content": {"found": 1}},
                answer("Done."),
            ],
            "tools": [WEATHER] if number else [ADD],
        }
        for number, wanted in enumerate([given[0], json.dumps(given[1]), ""])
    ]  # fmt: skip
    table = table_of(*records)
    rows, rejected = convert(table, recognise(table))
    assert not rejected and len(rows) == 3
    for row, arguments in zip(rows, given, strict=True):
        (call,) = row.messages[1]["tool_calls"]
        assert isinstance(call["function"]["arguments"], str) and call["type"] == "function"
        assert json.loads(call["function"]["arguments"]) == arguments
        assert row.messages[2] == {"role": "tool", "content": '{"found": 1}', "name": "f"}
    import pyarrow

    table = pyarrow.Table.from_pylist([row.as_trl() for row in rows])
    assert table.to_pylist()[0]["messages"][1]["tool_calls"] == rows[0].messages[1]["tool_calls"]


def test_a_sharegpt_call_and_its_observation_become_a_call_and_a_tool_turn():
    record = {
        "conversations": [
            {"from": "human", "value": "How is Rome?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "It is sunny."},
        ],
        "system": "Be brief.",
        "tools": json.dumps([ADD]),
    }
    assert recognise(table_of(record)).format == "sharegpt"
    row = one(record)
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    assert row.messages == [
        {"role": "system", "content": "Be brief."}, user("How is Rome?"),
        {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "sunny"},
        answer("It is sunny."),
    ]  # fmt: skip
    assert json.loads(row.tools)[0]["function"]["name"] == "add"


# ---- TRL's dataset types ---------------------------------------------------------------------------------------------
@pytest.mark.training  # importing TRL takes seconds
def test_rows_are_of_trls_dataset_types_by_its_own_judgement():
    from trl import data_utils

    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}
    calling = [user("q"), call, {"role": "tool", "content": "1", "name": "f"}, answer("b")]
    records = {
        "messages": ({"messages": turns("a", "b"), "tools": [ADD]}, {"messages", "tools"}),
        "sharegpt": ({"conversations": sharegpt("a", "b")}, {"messages"}),
        "alpaca": ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, {"messages"}),
        "prompt_completion": ({"prompt": "a", "completion": "b"}, {"prompt", "completion"}),
        "preference": (
            {"chosen": turns("a", "b"), "rejected": turns("a", "c")},
            {"prompt", "chosen", "rejected"},
        ),
        "kto": ({"prompt": "a", "completion": "b", "label": False}, {"prompt", "completion", "label"}),
        "text": ({"text": "a"}, {"text"}),
    }
    for name, (record, keys) in {**records, "calls": ({"messages": calling}, {"messages"})}.items():
        found = one(record).as_trl()
        assert set(found) == keys, name
        assert data_utils.is_conversational(found) == (name != "text")
        assert not data_utils.is_conversational_from_value(found)
    assert one(records["messages"][0]).as_trl()["tools"] == json.dumps(
        [{"type": "function", "function": ADD}]
    )
    pair = one(records["preference"][0])
    assert (
        pair.as_trl()
        == data_utils.extract_prompt(records["preference"][0])
        == data_utils.maybe_extract_prompt(pair.as_trl())
    )
    assert one(records["kto"][0]).as_trl()["label"] is False


# ---- rows that are not used ------------------------------------------------------------------------------------------
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
        ({"messages": [user("a"), {"role": "tool", "content": "b"}]}, "messages[1].role", "b", "must follow the assistant", "tool_calls"),
        ({"messages": [user("a"), {"role": "robot", "content": "b"}]}, "messages[1].role", "robot", "not known", "assistant"),
        ({"messages": [user([{"type": "audio", "url": "u"}]), answer("b")]}, "messages[0].content[0]", "audio", "Only parts of text", "Take"),
        ({"messages": [user("a"), {"role": "assistant", "content": "b", "tool_calls": [{"id": "1"}]}]}, "messages[1].tool_calls[0]", "id", "needs the name", "Write"),
        ({"messages": turns("a", "b"), "tools": "[{"}, "tools", "[{", "not valid JSON", "double quotes"),
        ({"messages": turns("a", "b"), "tools": [{"description": "x"}]}, "tools[0]", "x", "A tool needs a name", "Write"),
        ({"messages": turns("a", "b"), "tools": 3}, "tools[0]", "3", "A tool needs a name", "Write"),
        ({"prompt": "a", "completion": "b", "label": None}, "label", "nothing", "must say whether", "true or false"),
        ({"text": " "}, "text", "", "The text is empty", "take the row out"),
        ({"text": "\ud800x"}, "text", "ud800", "lone surrogate", "UTF-8"),
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
    kto = {"prompt", "completion", "label"} <= set(record)
    found = one(record, "kto" if kto else "auto", {"label": "label"} if kto else None)
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
    (fault,) = faults_of({"x": 1, "y": 2})
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


def test_fields_that_no_schema_has_together_are_said():
    (fault,) = faults_of({"a": "x", "b": "y"}, columns={"chosen": "a", "completion": "b"})
    assert fault.where == "data.columns" and "No schema has these fields together" in fault.rule


def test_a_table_without_any_usable_row_says_why():
    table = Table(["a"], [], [Rejected(3, "", "{", "The line is not valid JSON.", "Write it so.")], "a.jsonl")
    with pytest.raises(
        DataError, match="(?s)None of the 1 rows can be used.*a.jsonl row 3: The line is not valid JSON"
    ):
        recognise(table)


# ---- fixes and the split column --------------------------------------------------------------------------------------
def test_a_row_that_a_fix_would_mend_says_which_and_shows_both():
    record = {"messages": [user("a"), user("b"), answer("c")]}
    found = one(record)
    assert found.fixes == ("merge_turns",) and found.rule == "Two user turns in a row."
    assert json.loads(found.before) == record and found.after == "user: a\n\nb\nassistant: c"
    assert one(record, fixes=found.fixes).messages == turns("a\n\nb", "c")
    empty = {"messages": [user("a"), answer(" "), user("b"), answer("c")]}
    assert one(empty).fixes == ("drop_empty_turns", "merge_turns")
    assert one(empty, fixes=("drop_empty_turns", "merge_turns")).messages == turns("a\n\nb", "c")
    assert one({"messages": [answer("c")]}).fixes == ()


def test_the_fewest_fixes_that_help_are_named():
    assert one({"messages": [*turns(" a ", " b "), user("  ")]}).fixes == ("drop_empty_turns",)


def test_a_split_column_says_on_which_side_a_row_is():
    schema = Schema("prompt_completion", {"prompt": "q", "completion": "a"}, "", 1.0)
    read = reader(schema, split_column="where")
    sides = {"train": False, "Training": False, " validation": True, "DEV": True, "eval": True, "test": True}
    for said, held_back in sides.items():
        assert read(1, {"q": "x", "a": "y", "where": said}).held_back is held_back
    for said in (None, "", "unsure", 3):
        found = read(7, {"q": "x", "a": "y", "where": said})
        assert (found.number, found.field, found.fixes) == (7, "where", ())
        assert "on which side" in found.rule and "train or validation" in found.way_out
    assert reader(schema, held_back=True)(1, {"q": "x", "a": "y"}).held_back


# ---- whatever goes in ------------------------------------------------------------------------------------------------
FIXES = st.sets(st.sampled_from(["strip", "drop_empty_turns", "merge_turns"])).map(frozenset)
junk = (
    st.none()
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.lists(st.integers(), max_size=2)
    | st.just({})
)
text = st.text(max_size=8) | st.sampled_from([" a ", "", "\n", "\ud800", "[", "{}", "[]", "x"])
cell = text | text | text | junk
role = st.sampled_from(
    ["user", "assistant", "system", "developer", "human", "gpt", "Model", "tool", "observation", ""]
)
whole = (
    st.text(max_size=8) | junk
)  # the readers let no half of a character pair into what is not a turn's content
arguments = st.dictionaries(st.sampled_from("abc"), whole, max_size=2)
call = st.fixed_dictionaries({"name": whole, "arguments": arguments | arguments.map(json.dumps) | whole})
calls = st.lists(call | call.map(lambda one: {"id": "1", "type": "function", "function": one}), max_size=2)
content = cell | st.lists(text.map(lambda part: {"type": "text", "text": part}) | junk, max_size=2)
whole = (
    st.text(max_size=8) | junk
)  # the readers let no half of a character pair into what is not a turn's content
keys = st.fixed_dictionaries(
    {}, optional={"name": whole, "tool_call_id": whole, "reasoning_content": whole, "x": junk}
)
spelled = st.fixed_dictionaries({"role": role, "content": content}, optional={"tool_calls": calls}) | st.fixed_dictionaries(
    {"from": role | st.just("function_call"), "value": content}
)  # fmt: skip
a_turn = st.builds(lambda one, more: one | more, spelled, keys)
plain_turns = st.lists(st.tuples(text, text), min_size=1, max_size=3).map(
    lambda pairs: turns(*(x for p in pairs for x in p))
)
with_keys = st.builds(
    lambda talk, keys, index: [turn | keys if place == index else turn for place, turn in enumerate(talk)],
    plain_turns, keys, st.integers(0, 3),
)  # fmt: skip
calling = st.builds(
    lambda found, result, keys: [
        user("q"), {"role": "assistant", "content": None, "tool_calls": found}, {"role": "tool", "content": result} | keys,
        answer("a"),
    ], calls, content, keys,
)  # fmt: skip
a_list = st.lists(a_turn, max_size=5) | with_keys | calling | st.lists(cell, max_size=2)
many = a_list | a_list.map(lambda one: json.dumps(one, default=str)) | cell
side = text | a_turn | many
tool = st.fixed_dictionaries({"name": whole}, optional={"parameters": arguments, "description": whole})
tools = st.lists(tool | tool.map(lambda one: {"function": one}) | cell, max_size=2) | cell
extra = {"system": cell, "tools": tools}
RECORDS = {
    "messages": st.fixed_dictionaries({"messages": many}, optional=extra),
    "sharegpt": st.fixed_dictionaries({"conversations": many}, optional=extra),
    "alpaca": st.fixed_dictionaries(
        {"instruction": cell, "output": cell},
        optional={"input": cell, "system": cell, "history": st.lists(st.lists(cell, max_size=3) | cell, max_size=2) | cell},
    ),
    "prompt_completion": st.fixed_dictionaries({"prompt": side, "completion": side}, optional=extra),
    "preference": st.fixed_dictionaries({"chosen": side, "rejected": side}, optional=extra | {"prompt": side}),
    "kto": st.fixed_dictionaries(
        {"completion": side, "label": st.sampled_from([True, "no", 1, 7, None])}, optional=extra | {"prompt": side}
    ),
    "text": st.fixed_dictionaries({"text": cell}),
}  # fmt: skip


def converted(format: str, record: object, fixes: frozenset[str]) -> Row | Rejected:
    form = FORMATS[format]
    columns = {ours: ours for ours in (*form.needs, *form.may)}
    return reader(Schema(format, columns, "", 1.0), fixes)(5, record)


def texts_in(value: object) -> set[str]:
    """Every text anywhere in a row, also in JSON that stands in a text."""
    if isinstance(value, dict):
        return set().union(*map(texts_in, value.values()), *map(texts_in, value))
    if isinstance(value, list | tuple):
        return set().union(*map(texts_in, value))
    if not isinstance(value, str):
        return set()
    try:
        return {value} | (texts_in(json.loads(value)) if value.lstrip()[:1] in ("[", "{") else set())
    except ValueError:
        return {value}


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data(), fixes=FIXES)
def test_whatever_goes_in_comes_out_or_is_rejected_with_a_reason(format, data, fixes):
    record = data.draw(RECORDS[format] | junk | text)
    found = converted(format, record, fixes)
    assert found.number == 5
    if isinstance(found, Rejected):
        assert found.rule and found.way_out and (found.field or not isinstance(record, dict))
        assert len(found.value) <= 80
        if found.fixes:
            assert isinstance(converted(format, record, fixes | set(found.fixes)), Row)
        return
    assert Row.from_json(found.to_json()) == found
    assert b"\n" not in found.to_json()
    assert bool(found.messages) != bool(found.text)
    assert 0 <= found.prompt_turns < max(1, len(found.messages))
    for message in (*found.messages, *(found.rejected_messages or [])):
        assert isinstance(message["content"], str)
        assert message["role"] in ("system", "developer", "user", "assistant", "tool")
        assert message["content"].strip() or message.get("tool_calls") or message["role"] == "tool"
    learned = [turn["role"] for turn in found.messages[found.prompt_turns :]]
    assert found.text or (learned[-1] == "assistant" and found.messages[0]["role"] != "assistant")
    known = texts_in(record)
    if not fixes and format in ("messages", "sharegpt", "prompt_completion", "kto"):
        for message in found.messages:
            assert (
                all(part in known for part in message["content"].split("\n"))
                or message["content"] in known
                or (message["role"] == "tool")
            )


@pytest.mark.parametrize("completion", ["b", [answer("b")], [answer("")]])
def test_no_fix_merges_the_answer_into_the_prompt(completion):
    fixes = frozenset(["merge_turns", "drop_empty_turns"])
    found = converted("prompt_completion", {"prompt": turns("q", "a"), "completion": completion}, fixes)
    assert isinstance(found, Rejected) or found.prompt_turns < len(found.messages)


def test_a_pair_that_a_fix_makes_equal_is_rejected():
    found = converted("preference", {"prompt": "q", "chosen": "a ", "rejected": "a"}, frozenset(["strip"]))
    assert isinstance(found, Rejected) and "Both answers are the same" in found.rule


@pytest.mark.parametrize("format", ["messages", "sharegpt"])
@given(data=st.data())
def test_nothing_is_lost_or_reordered_within_a_conversation(format, data):
    role, content = ("role", "content") if format == "messages" else ("from", "value")
    talk = data.draw(
        st.lists(
            st.fixed_dictionaries({role: st.sampled_from(["user", "assistant", "system"]), content: text}),
            max_size=6,
        )
    )
    field = "messages" if format == "messages" else "conversations"
    found = converted(format, {field: talk}, frozenset())
    if isinstance(found, Row):
        assert found.messages == [{"role": turn[role], "content": turn[content]} for turn in talk]
        roles = [turn[role] for turn in talk if turn[role] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles


@given(
    st.lists(
        st.builds(
            lambda role, content: {"role": role, "content": content},
            st.sampled_from(["user", "assistant"]),
            text,
        )
    ),
    FIXES,
)
def test_the_fixes_change_nothing_but_what_they_say(talk, fixes):
    """The contents one after the other stay the same up to blanks, and without a fix nothing is touched."""
    found = converted("messages", {"messages": talk}, fixes)
    whole = "".join(turn["content"] for turn in talk)
    if isinstance(found, Row):
        assert "".join("".join(turn["content"] for turn in found.messages).split()) == "".join(whole.split())
        if not fixes:
            assert found.messages == talk
        if "strip" not in fixes and "merge_turns" not in fixes:
            assert found.messages == [turn for turn in talk if turn["content"].strip() or not fixes]


@pytest.mark.parametrize("format", ["messages", "sharegpt", "alpaca", "text"])
@given(data=st.data(), fixes=FIXES)
def test_a_fix_never_costs_a_usable_row(format, data, fixes):
    record = data.draw(RECORDS[format])
    usable = isinstance(converted(format, record, frozenset()), Row)
    assert not usable or isinstance(converted(format, record, fixes), Row)


def test_the_empty_result_of_a_function_is_no_empty_turn():
    calling = [user("q"), {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]
    record = {"messages": [*calling, {"role": "tool", "content": ""}, answer("a")]}
    assert isinstance(converted("messages", record, frozenset(["drop_empty_turns"])), Row)


@given(texts=st.lists(st.sampled_from(["a", " b ", "c\n"]), min_size=2, max_size=4), fixes=FIXES)
def test_pairs_and_labels_keep_both_answers_whatever_is_fixed(texts, fixes):
    prompt = turns(*texts[: len(texts) // 2 * 2 - 1])
    pair = converted("preference", {"prompt": prompt, "chosen": " good ", "rejected": "bad"}, fixes)
    assert [turn["content"].strip() for turn in pair.messages[pair.prompt_turns :]] == ["good"]
    assert pair.rejected_messages == [answer("bad")]
    labelled = converted("kto", {"prompt": prompt, "completion": " good ", "label": "no"}, fixes)
    assert labelled.messages == pair.messages and labelled.label is False
    assert labelled.prompt_turns == pair.prompt_turns == len(prompt)


def test_one_odd_label_does_not_turn_labelled_answers_into_something_else():
    records = [{"prompt": f"q{n}", "completion": "a", "label": n % 2 == 0} for n in range(40)]
    table = table_of(*records, {"prompt": "q", "completion": "a", "label": "perhaps"}, records[0] | {"label": None})  # fmt: skip
    schema = recognise(table)
    rows, rejected = convert(table, schema)
    assert schema.format == "kto" and schema.confidence > 0.9 and len(rows) == 40
    assert [one.number for one in rejected] == [41, 42] and "whether the answer is good" in rejected[0].rule


def test_labels_that_are_asked_for_say_in_each_row_what_is_wrong():
    table = table_of({"prompt": "q", "completion": "a", "label": "perhaps"})
    (rejected,) = convert(table, recognise(table, "kto"))[1]
    assert "Write true or false." in rejected.way_out
