import random
from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from gemma_tune import config
from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.runs.chat import Sampling
from gemma_tune.workers import modeling
from gemma_tune.workers.decoding import Done, InTurn, MixedBatch, Piece, TextPieces, answers

PROMPTS = [[{"role": "user", "content": f"What colour is the {thing}?"}] for thing in ("boat", "hat", "lamp")]
GREEDY = Sampling(temperature=0, max_new_tokens=24)
NO_END: set[int] = set()


def save_adapter(base_folder, folder, **settings):
    """A random adapter that changes the answers."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    adapter = LoraConfig(target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False, **settings)
    get_peft_model(base, adapter).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["gemma3", "gemma2", "gemma4"])
def base_folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def adapter_folder(base_folder, tmp_path_factory):
    return save_adapter(base_folder, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def untouched(base_folder):
    """As a user would load it, without anything of ours. Frozen, as PEFT freezes a base: for weights that may want a
    gradient PyTorch multiplies in another order.
    """
    return AutoModelForCausalLM.from_pretrained(base_folder).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def plain_peft(base_folder, adapter_folder):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), adapter_folder).eval()


@pytest.fixture(scope="module")
def mixed(base_folder, adapter_folder):
    return MixedBatch(modeling.load_adapter(modeling.load_model(base_folder, torch.float32), adapter_folder))


@pytest.fixture(scope="module")
def chat(base_folder):
    return ChatTokenizer.from_folder(base_folder)


def both(models, chat, prompt_ids, sampling=GREEDY, end_ids=NO_END, stopped=lambda: False):
    """Text of each column, and its Done."""
    texts, ends = {"base": "", "tuned": ""}, {}
    for found in answers(models, chat, prompt_ids, sampling, end_ids, stopped):
        if isinstance(found, Piece):
            texts[found.column] += found.text
        else:
            ends[found.column] = found
    return texts, ends


def test_the_logits_are_those_of_the_untouched_base_bit_for_bit_and_of_a_plain_peft_load(
    mixed, untouched, plain_peft, chat
):
    prompt_ids = chat.encode_prompt(PROMPTS[0])
    two_rows = torch.tensor([prompt_ids] * 2)
    mixed.begin()
    logits = mixed.logits([prompt_ids] * 2)
    with torch.no_grad():
        assert torch.equal(logits[0], untouched(input_ids=two_rows, logits_to_keep=1).logits[0, -1])
        tuned = plain_peft(input_ids=two_rows, logits_to_keep=1).logits[1, -1]
    torch.testing.assert_close(
        logits[1], tuned, rtol=0, atol=1e-5
    )  # its adapter is multiplied for one row alone
    assert (logits[0] - logits[1]).abs().max() > 0.01


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_texts_are_those_of_separate_runs(mixed, untouched, plain_peft, chat, prompt):
    prompt_ids = chat.encode_prompt(prompt)
    texts, ends = both(mixed, chat, prompt_ids, end_ids=set(chat.end_ids))
    for name, model in (("base", untouched), ("tuned", plain_peft)):
        expected = generated(model, prompt_ids, chat, do_sample=False)
        assert texts[name] == streamed(chat, expected)
        assert ends[name].tokens == len([token for token in expected if token not in chat.end_ids])


@pytest.mark.parametrize("column", ["base", "tuned"])
def test_a_sampled_column_is_what_transformers_samples_alone(untouched, plain_peft, chat, column):
    prompt_ids = chat.encode_prompt(PROMPTS[1])
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=20, max_new_tokens=24, seed=5)
    texts, _ = both(InTurn([untouched, plain_peft]), chat, prompt_ids, sampling, set(chat.end_ids))
    torch.manual_seed(5)
    model = {"base": untouched, "tuned": plain_peft}[column]
    expected = generated(model, prompt_ids, chat, do_sample=True, temperature=0.7, top_p=0.9, top_k=20)
    assert texts[column] == streamed(chat, expected)


def test_where_the_models_agree_sampled_answers_do_too(untouched, chat):
    texts, _ = both(
        InTurn([untouched, untouched]), chat, chat.encode_prompt(PROMPTS[0]), Sampling(max_new_tokens=20)
    )
    assert texts["base"] == texts["tuned"]


def test_in_turn_gives_what_a_mixed_batch_gives(mixed, untouched, plain_peft, chat):
    prompt_ids = chat.encode_prompt(PROMPTS[0])
    assert both(InTurn([untouched, plain_peft]), chat, prompt_ids)[0] == both(mixed, chat, prompt_ids)[0]


def test_both_columns_grow_together(mixed, chat):
    found = answers(mixed, chat, chat.encode_prompt(PROMPTS[0]), GREEDY, NO_END, lambda: False)
    columns = [one.column for one in found if isinstance(one, Piece)]
    assert {"base", "tuned"} <= set(columns[:12])


def test_a_stop_ends_both_columns_and_says_so(mixed, chat):
    looks = iter([False, False, False, True])
    texts, ends = both(
        mixed, chat, chat.encode_prompt(PROMPTS[0]), Sampling(max_new_tokens=100), NO_END, lambda: next(looks)
    )
    assert [(end.tokens, end.why) for end in ends.values()] == [(3, "stopped")] * 2


def test_one_answer_ends_while_the_other_goes_on(mixed, chat, plain_peft):
    prompt_ids = chat.encode_prompt(PROMPTS[0])
    base_ids, tuned_ids = (ids_of(mixed, prompt_ids, row) for row in (0, 1))
    only_tuned = next(token for token in tuned_ids if token not in base_ids)
    _, ends = both(mixed, chat, prompt_ids, end_ids={only_tuned})
    assert (ends["base"].why, ends["base"].tokens) == ("length", 24)
    assert (ends["tuned"].why, ends["tuned"].tokens) == ("end", tuned_ids.index(only_tuned))
    assert isinstance(ends["tuned"], Done) and ends["tuned"].seconds < ends["base"].seconds


def test_a_dora_adapter_answers_in_turn(gemma3, tmp_path):
    chat = ChatTokenizer.from_folder(gemma3)
    folder = save_adapter(gemma3, tmp_path, use_dora=True)
    model = modeling.load_adapter(modeling.load_model(gemma3, torch.float32), folder)
    names = (modeling.BASE, modeling.TUNED)
    in_turn = InTurn([model] * 2, [partial(modeling.using, model, name) for name in names])
    prompt_ids = chat.encode_prompt(PROMPTS[0])
    texts, _ = both(in_turn, chat, prompt_ids, end_ids=set(chat.end_ids))
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gemma3), folder).eval()
    base = modeling.load_model(gemma3, torch.float32)
    for name, alone in (("base", base), ("tuned", tuned)):
        assert texts[name] == streamed(chat, generated(alone, prompt_ids, chat, do_sample=False))


@pytest.mark.parametrize("family", ["gemma3", "gemma3n", "gemma4"])
def test_a_quantized_base_answers_beside_its_adapter(request, tmp_path, family):
    base_folder = request.getfixturevalue(family)
    chat, folder = ChatTokenizer.from_folder(base_folder), save_adapter(base_folder, tmp_path)
    qlora = config.parse({"method": {"type": "qlora"}})
    prompt_ids = chat.encode_prompt(PROMPTS[0])
    mixed = MixedBatch(modeling.load_adapter(modeling.load_base(qlora, base_folder), folder))
    tuned = PeftModel.from_pretrained(modeling.load_base(qlora, base_folder), folder).eval()
    with torch.no_grad():
        for row, alone in enumerate([modeling.load_base(qlora, base_folder), tuned]):
            mixed.begin()
            expected = alone(input_ids=torch.tensor([prompt_ids])).logits[0, -1]
            torch.testing.assert_close(mixed.logits([prompt_ids] * 2)[row], expected, atol=0.02, rtol=0.02)


def test_a_run_that_went_on_is_compared_with_what_it_began_from(gemma3, tmp_path):
    chat = ChatTokenizer.from_folder(gemma3)
    folders = {
        name: save_adapter(gemma3, tmp_path / name, r=rank) for name, rank in (("start", 4), ("tuned", 8))
    }
    model = modeling.load_model(gemma3, torch.float32)
    for name, folder in folders.items():
        model = modeling.load_adapter(model, folder, name)
    names = (modeling.START, modeling.TUNED)
    prompt_ids = chat.encode_prompt(PROMPTS[0])
    for models in (
        MixedBatch(model, names),
        InTurn([model] * 2, [partial(modeling.using, model, name) for name in names]),
    ):
        found = models.logits([prompt_ids] * 2)
        for row, name in enumerate(names):
            base = AutoModelForCausalLM.from_pretrained(gemma3)
            alone = PeftModel.from_pretrained(base, folders[name]).eval()
            with torch.no_grad():
                expected = alone(input_ids=torch.tensor([prompt_ids])).logits[0, -1]
            torch.testing.assert_close(found[row], expected)


def test_text_comes_in_whole_characters(chat):
    draw = random.Random(0)
    text = "Zoë's café – naïve 🙂 日本"
    ids = chat.tokenizer.encode(text, add_special_tokens=False).ids
    pieces = TextPieces(chat)
    given = [pieces.add(token) for token in ids]
    assert "".join(given) + pieces.rest() == text
    assert not any("\ufffd" in piece for piece in given)
    words = list(range(300, 320))
    for _ in range(20):
        ids = draw.choices(words, k=10)
        pieces = TextPieces(chat)
        assert "".join(map(pieces.add, ids)) + pieces.rest() == chat.decode(ids)


def generated(model, prompt_ids, chat, **settings) -> list[int]:
    """What Transformers' own generate gives for one prompt."""
    input_ids = torch.tensor([prompt_ids])
    settings = {"top_k": None, "top_p": None} | settings
    out = model.generate(
        input_ids=input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=24,
        eos_token_id=chat.end_ids, **settings,
    )  # fmt: skip
    return out[0, len(prompt_ids) :].tolist()


def streamed(chat, ids: list[int]) -> str:
    pieces = TextPieces(chat)
    return "".join(pieces.add(token) for token in ids if token not in chat.end_ids) + pieces.rest()


def ids_of(models, prompt_ids, row) -> list[int]:
    models.begin()
    ids, found = [prompt_ids] * 2, []
    for _ in range(24):
        chosen = models.logits(ids).argmax(-1).tolist()
        found.append(chosen[row])
        ids = [[token] for token in chosen]
    return found
