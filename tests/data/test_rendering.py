import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import GEMMA_4, build_tokenizer, trl_template

from gemma_tune.data.rendering import NOT_LEARNED, ChatTokenizer
from gemma_tune.data.rows import Row
from gemma_tune.data.tokenizer_files import tokenizer_digest
from gemma_tune.errors import ModelError

FAMILIES = ["gemma2", "gemma3", "gemma4", "functiongemma"]
END = {"gemma4": "<turn|>"}  # of a turn; elsewhere <end_of_turn>


def chat(*contents: str, system: str = "", role: str = "system") -> list[dict]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return ([{"role": role, "content": system}] if system else []) + turns


CHATS = [
    chat("Who lives there?", "A cat."),
    chat("a", "b", "c", "d", "e", "f"),
    chat("  padded question \n", "\n  padded answer  "),
    chat("Hi", "Bye", system="You are brief."),
    chat("Hi", "Bye", system="You are brief.", role="developer"),
    chat("一隻貓 🐈 naïve", "🐈‍⬛ é\u0301 ok"),
    chat("line one\n\nline two", "one\ntwo\n\nthree"),
    chat("<end_of_turn> inside", "an <eos> inside"),
    chat("<start_of_turn>model\n inside", "and <start_of_turn> again <|turn>model\n"),
]
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "weather", "description": "Looks out.",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            },
        }
    ]
)  # fmt: skip


def call(name: str = "weather", **arguments) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


CALLING = [
    {"role": "user", "content": "How is Rome?"},
    {"role": "assistant", "content": "", "tool_calls": [call(city="Rome")]},
    {"role": "tool", "content": "sunny", "name": "weather"},
    {"role": "assistant", "content": "It is sunny."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "Bye."},
]


def learned(tokenizer: ChatTokenizer, row: Row) -> list[str]:
    """The text of each span that carries loss."""
    found = tokenizer.encode(row)
    assert not found.refusal
    return [tokenizer.decode(found.ids[start:end], skip_special_tokens=False) for start, end in found.spans]


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_answers_and_the_ends_of_their_turns(chat_of, family):
    tokenizer, end = chat_of(family), END.get(family, "<end_of_turn>")
    row = Row(1, CHATS[1])
    assert learned(tokenizer, row) == [f"b{end}\n", f"d{end}\n", f"f{end}\n"]
    assert learned(tokenizer, Row(1, CHATS[1], prompt_turns=5)) == [f"f{end}\n"]
    found = tokenizer.encode(row)
    assert len(found.labels) == len(found.ids)
    assert {label for label, id in zip(found.labels, found.ids, strict=True) if label != id} == {NOT_LEARNED}
    assert tokenizer.encode(row, assistant_only_loss=False).labels == found.ids


def test_an_answer_ends_with_end_of_text_end_of_turn_or_the_hand_over_to_a_function(chat_of):
    hand_over = {"gemma4": ["<|tool_response>"], "functiongemma": ["<start_function_response>"]}
    for family in FAMILIES:
        tokenizer = chat_of(family)
        ends = ["<eos>", END.get(family, "<end_of_turn>"), *hand_over.get(family, [])]
        assert tokenizer.end_ids == sorted(map(tokenizer.tokenizer.token_to_id, ends))


@pytest.mark.parametrize("version", ["gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"])
def test_every_template_that_gemma_4_was_published_with_learns_alike(chat_of, tmp_path, version):
    tokenizer = ChatTokenizer.from_folder(build_tokenizer(tmp_path, trl_template(version), GEMMA_4))
    calls_end_the_turn = version == "gemma4_v2"  # alone among them
    assert tokenizer.end_ids == chat_of("gemma4").end_ids[: 2 if calls_end_the_turn else 3]
    for messages in CHATS:
        assert tokenizer.encode(Row(1, messages)).ids == chat_of("gemma4").encode(Row(1, messages)).ids
        assert learned(tokenizer, Row(1, messages)) == learned(chat_of("gemma4"), Row(1, messages))


# ---- system and developer --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_text_is_folded_for_gemma_2_as_the_template_of_gemma_3_does_it(gemma2, gemma3, role):
    messages = chat("  Hi ", "Bye", system="You are brief.", role=role)
    assert gemma2.folds_system and not gemma3.folds_system
    assert gemma2.render(messages) == gemma3.render(messages)
    assert gemma2.render(messages).startswith("<bos><start_of_turn>user\nYou are brief.\n\nHi<end_of_turn>")
    assert gemma2.encode(Row(1, messages)) == gemma3.encode(Row(1, messages))


@pytest.mark.parametrize("role", ["system", "developer"])
def test_gemma_4_keeps_the_system_turn_and_functiongemma_the_developer_turn(chat_of, role):
    messages = chat("Hi", "Bye", system="You are brief.", role=role)
    assert (
        chat_of("gemma4")
        .render(messages)
        .startswith("<bos><|turn>system\nYou are brief.<turn|>\n<|turn>user")
    )
    function = chat_of("functiongemma").render(messages)
    assert function.startswith(
        "<bos><start_of_turn>developer\nYou are brief.<end_of_turn>\n<start_of_turn>user"
    )


# ---- tools -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_tools_are_refused_with_a_reason_where_the_template_has_no_place_for_them(chat_of, family):
    given = [
        Row(1, chat("a", "b"), tools=TOOLS),
        Row(2, chat("a", "b")),
        Row(3, CALLING),
        Row(4, CALLING[:1], rejected_messages=CALLING[1:], prompt_turns=1),
    ]
    found = chat_of(family).encode_all(given)
    assert "no place for tools: use FunctionGemma or Gemma 4" in found[0].refusal and not found[0].ids
    assert found[1].ids and not found[1].refusal
    assert "no place for calls of functions" in found[2].refusal
    with pytest.raises(ModelError, match="no place for tools"):
        chat_of(family).pieces(given[0], 100)


@pytest.mark.parametrize(
    ("family", "calls", "response"),
    [
        ("gemma4", '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|><|tool_response>', "<|tool_response>"),
        (
            "functiongemma",
            "<start_function_call>call:weather{city:<escape>Rome<escape>}<end_function_call><start_function_response>",
            "<end_function_response>",
        ),
    ],
)  # fmt: skip
def test_the_call_is_learned_the_response_is_not_and_the_answer_after_it_is(chat_of, family, calls, response):
    tokenizer, end = chat_of(family), END.get(family, "<end_of_turn>")
    row = Row(1, CALLING, tools=TOOLS)
    assert learned(tokenizer, row) == [calls, f"It is sunny.{end}\n", f"Bye.{end}\n"]
    assert learned(tokenizer, Row(1, CALLING, prompt_turns=3, tools=TOOLS)) == [
        f"It is sunny.{end}\n",
        f"Bye.{end}\n",
    ]
    assert learned(tokenizer, Row(1, CALLING[:2], tools=TOOLS)) == [calls]
    text = tokenizer.text_of(row)
    assert "Looks out." in text and response in text
    several = [CALLING[0], {**CALLING[1], "tool_calls": [call(city="Rome"), call(city="Oslo")]}]
    several += [{"role": "tool", "content": one, "name": "weather"} for one in ("sunny", "rain")] + CALLING[
        3:4
    ]
    first, second = learned(tokenizer, Row(1, several, tools=TOOLS))
    assert "Rome" in first and "Oslo" in first and "rain" not in first and second == f"It is sunny.{end}\n"


def test_a_turn_that_the_template_would_split_is_refused_with_a_reason(chat_of):
    """Gemma 4 writes the words of a calling turn after the response, so they cannot be told apart."""
    turn = {**CALLING[1], "content": "Let me look."}
    found = chat_of("gemma4").encode(Row(1, [CALLING[0], turn, *CALLING[2:]], tools=TOOLS))
    assert "differently once more turns follow" in found.refusal and found.ids == [] == found.spans


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": "city"},
        {"type": "object", "properties": ["city"]},
        {"type": "object", "properties": {"city": {"type": "object", "properties": 7}}},
        {"type": 3},
        {"required": 5},
    ],
)
def test_a_tool_that_breaks_the_template_is_refused_and_the_other_rows_are_not(chat_of, parameters):
    odd = json.dumps(
        [{"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters}}]
    )
    for family in ("gemma4", "functiongemma"):
        first, second = chat_of(family).encode_all(
            [Row(1, chat("a", "b"), tools=odd), Row(2, chat("a", "b"))]
        )
        assert bool(first.refusal) != bool(first.ids)
        assert second.ids and not second.refusal


# ---- quick and exact -------------------------------------------------------------------------------------------------
MARKS = [
    "<start_of_turn>",
    "<end_of_turn>",
    "<|turn>",
    "<turn|>",
    "<bos>",
    "model\n",
    "user",
    " ",
    "\n",
    "x",
    "{",
]
THOUGHT = ["<|channel>", "<channel|>", "thought\n"]  # Gemma 4's template takes it out of answers


def conversations(marks: list[str]) -> st.SearchStrategy[list[dict]]:
    """Chats whose texts are anything, and often hold these marks."""
    marked = st.lists(st.sampled_from(marks), min_size=1, max_size=6).map("".join)
    text = (st.text(st.characters(codec="utf-8"), min_size=1, max_size=20) | marked).filter(str.strip)
    return st.builds(
        lambda pairs, system, role: chat(
            *(text for pair in pairs for text in pair), system=system, role=role
        ),
        st.lists(st.tuples(text, text), min_size=1, max_size=3),
        st.just("") | text,
        st.sampled_from(["system", "developer"]),
    )


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(messages=conversations([*MARKS, *THOUGHT]), at=st.integers(0, 6))
def test_the_quick_spans_are_the_exact_ones(chat_of, family, messages, at):
    tokenizer = chat_of(family)
    row = Row(1, messages, prompt_turns=min(at, len(messages) - 1))
    exact = tokenizer._exact(row)
    assert tokenizer._quick(row, exact.ids) in (None, exact.spans)
    assert tokenizer.encode(row) == exact


@pytest.mark.parametrize("family", FAMILIES)
def test_the_quick_way_is_taken_for_every_plain_chat(chat_of, family):
    """A row that it passes over costs four times as much."""
    tokenizer = chat_of(family)
    for messages in CHATS[:7]:
        row = Row(1, messages)
        assert tokenizer._quick(row, tokenizer.encode(row).ids) is not None, messages


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(messages=conversations(MARKS), max_length=st.integers(1, 60))
def test_whatever_the_text_the_answers_and_only_they_are_learned(chat_of, family, messages, max_length):
    tokenizer, end = chat_of(family), END.get(family, "<end_of_turn>")
    row = Row(1, messages)
    pieces = tokenizer.pieces(row, 100_000)
    assert "".join(piece.text for piece in pieces) == tokenizer.text_of(row)
    answers = [turn["content"].strip() for turn in messages if turn["role"] == "assistant"]
    assert [piece.text for piece in pieces if piece.kind == "learned"] == [
        f"{text}{end}\n" for text in answers
    ]
    cut = tokenizer.pieces(row, max_length)
    assert "".join(piece.text for piece in cut) == tokenizer.text_of(row)
    assert sum(len(piece.tokens) for piece in cut if piece.kind != "cut") <= max_length


def test_a_thought_that_the_template_takes_out_again_is_not_learned(chat_of):
    """Gemma 4 shows the thought of the last answer only."""
    first, last = chat("a", "b"), chat("c", "d")
    first[1]["reasoning_content"], last[1]["reasoning_content"] = "hm", "so"
    assert learned(chat_of("gemma4"), Row(1, [*first, *last])) == [
        "b<turn|>\n",
        "<|channel>thought\nso\n<channel|>d<turn|>\n",
    ]


# ---- plain text ------------------------------------------------------------------------------------------------------
def test_a_text_stands_between_the_tokens_that_begin_and_end_one_and_is_learned_whole(gemma3):
    for text in ("A cat.", "<bos>A cat.", "A cat.<eos>", "<bos>A cat.<eos>"):
        row = Row(1, text=text)
        assert gemma3.text_of(row) == "<bos>A cat.<eos>"
        found = gemma3.encode(row)
        assert (found.ids[0], found.ids[-1]) == (2, 1) and found.labels == found.ids
        assert found.ids.count(2) == 1


def test_a_model_without_a_chat_template_learns_plain_text_only(gemma3, gemma3_folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((gemma3_folder / name).read_bytes())
    base = ChatTokenizer.from_folder(tmp_path)
    assert base.encode(Row(1, text="A cat.")) == gemma3.encode(Row(1, text="A cat."))
    assert "no chat template" in base.encode(Row(1, CHATS[0])).refusal
    with pytest.raises(ModelError, match="no chat template.*-it"):
        base.render(CHATS[0])


# ---- what is shown ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("messages", CHATS)
def test_pieces_are_the_whole_text_in_order_with_kinds_and_tokens(gemma3, messages):
    row = Row(1, messages)
    whole = gemma3.pieces(row, max_length=10_000)
    assert "".join(piece.text for piece in whole) == gemma3.render(messages)
    assert {piece.kind for piece in whole} == {"prompt", "learned"}
    assert [id for piece in whole for id, _ in piece.tokens] == gemma3.encode(row).ids
    assert all("".join(text for _, text in piece.tokens) == piece.text for piece in whole)
    cut = gemma3.pieces(row, max_length=7)
    assert "".join(piece.text for piece in cut) == gemma3.render(messages)
    assert cut[-1].kind == "cut" and sum(len(piece.tokens) for piece in cut[:-1]) == 7


def test_the_pieces_of_a_call_and_of_a_text_are_whole(chat_of):
    for family, row in (("gemma4", Row(1, CALLING, tools=TOOLS)), ("functiongemma", Row(1, text="a 🐈 b"))):
        pieces = chat_of(family).pieces(row, 10_000)
        assert "".join(piece.text for piece in pieces) == chat_of(family).text_of(row)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_ends_where_the_answer_begins(chat_of, family):
    tokenizer = chat_of(family)
    ids = tokenizer.encode_prompt(chat("Hi"))
    assert tokenizer.decode(ids, skip_special_tokens=False).endswith("model\n")
    found = tokenizer.encode(Row(1, chat("Hi", "Bye")))
    assert found.ids[: len(ids)] == ids and found.spans == [(len(ids), len(found.ids))]


# ---- templates and files ---------------------------------------------------------------------------------------------
def test_a_template_with_generation_marks_renders_alike(gemma3, tmp_path):
    marked = ChatTokenizer.from_folder(build_tokenizer(tmp_path, trl_template("gemma3_training")))
    rows = [Row(number, messages) for number, messages in enumerate(CHATS)]
    assert marked.encode_all(rows) == gemma3.encode_all(rows)


def test_the_template_is_found_in_the_tokenizer_config_too(gemma3, gemma3_folder, tmp_path):
    config = json.loads((gemma3_folder / "tokenizer_config.json").read_text())
    template = trl_template("gemma3")
    config["bos_token"] = {"content": "<bos>", "lstrip": False}
    (tmp_path / "tokenizer.json").write_bytes((gemma3_folder / "tokenizer.json").read_bytes())
    several = [{"name": "default", "template": template}, {"name": "other", "template": "x"}]
    for written in (template, several):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": written}))
        assert ChatTokenizer.from_folder(tmp_path).render(CHATS[0]) == gemma3.render(CHATS[0])


def test_another_template_beside_the_same_tokenizer_is_read_and_has_another_digest(tmp_path):
    folder = build_tokenizer(tmp_path, trl_template("gemma3"))
    before = tokenizer_digest(folder)
    assert "<bos>" in ChatTokenizer.from_folder(folder).render(CHATS[0])
    assert tokenizer_digest(folder) == before
    template = folder / "chat_template.jinja"
    template.write_text(
        trl_template("gemma3").replace("{{ bos_token }}", "once upon a time"), encoding="utf-8"
    )
    assert "once upon a time" in ChatTokenizer.from_folder(folder).render(CHATS[0])
    assert tokenizer_digest(folder) != before


@pytest.mark.parametrize(
    "evil",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_a_template_can_neither_reach_python_nor_bring_it_down(tmp_path, evil):
    with pytest.raises(ModelError, match="refuses"):
        ChatTokenizer.from_folder(build_tokenizer(tmp_path, evil))


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer cannot be read"),
        ("tokenizer_config.json", "{", "not valid JSON"),
    ],
)
def test_a_broken_tokenizer_is_said_with_its_file(gemma3_folder, tmp_path, name, content, rule):
    for other in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / other).write_bytes((gemma3_folder / other).read_bytes())
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=rule):
        ChatTokenizer.from_folder(tmp_path)
