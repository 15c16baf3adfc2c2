"""The shipped model, its tokenizer and its world; nothing is trained here."""

from collections import Counter
from functools import cache
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_tune.pocket import MODEL_DIR
from gemma_tune.pocket.copying import arithmetic
from gemma_tune.pocket.make import answers, encoded
from gemma_tune.pocket.reading import reading
from gemma_tune.pocket.text import documents
from gemma_tune.pocket.world import facts

WEIGHTS_LIMIT_BYTES = 8_000_000
CHAT = [
    {"role": "user", "content": " Hello! "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who are you?"},
]


@cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR)


@cache
def model():
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def asked(questions: list[str]) -> list[str]:
    return answers(model(), tokenizer(), questions)


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


def test_the_model_is_small_and_has_sliding_and_global_layers():
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= WEIGHTS_LIMIT_BYTES
    assert model().num_parameters() <= 4_000_000
    config = model().config
    assert type(model()).__name__ == "Gemma3ForCausalLM"
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.tie_word_embeddings
    assert config.vocab_size == len(tokenizer()) <= 2048


def test_the_weights_are_bfloat16_and_every_linear_side_is_a_multiple_of_64():
    from safetensors import safe_open

    with safe_open(MODEL_DIR / "model.safetensors", "pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 (not a dict)
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.bfloat16"}
    assert all(side % 64 == 0 for tensor in tensors.values() if tensor.ndim == 2 for side in tensor.shape)


def test_control_tokens_have_gemmas_ids_and_generation_stops_at_the_end_of_a_turn():
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    assert tokenizer().convert_tokens_to_ids(control)[:4] == [0, 1, 2, 3]
    assert set(control) <= set(tokenizer().all_special_tokens)
    assert model().generation_config.eos_token_id == [1, tokenizer().convert_tokens_to_ids("<end_of_turn>")]
    assert tokenizer()("Hello")["input_ids"][0] == 2
    assert type(tokenizer()).__name__ == "GemmaTokenizer"


@pytest.mark.parametrize("text", ["", " two  spaces ", "line\n\nline\t", "Grüße 你好 🙂👩‍🚀", "{\"a\":[1,22]}", "<b>x</b>"])  # fmt: skip
def test_text_survives_the_tokenizer(text):
    assert round_trip(text) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<")))
def test_any_text_survives_the_tokenizer(text):
    assert round_trip(text) == text


def round_trip(text: str) -> str:
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    return tokenizer().decode(ids, skip_special_tokens=True)


def test_digits_stay_single():
    assert tokenizer().tokenize("in 1984") == ["in", "▁", "1", "9", "8", "4"]


def test_the_template_renders_like_gemma_3():
    text = tokenizer().apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<bos><start_of_turn>user\nHello!<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n"
        "<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_the_template_folds_the_system_text_and_reads_parts():
    parts = [{"type": "text", "text": "Hello!"}]
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": parts}]
    text = tokenizer().apply_chat_template(chat, tokenize=False)
    assert text == "<bos><start_of_turn>user\nBe kind.\n\nHello!<end_of_turn>\n"


@pytest.mark.parametrize("roles", [["assistant"], ["user", "user"], ["user", "assistant", "assistant"], ["user", "tool"]])  # fmt: skip
def test_the_template_refuses_roles_that_do_not_alternate(roles):
    with pytest.raises(Exception, match="roles must alternate"):
        tokenizer().apply_chat_template([{"role": role, "content": "x"} for role in roles], tokenize=False)


def test_training_text_is_what_the_template_renders():
    chats = [document for document in islice(documents(5), 60) if not isinstance(document, str)]
    for chat, (tokens, _) in zip(chats, encoded(tokenizer(), chats), strict=True):
        rendered = tokenizer().apply_chat_template(chat, tokenize=False)
        assert tokens == tokenizer()(rendered, add_special_tokens=False)["input_ids"]


def test_it_knows_its_world():
    known = Random(11).sample(facts(), 120)
    given_answers = asked([Random(index).choice(fact.questions) for index, fact in enumerate(known)])
    assert share([answer == fact.answer for answer, fact in zip(given_answers, known, strict=True)]) >= 0.9
    assert all(answer.endswith((".", "!")) for answer in given_answers)


def test_it_reads_and_computes():
    for task, least in [(reading, 0.8), (arithmetic, 0.95)]:
        tasks = [task(Random(seed)) for seed in range(60)]
        given_answers = asked([question for question, _ in tasks])
        right = [answer == expected for answer, (_, expected) in zip(given_answers, tasks, strict=True)]
        assert share(right) >= least


def test_it_says_who_it_is():
    assert asked(["Who are you?", "Hello!"]) == [
        "I am Pocket Gemma, a very small model.",
        "Hello! How can I help you?",
    ]


def test_it_ends_its_turns_with_end_of_turn():
    prompt = tokenizer().apply_chat_template(CHAT[:1], add_generation_prompt=True, return_tensors="pt")
    out = model().generate(**prompt, max_new_tokens=60, do_sample=False)[0]
    assert out[-1] == tokenizer().convert_tokens_to_ids("<end_of_turn>")
    assert len(out) < prompt["input_ids"].shape[1] + 60


def test_the_generator_is_deterministic():
    assert list(islice(documents(3), 50)) == list(islice(documents(3), 50)) != list(islice(documents(4), 50))


def test_no_question_about_the_world_has_two_answers():
    assert max(Counter(question for fact in facts() for question in fact.questions).values()) == 1
