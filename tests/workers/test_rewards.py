import pytest

from gemma_tune.sections import ObjectiveSection
from gemma_tune.workers import rewards
from gemma_tune.workers.rewards import calls_in, exact_match, tool_call, valid_json

FUNCTION_GEMMA = (
    "<start_function_call>call:weather{city:<escape>Rome, {old}<escape>,days:3,tags:[<escape>a<escape>,2]}"
    "<end_function_call>"
)
GEMMA_4 = '<|tool_call>call:weather{city:<|"|>Rome<|"|>,when:{exact:true}}<tool_call|>'


@pytest.mark.parametrize(("text", "reward"), [("4", 1), (" 4\n", 1), ("4.", 0), ("", 0)])
def test_an_exact_match_overlooks_blanks_only(text, reward):
    assert exact_match(text, "4 ") == reward


@pytest.mark.parametrize(
    ("text", "reward"),
    [('{"a": 1}', 1), ("\n[1, 2]", 1), ("{'a': 1}", 0), ('{"a": 1', 0), ("7", 0), ('"text"', 0), ("", 0)],
)
def test_json_must_be_an_object_or_a_list(text, reward):
    assert valid_json(text) == reward


@pytest.mark.parametrize(("text", "reward"), [("12", 1), (" 12 ", 1), ("a 12", 0), ("1\n2", 0), ("1 2", 1)])
def test_a_pattern_must_match_the_whole_answer(text, reward):
    goal = ObjectiveSection(type="grpo", reward="regex", reward_pattern=r"\d[ ]?\d")
    assert rewards.rule_of(goal)(text, "") == reward


def test_calls_are_read_as_gemmas_write_them_and_as_json():
    assert calls_in(FUNCTION_GEMMA) == [("weather", '{"city": "Rome, {old}", "days": 3, "tags": ["a", 2]}')]
    assert calls_in(GEMMA_4) == [("weather", '{"city": "Rome", "when": {"exact": true}}')]
    assert calls_in('```json\n[{"name": "f", "arguments": {"b": 1}}]\n```') == [("f", '{"b": 1}')]
    assert calls_in('{"function": {"name": "f", "arguments": {}}}') == [("f", "{}")]


@pytest.mark.parametrize(
    "text",
    ["call:f{a:", "call:f{a:1", "call:f{a:[1}", "call:f{a:}", "call:f{a:<escape>x}", "call:f", '{"name": "f"}', "3", "a"],
)  # fmt: skip
def test_half_a_call_is_none(text):
    assert calls_in(text) == []


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("call:f{b:2,a:<escape>x<escape>}", 1),  # in another order
        ("call:f{a:<escape>x<escape>,b:3}", 0),
        ("call:g{a:<escape>x<escape>,b:2}", 0),
        ("call:f{a:<escape>x<escape>,b:2}call:f{}", 0),  # one call too many
        ("no call", 0),
    ],
)
def test_a_call_earns_its_reward_by_function_and_arguments(text, reward):
    assert tool_call(text, "call:f{a:<escape>x<escape>,b:2}") == reward


def test_where_a_row_calls_nothing_a_call_earns_nothing():
    assert (tool_call("It is sunny.", "Sunny."), tool_call("call:f{}", "Sunny.")) == (1, 0)


class Letters:
    """A tokenizer whose token 0 is a control token."""

    def decode(self, ids, skip_special_tokens):
        return "".join("call:f{}" if one == 0 else chr(one) for one in ids if one or not skip_special_tokens)


def test_trl_gets_a_reward_for_each_answer_by_its_tokens():
    answers = [[0], [0, ord("x")], [ord("x")]]
    for reward, wanted, expected in (("exact_match", "x", [0, 1, 1]), ("tool_call", "call:f{}", [1, 1, 0])):
        function = rewards.reward_function(ObjectiveSection(type="grpo", reward=reward), Letters())
        given = {"prompts": [[1]] * 3, "completions": [""] * 3, "trainer_state": None}
        assert function(completion_ids=answers, answer=[wanted] * 3, **given) == expected
        assert function.__name__ == reward
