import pytest
import torch
from torch.nn.functional import cross_entropy
from trl.trainer.utils import add_fused_lm_head

from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.data.rows import Row
from gemma_tune.workers import evaluate, modeling

from . import tiny


@pytest.fixture
def chat(gemma3):
    return ChatTokenizer.from_folder(gemma3)


@pytest.fixture
def model(gemma3):
    model = modeling.load_model(gemma3, torch.float32)
    add_fused_lm_head(model)
    return model


def rows():
    return [Row(number, talk) for number, talk in enumerate(tiny.conversations()[:7], start=3)]


def never() -> bool:
    return False


def test_the_last_turn_is_the_answer_and_long_prompts_are_left_out(chat):
    long = [{"role": "user", "content": "boat " * 300}, {"role": "assistant", "content": "red"}]
    talk = tiny.conversations()[0]
    more = [*talk, {"role": "user", "content": "And the hat?"}, {"role": "assistant", "content": " blue "}]
    found = evaluate.questions_of([Row(1, long), Row(2, more), Row(3, talk)], chat, 9, 256, 32)
    assert [(question.row, question.expected) for question in found] == [
        (2, " blue "),
        (3, talk[1]["content"]),
    ]
    assert found[0].messages == more[:-1]
    assert "assistant: " in evaluate.shown_prompt(found[0].messages)


def test_only_what_can_be_answered_in_words_is_asked(chat):
    talk = tiny.conversations()[0]
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    calling = [*talk[:1], {"role": "assistant", "content": "Let me see.", "tool_calls": [call]}]
    given = [
        Row(1, text="A plain text."),
        Row(2, calling),
        Row(3, [*calling, {"role": "tool", "content": "red"}, talk[1]]),
        Row(4, talk, tools='[{"type": "function", "function": {"name": "f"}}]'),
        Row(5, talk, rejected_messages=[{"role": "assistant", "content": "no"}], prompt_turns=1),
        Row(6, talk, prompt_turns=1, label=True),
        Row(7, talk, prompt_turns=1, label=False),  # nobody wants this answer
    ]
    found = evaluate.questions_of(given, chat, 9, 256, 32)  # the template has no place for functions
    assert [(question.row, question.expected) for question in found] == [
        (n, talk[1]["content"]) for n in (5, 6)
    ]


def test_answers_of_a_padded_batch_are_those_of_each_alone(model, chat):
    mixed_lengths = [
        *rows(),
        Row(50, [{"role": "user", "content": "red"}, {"role": "assistant", "content": "x"}]),
    ]
    questions = evaluate.questions_of(mixed_lengths, chat, 9, 256, 16)
    together = evaluate.answer_all(model, chat, questions, 16, 3, never)
    alone = [evaluate.answer_all(model, chat, [question], 16, 1, never)[0] for question in questions]
    assert together == alone
    assert len(set(together)) > 1


def test_the_loss_is_the_cross_entropy_of_the_learned_tokens(model, chat):
    encoded = [chat.encode(row) for row in rows()]
    taken = [{"input_ids": one.ids, "labels": one.labels} for one in encoded]
    with torch.no_grad():
        found = evaluate.validation_loss(model, taken, 1, never)
        alone = [
            cross_entropy(
                model(input_ids=torch.tensor([one.ids])).logits[0, :-1], torch.tensor(one.labels[1:])
            ).item()
            for one in encoded
        ]
    assert found == pytest.approx(sum(alone) / len(alone), abs=1e-5)
    assert evaluate.validation_loss(model, [], 4, never) is None


def test_pairs_are_scored_row_by_row(model, chat):
    encoded = [chat.encode(row) for row in rows()]
    taken = [{"input_ids": one.ids, "labels": one.labels} for one in encoded]
    questions = evaluate.questions_of(rows()[:2], chat, 2, 256, 4)
    held_out = evaluate.HeldOut(taken[:3], taken[3:6], paired=True)
    found = evaluate.measure(model, chat, questions, held_out, max_new_tokens=4, batch_rows=2, stop=never)
    with torch.no_grad():
        alone = [evaluate.validation_loss(model, [row], 1, never) for row in taken]
        assert evaluate.row_losses(model, taken, 4, never) == pytest.approx(alone, abs=1e-5)
    assert found.loss == pytest.approx(sum(alone[:3]) / 3, abs=1e-5)
    assert found.other_loss == pytest.approx(sum(alone[3:6]) / 3, abs=1e-5)
    likelier = [one < other for one, other in zip(alone[:3], alone[3:6], strict=True)]
    assert found.preferred == sum(likelier) / 3
    unpaired = evaluate.HeldOut(taken[:1], taken[1:])
    found = evaluate.measure(model, chat, questions, unpaired, max_new_tokens=4, batch_rows=2, stop=never)
    assert found.preferred is None and found.other_loss is not None


def test_an_answer_that_calls_is_expected_with_its_control_tokens(function_gemma):
    chat = ChatTokenizer.from_folder(function_gemma)
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    row = Row(1, turns, tools='[{"type": "function", "function": {"name": "f"}}]')
    assert not evaluate.questions_of([row], chat, 9, 256, 8)
    (question,) = evaluate.questions_of([row], chat, 9, 256, 8, calls=True)
    assert question.expected.startswith("<start_function_call>call:f{a:1}<end_function_call>")


def test_exact_match_ignores_blanks_around_the_answer(chat):
    questions = evaluate.questions_of(rows()[:4], chat, 4, 256, 16)
    answers = [f" {questions[0].expected}\n", questions[1].expected, "other", questions[3].expected.upper()]
    assert evaluate.Measured(answers, None).exact_match(questions) == 0.5


def test_a_stop_ends_a_generation_at_the_next_token(model, chat):
    looks = iter([False, False, True, True, True])
    questions = evaluate.questions_of(rows(), chat, 4, 256, 100)
    with pytest.raises(evaluate.ReportStopped):
        evaluate.answer_all(model, chat, questions, 100, 4, lambda: next(looks))
