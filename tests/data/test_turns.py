import json

import pytest

from gemma_tune.data.rows import RowFault
from gemma_tune.data.turns import check_order, looks_like_turns, mended, text_of, tools_of, turn, turns

CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


def talk(roles: str) -> list[dict]:
    """u user, a assistant, c an assistant's call, t a function's result, s system, d developer."""
    names = {"u": "user", "a": "assistant", "c": "assistant", "t": "tool", "s": "system", "d": "developer"}
    return [
        {"role": names[one], "content": f"{one}{place}"} | ({"tool_calls": [CALL]} if one == "c" else {})
        for place, one in enumerate(roles)
    ]


@pytest.mark.parametrize(
    "roles", ["ua", "uaua", "sua", "dua", "uc", "ucta", "uctta", "uctcta", "suctaua", "uctua"]
)
def test_these_orders_of_roles_are_right(roles):
    messages = talk(roles)
    assert check_order(messages, "messages") is messages


@pytest.mark.parametrize(
    ("roles", "field", "rule"),
    [
        ("", "m", "The conversation has no turn."),
        ("s", "m", "The conversation has only a system turn."),
        ("d", "m", "The conversation has only a system turn."),
        ("au", "m[0].role", "The first turn must be the user's."),
        ("sau", "m[1].role", "The first turn must be the user's."),
        ("ta", "m[0].role", "The first turn must be the user's."),
        ("usa", "m[1].role", "A system turn can only stand first."),
        ("uada", "m[2].role", "A developer turn can only stand first."),
        ("ssua", "m[1].role", "A system turn can only stand first."),
        ("uua", "m[1].role", "Two user turns in a row."),
        ("uaa", "m[2].role", "Two assistant turns in a row."),
        ("uca", "m[2].role", "Two assistant turns in a row."),
        ("uta", "m[1].role", "A function's result must follow the assistant turn that calls it."),
        ("uata", "m[2].role", "A function's result must follow the assistant turn that calls it."),
        ("u", "m[0].role", "The conversation does not end with an assistant turn"),
        ("uct", "m[2].role", "The conversation does not end with an assistant turn"),
        ("uau", "m[2].role", "The conversation does not end with an assistant turn"),
    ],
)
def test_a_wrong_order_is_said_with_its_place(roles, field, rule):
    with pytest.raises(RowFault) as caught:
        check_order(talk(roles), "m")
    assert caught.value.field == field and caught.value.rule.startswith(rule) and caught.value.way_out


def test_a_prompt_may_end_with_a_user_turn():
    assert check_order(talk("uau"), "m", ends_with_answer=False)


@pytest.mark.parametrize(
    ("spelled", "role"),
    [("user", "user"), ("Human", "user"), (" prompter ", "user"), ("assistant", "assistant"), ("gpt", "assistant"),
     ("model", "assistant"), ("bot", "assistant"), ("ChatGPT", "assistant"), ("system", "system"),
     ("developer", "developer"), ("tool", "tool"), ("function", "tool"), ("ipython", "tool"), ("observation", "tool")],
)  # fmt: skip
def test_roles_are_known_in_every_spelling(spelled, role):
    for one in ({"role": spelled, "content": "x"}, {"from": spelled, "value": "x"}):
        assert turn(one, "m[0]") == {"role": role, "content": "x"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([{"text": "a"}], "a"),
        (["a", "b"], "a\nb"),
        (({"type": "text", "text": " a "},), " a "),
    ],
)
def test_content_in_parts_is_the_texts_one_after_the_other(content, expected):
    assert turn({"role": "user", "content": content}, "m[0]")["content"] == expected


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ({"type": "video", "video": "x"}, "m[0].content[1]", "video"),
        ({"type": "input_audio"}, "m[0].content[1]", "input_audio"),
        ({"text": "a", "more": 1}, "m[0].content[1]", "unknown"),
        (7, "m[0].content[1]", 7),
        ({"type": "text"}, "m[0].content[1].text", "nothing"),
        ({"type": "text", "text": 7}, "m[0].content[1].text", 7),
    ],
)
def test_a_part_that_is_no_text_is_said_with_its_place(part, field, value):
    with pytest.raises(RowFault) as caught:
        turn({"role": "user", "content": [{"type": "text", "text": "a"}, part]}, "m[0]")
    assert (caught.value.field, caught.value.value) == (field, value)


def test_what_a_template_may_read_of_a_turn_is_kept_and_nothing_else():
    given = {
        "role": "tool",
        "content": {"a": [1]},
        "name": "f",
        "tool_call_id": "7",
        "reasoning_content": "",
        "weight": 1,
    }
    assert turn(given, "m[0]") == {"role": "tool", "content": '{"a": [1]}', "name": "f", "tool_call_id": "7"}
    thinking = {"role": "assistant", "content": "b", "reasoning_content": "hm", "name": None}
    assert turn(thinking, "m[0]") == {"role": "assistant", "content": "b", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    "calls",
    [
        [{"id": "7", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
        [{"id": "7", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        [{"id": "7", "name": "f", "parameters": {"a": 1}}],
        {"id": "7", "name": "f", "arguments": {"a": 1}},
        json.dumps([{"id": "7", "name": "f", "arguments": {"a": 1}}]),
    ],
)
def test_a_call_is_read_in_every_spelling_with_its_arguments_as_json(calls):
    found = turn({"role": "assistant", "content": None, "tool_calls": calls}, "m[0]")
    call = {"id": "7", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert found == {"role": "assistant", "content": "", "tool_calls": [call]}


@pytest.mark.parametrize("arguments", [None, "", {}, "{}"])
def test_a_call_may_have_no_arguments(arguments):
    found = turn({"from": "function_call", "value": {"name": "f", "arguments": arguments}}, "m[0]")
    assert found["tool_calls"] == [CALL] and found["role"] == "assistant"


@pytest.mark.parametrize("arguments", [[1], "[1]", 7, "Rome", True])
def test_arguments_that_are_no_object_are_refused(arguments):
    with pytest.raises(RowFault, match="must be a JSON object") as caught:
        turn(
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": arguments}]},
            "m[0]",
        )
    assert caught.value.field == "m[0].tool_calls[0].arguments"


def test_a_turn_may_be_empty_only_where_it_calls_or_answers_a_call_or_will_be_dropped():
    assert turn({"role": "tool", "content": ""}, "m[0]")["content"] == ""
    assert turn({"role": "user", "content": None}, "m[0]", empty=True)["content"] == ""
    for content in ("", " \n", None):
        with pytest.raises(RowFault, match="The answer is (empty|missing)"):
            turn({"role": "assistant", "content": content}, "m[0]")


def test_tools_are_wrapped_alike_and_broken_ones_named():
    assert json.loads(tools_of('[{"name": "f"}]', "tools")) == [
        {"type": "function", "function": {"name": "f"}}
    ]
    assert "é" in tools_of([{"name": "é"}], "tools")
    for value, field in (
        ([{"name": "f"}, {}], "tools[1]"),
        (["x"], "tools[0]"),
        ([{"function": "f"}], "tools[0]"),
    ):
        with pytest.raises(RowFault, match="A tool needs a name") as caught:
            tools_of(value, "tools")
        assert caught.value.field == field


def test_a_cell_may_hold_its_turns_as_json():
    messages = [{"role": "user", "content": "a"}]
    assert turns(json.dumps(messages), "m") == messages == turns(messages, "m")
    for value, rule in (
        ("[", "not valid JSON"),
        (None, "is missing"),
        (7, "must be a list"),
        ("hello", "must be a list"),
    ):
        with pytest.raises(RowFault, match=rule):
            turns(value, "m")


@pytest.mark.parametrize(
    ("value", "spelling"),
    [
        ([{"role": "user", "content": "a"}], "role"),
        ([{"role": "assistant", "tool_calls": []}], "role"),
        ([{"from": "human", "value": "a"}], "from"),
        ('[{"from": "human", "value": "a"}]', "from"),
        ("[1, 2", ""),
        ([], ""),
        (["a"], ""),
        ([{"role": "user"}], ""),
        ("hello", ""),
        (None, ""),
    ],
)
def test_a_list_of_turns_is_told_from_anything_else(value, spelling):
    assert looks_like_turns(value) == spelling


def test_each_fix_does_what_its_name_says_and_no_more():
    messages = [
        {"role": "user", "content": " a "},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": " "},
        {"role": "assistant", "content": "c", "reasoning_content": "hm"},
    ]
    assert mended(messages, frozenset()) == messages
    assert [one["content"] for one in mended(messages, frozenset(["strip"]))] == ["a", "b", "", "c"]
    assert [one["content"] for one in mended(messages, frozenset(["drop_empty_turns"]))] == [" a ", "b", "c"]
    merged = mended(messages, frozenset(["merge_turns", "drop_empty_turns"]))
    assert [one["content"] for one in merged] == [" a \n\nb", "c"] and merged[1]["reasoning_content"] == "hm"
    assert messages[0]["content"] == " a ", "what was given stays as it is"


def test_calls_and_results_of_functions_are_never_merged():
    messages = talk("ucttca")
    assert mended(messages, frozenset(["merge_turns", "strip"])) == messages


@pytest.mark.parametrize(
    ("value", "met"),
    [(None, "nothing"), (float("nan"), "NaN"), (7, 7), (True, True), ([1], [1]), ({"a": 1}, {"a": 1})],
)
def test_what_is_no_text_is_said_with_what_it_is(value, met):
    with pytest.raises(RowFault) as caught:
        text_of(value, "output", "The answer")
    assert (
        caught.value.value == met
        and caught.value.field == "output"
        and caught.value.rule.startswith("The answer ")
    )
