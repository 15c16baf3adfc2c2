import json
import re

import pytest
from tiny_tokenizer import FUNCTION_TEMPLATE, FUNCTION_TRAINING_TEMPLATE, trl_template

from gemma_tune.data.templates import Template, TemplateError, fold_system

USER, ANSWER = {"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Bye"}


def template(source: str) -> Template:
    return Template(source, {"bos_token": "<bos>"})


@pytest.mark.parametrize(
    ("name", "keeps", "takes_tools"),
    [
        ("gemma", set(), False),
        ("gemma3", {"system"}, False),
        ("gemma4_v5", {"system", "developer"}, True),
        ("function", {"developer"}, True),
    ],
)
def test_what_a_template_has_a_place_for_is_found_by_asking_it(name, keeps, takes_tools):
    found = template(FUNCTION_TEMPLATE if name == "function" else trl_template(name))
    assert (found.keeps, found.takes_tools) == (keeps, takes_tools)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_leading_role_becomes_the_one_that_the_template_knows(role):
    turns = [{"role": role, "content": "Be brief."}, USER, ANSWER]
    assert template(trl_template("gemma3")).adapted(turns)[0] == {"role": "system", "content": "Be brief."}
    assert template(FUNCTION_TEMPLATE).adapted(turns)[0] == {"role": "developer", "content": "Be brief."}
    assert template(trl_template("gemma4_v5")).adapted(turns) == turns
    folded = [{"role": "user", "content": "Be brief.\n\nHi"}, ANSWER]
    assert template(trl_template("gemma")).adapted(turns) == folded == fold_system(turns)
    assert turns[1] == USER, "the turns that were given stay as they are"


def test_without_a_system_turn_nothing_is_folded():
    assert fold_system([USER, ANSWER]) == [USER, ANSWER]
    assert fold_system([]) == []
    assert fold_system([{"role": "system", "content": "s"}]) == [{"role": "user", "content": "s"}]


def test_arguments_of_calls_reach_the_template_as_objects_and_stay_text_in_the_row():
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": {"b": [1, null]}}'}}
    turns = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    source = "{{ tools[0].function.name }} {{ messages[1].tool_calls[0].function.arguments.a.b[0] + 1 }}"
    tools = json.dumps([{"type": "function", "function": {"name": "f"}}])
    assert template(source).render(turns, tools) == "f 2"
    assert call["function"]["arguments"] == '{"a": {"b": [1, null]}}'


def test_what_transformers_gives_to_templates_is_there():
    source = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
        "{{ strftime_now('%Y') }}{{ add_generation_prompt }}{{ tools is none }}{{ documents is none }}"
    )
    text = template(source).render([{"role": "user", "content": "é"}, ANSWER], add_generation_prompt=True)
    assert re.fullmatch(r'<bos>\{"role": "user", "content": "é"\}20\d\dTrueTrueTrue', text)


def test_marks_of_what_is_generated_are_passed_over():
    turns = [USER, ANSWER]
    for plain, marked in (
        (trl_template("gemma"), trl_template("gemma_training")),
        (FUNCTION_TEMPLATE, FUNCTION_TRAINING_TEMPLATE),
    ):
        assert template(marked).render(turns) == template(plain).render(turns)


def test_a_refusal_of_the_template_says_why():
    with pytest.raises(TemplateError, match="roles must alternate"):
        template(trl_template("gemma")).render([USER, USER])
    with pytest.raises(TemplateError, match="division by zero"):
        template("{% if messages[1] %}{{ 1 / 0 }}{% endif %}").render([USER, ANSWER])


def test_no_way_leads_out_of_the_sandbox():
    for source in (
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__base__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ strftime_now.__globals__ }}",
        "{% for m in messages %}{{ loop.__class__ }}{% endfor %}",
        "{% for m in messages %}{{ loop._iterable }}{% endfor %}",
    ):
        try:
            assert template(source).render([USER]) == ""
        except TemplateError:
            continue
