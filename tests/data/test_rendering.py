import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import build_tokenizer, trl_template

from gemma_tune.data.rendering import NOT_LEARNED, ChatTokenizer, fold_system
from gemma_tune.errors import ModelError
from gemma_tune.pocket import MODEL_DIR


def chat(*contents: str, system: str = "") -> list[dict]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


CHATS = [
    chat("Who lives there?", "A cat."),
    chat("a", "b", "c", "d", "e", "f"),
    chat("  padded question \n", "\n  padded answer  "),
    chat("Hi", "Bye", system="You are brief."),
    chat("一隻貓 🐈 naïve", "🐈‍⬛ é\u0301 ok"),
    chat("line one\n\nline two", "one\ntwo\n\nthree"),
    chat("<end_of_turn> inside", "an <eos> inside"),
]


def test_labels_are_the_answer_and_the_end_of_its_turn(gemma3):
    found = gemma3.encode(CHATS[1])
    assert found.text.startswith("<bos><start_of_turn>user\na<end_of_turn>\n")
    assert len(found.ids) == len(found.labels)
    learned = gemma3.decode(
        [label for label in found.labels if label != NOT_LEARNED], skip_special_tokens=False
    )
    assert learned == "b<end_of_turn>\nd<end_of_turn>\nf<end_of_turn>\n"


def test_without_assistant_only_loss_every_token_is_learned(gemma3):
    found = gemma3.encode(CHATS[0], assistant_only_loss=False)
    assert found.labels == found.ids


@pytest.mark.parametrize("messages", CHATS)
def test_pieces_are_the_whole_text_in_order_with_kinds(gemma3, messages):
    whole = gemma3.pieces(messages, max_length=10_000)
    assert "".join(text for text, _ in whole) == gemma3.render(messages)
    assert {kind for _, kind in whole} == {"prompt", "learned"}
    cut = gemma3.pieces(messages, max_length=7)
    assert "".join(text for text, _ in cut) == gemma3.render(messages)
    assert cut[-1][1] == "cut"


def test_measure_counts_what_encode_gives(gemma3):
    for max_length in (5, 12, 1000):
        expected = [
            (
                len(found.ids),
                sum(label != NOT_LEARNED for label in found.labels[:max_length]),
                _before(found.labels),
            )
            for found in gemma3.encode_all(CHATS)
        ]
        assert gemma3.measure(CHATS, max_length) == expected


def _before(labels: list[int]) -> int:
    return next(index for index, label in enumerate(labels) if label != NOT_LEARNED)


def test_gemma_2_has_no_system_role_so_the_text_goes_before_the_first_user_turn(gemma2, gemma3):
    messages = chat("Hi", "Bye", system="You are brief.")
    assert gemma2.folds_system and not gemma3.folds_system
    assert gemma2.render(messages) == gemma3.render(messages)
    assert fold_system(messages)[0]["content"] == "You are brief.\n\nHi"


def test_the_prompt_ends_where_the_answer_begins(gemma3):
    ids = gemma3.encode_prompt(chat("Hi"))
    assert gemma3.decode(ids, skip_special_tokens=False).endswith("<start_of_turn>model\n")
    assert gemma3.encode(chat("Hi", "Bye")).ids[: len(ids)] == ids


def test_an_answer_ends_with_end_of_text_or_end_of_turn(gemma3):
    assert gemma3.end_ids == [1, 5]


def test_a_template_with_generation_marks_renders_alike(gemma3, tmp_path):
    marked = ChatTokenizer.from_folder(build_tokenizer(tmp_path, trl_template("gemma3_training")))
    assert [marked.encode(messages) for messages in CHATS] == [gemma3.encode(messages) for messages in CHATS]


def test_a_model_without_a_chat_template_is_refused(gemma3_folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((gemma3_folder / name).read_bytes())
    with pytest.raises(ModelError, match="no chat template.*-it"):
        ChatTokenizer.from_folder(tmp_path)


def test_the_template_is_found_in_the_tokenizer_config_too(gemma3, gemma3_folder, tmp_path):
    config = json.loads((gemma3_folder / "tokenizer_config.json").read_text())
    config["chat_template"] = trl_template("gemma3")
    config["bos_token"] = {"content": "<bos>", "lstrip": False}
    (tmp_path / "tokenizer.json").write_bytes((gemma3_folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTokenizer.from_folder(tmp_path).render(CHATS[0]) == gemma3.render(CHATS[0])


def test_a_template_cannot_reach_python(gemma3_folder, tmp_path):
    evil = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    tokenizer = ChatTokenizer.from_folder(build_tokenizer(tmp_path, evil))
    with pytest.raises(ModelError, match="refuses"):
        tokenizer.render(CHATS[0])


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.integers(1, 60))
def test_whatever_the_text_the_answers_and_only_they_are_learned(gemma3, pairs, max_length):
    messages = chat(*(text for pair in pairs for text in pair))
    found = gemma3.encode(messages)
    pieces = gemma3.pieces(messages, 100_000)
    assert "".join(text for text, _ in pieces) == found.text
    learned = [text for text, kind in pieces if kind == "learned"]
    assert learned == [f"{answer.strip()}<end_of_turn>\n" for _, answer in pairs]
    count = sum(label != NOT_LEARNED for label in found.labels[:max_length])
    assert gemma3.measure([messages], max_length) == [(len(found.ids), count, _before(found.labels))]


@pytest.mark.training
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "pocket"])
def test_ids_and_labels_equal_those_of_trl(family, gemma2_folder, gemma3_folder, tmp_path):
    """Against SFTTrainer's own preparation with assistant_only_loss, on a model of one tiny layer."""
    from datasets import Dataset
    from transformers import (
        AutoTokenizer,
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
    )
    from trl import SFTConfig, SFTTrainer

    folder = {"gemma2": gemma2_folder, "gemma3": gemma3_folder, "pocket": MODEL_DIR}[family]
    ours = ChatTokenizer.from_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if family == "pocket":  # its template is worded otherwise, so TRL has no training variant of it
        tokenizer.chat_template = trl_template("gemma3")
    chats = [messages for messages in CHATS if family != "gemma2" or messages[0]["role"] != "system"]
    size = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32,
    }  # fmt: skip
    if family == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**size))
    else:
        model = Gemma3ForCausalLM(Gemma3TextConfig(**size))
    args = SFTConfig(
        output_dir=str(tmp_path), assistant_only_loss=True, max_length=None, report_to="none", use_cpu=True,
        bf16=False, per_device_train_batch_size=1,
    )  # fmt: skip
    rows = Dataset.from_list([{"messages": messages} for messages in chats])
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    batches = [trainer.data_collator([row]) for row in trainer.train_dataset]
    assert len(batches) == len(chats)
    for messages, batch in zip(chats, batches, strict=True):
        found = ours.encode(messages)
        assert batch["input_ids"][0].tolist() == found.ids
        assert batch["labels"][0].tolist() == found.labels
