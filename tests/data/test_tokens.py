import json
import os
import shutil
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import FUNCTION_GEMMA, FUNCTION_TRAINING_TEMPLATE, build_tokenizer, trl_template

from gemma_tune import config
from gemma_tune.data import parallel, tokens
from gemma_tune.data.formats import recognise
from gemma_tune.data.parallel import Cancelled, unwatched
from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.data.rows import Opened, Row, values_in_chunks
from gemma_tune.data.sources import first_rows
from gemma_tune.data.store import Part, Store, stored
from gemma_tune.data.tokens import FILES, NO_SINGLE_BOS, NO_TURN_END, tokens_of
from gemma_tune.errors import DataError
from gemma_tune.pocket import MODEL_DIR
from gemma_tune.runs.folder import RunFolder

FAMILIES = ["gemma2", "gemma3", "gemma4", "functiongemma"]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


def chat(*contents: str) -> list[dict]:
    return [(user, answer)[place % 2](text) for place, text in enumerate(contents)]


TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "Looks out.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }}
]  # fmt: skip
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}],
}
RESULT = {"role": "tool", "content": "sunny", "name": "weather"}
CALLING = [user("How is Rome?"), CALL, RESULT, answer("It is sunny."), user("Thanks."), answer("Bye.")]


def store_of(records: list[dict], format: str = "auto") -> Store:
    """The records through the whole way: recognised, converted, written, read."""
    opened = Opened("rows", lambda: values_in_chunks(records, size=3), lambda: json.dumps(records))
    return stored([Part(opened, recognise(first_rows(opened), format))], unwatched)


TALKS = [
    {"messages": chat("Who lives there?", "A cat.")},
    {"messages": chat("a", "b", "c", "d", "e", "f")},
    {"messages": chat("<end_of_turn> inside <|turn>", "an <eos> inside <start_of_turn>")},
    {"messages": [{"role": "system", "content": "s"}, *chat("一隻貓 🐈", "🐈‍⬛ é")]},
]


@pytest.fixture
def home(folder):
    """The cache is the test's own."""
    return folder


# ---- what is kept ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("assistant_only_loss", [True, False])
def test_the_tokens_of_a_row_are_those_of_its_encoding_cut(
    home, chat_of, folder_of, family, assistant_only_loss
):
    store = store_of(TALKS)
    found = tokens_of(store, folder_of(family), assistant_only_loss, unwatched)
    encodings = chat_of(family).encode_all(store.rows(range(4)), assistant_only_loss)
    for index, encoding in enumerate(encodings):
        for max_length in (1, 9, 17, 30, 10_000):
            expected = encoding.ids[:max_length], encoding.labels[:max_length]
            assert found.row(index, max_length) == expected
            assert found.learned(max_length)[index] == sum(label != -100 for label in expected[1])
        assert (
            found.lengths[index] == len(encoding.ids)
            and found.before_learned()[index] == encoding.spans[0][0]
        )


@pytest.mark.parametrize("record", [{"text": "A cat. 🐈"}, {"prompt": chat("a", "b", "c"), "completion": "d"},
                                    {"prompt": "a", "chosen": "b", "rejected": "c"},
                                    {"prompt": "a", "completion": "b", "label": False}])  # fmt: skip
def test_rows_of_every_kind_have_their_tokens(home, gemma3, gemma3_folder, record):
    store = store_of([record])
    found, row = tokens_of(store, gemma3_folder, True, unwatched), store.row(0)
    encoding = gemma3.encode(row)
    assert found.row(0, 1000) == (encoding.ids, encoding.labels)
    learned = gemma3.decode([id for id in encoding.labels if id != -100], skip_special_tokens=False)
    last = (row.text and f"<bos>{row.text}<eos>") or f"{row.messages[-1]['content']}<end_of_turn>\n"
    assert learned == last


@settings(max_examples=40)
@given(data=st.data())
def test_a_batch_is_its_rows_one_after_the_other(found_tokens, data):
    indices = data.draw(st.lists(st.integers(0, len(found_tokens.lengths) - 1), max_size=6))
    max_length = data.draw(st.integers(0, 60))
    ids, labels, lengths = found_tokens.batch(np.array(indices, int), max_length)
    rows = [found_tokens.row(index, max_length) for index in indices]
    assert lengths.tolist() == [len(row) for row, _ in rows]
    assert ids.tolist() == [id for row, _ in rows for id in row]
    assert labels.tolist() == [label for _, row in rows for label in row]


@pytest.fixture(scope="module")
def found_tokens(tmp_path_factory, gemma3_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_TUNE_HOME", str(tmp_path_factory.mktemp("home")))
        yield tokens_of(
            store_of([*TALKS, {"messages": chat("a", "b"), "tools": TOOLS}]), gemma3_folder, True, unwatched
        )


def test_a_row_that_the_template_refuses_has_no_tokens_but_its_reason(home, folder_of):
    store = store_of([TALKS[0], {"messages": CALLING, "tools": TOOLS}, TALKS[1], {"messages": CALLING}])
    found = tokens_of(store, folder_of("gemma3"), True, unwatched)
    refused = dict(found.refused())
    assert (
        list(refused) == [1, 3] and "no place for tools" in refused[1] and "calls of functions" in refused[3]
    )
    assert found.lengths[[1, 3]].tolist() == [0, 0] and found.row(1, 100) == ([], [])
    assert found.row(2, 1000) == tokens_of(store_of([TALKS[1]]), folder_of("gemma3"), True, unwatched).row(
        0, 1000
    )
    assert not list(tokens_of(store, folder_of("gemma4"), True, unwatched).refused())


def test_an_empty_store_has_no_tokens(home, gemma3_folder):
    found = tokens_of(store_of([{"messages": chat("a")}], "messages"), gemma3_folder, True, unwatched)
    assert len(found.lengths) == 0 and found.learned(10).tolist() == [] and not list(found.refused())


# ---- Gemma's rules ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_bos_is_noted_and_a_plain_row_is_not(home, folder_of, family):
    rows = [TALKS[0], {"messages": chat("a <bos>", "b")}, {"messages": chat("a", "b")}]
    assert tokens_of(store_of(rows), folder_of(family), True, unwatched).odd.tolist() == [0, NO_SINGLE_BOS, 0]
    texts = [{"text": "<bos>a"}, {"text": "a <bos> b"}]
    assert tokens_of(store_of(texts), folder_of(family), True, unwatched).odd.tolist() == [0, NO_SINGLE_BOS]


def test_an_answer_that_does_not_learn_to_end_is_noted(home, tmp_path):
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    found = tokens_of(store_of(TALKS[:1]), build_tokenizer(tmp_path / "endless", template), True, unwatched)
    assert found.odd.tolist() == [NO_TURN_END] and found.learned(1000)[0] > 0


@pytest.mark.parametrize("family", ["gemma4", "functiongemma"])
@pytest.mark.parametrize("assistant_only_loss", [True, False])
def test_a_call_ends_by_handing_over_and_is_nothing_odd(home, folder_of, family, assistant_only_loss):
    rows = [{"messages": CALLING, "tools": TOOLS}, {"messages": CALLING[:2], "tools": TOOLS}]
    assert tokens_of(store_of(rows), folder_of(family), assistant_only_loss, unwatched).odd.tolist() == [0, 0]


# ---- the cache -------------------------------------------------------------------------------------------------------
def test_what_was_tokenised_once_is_found_again_whatever_the_maximum_length(home, gemma3_folder, monkeypatch):
    store = store_of(TALKS)
    first = tokens_of(store, gemma3_folder, True, unwatched)
    monkeypatch.setattr(tokens, "tokenise_block", pytest.fail)
    again = tokens_of(store, gemma3_folder, True, unwatched)
    assert again.folder == first.folder and again.row(1, 5) == first.row(1, 5) != first.row(1, 50)


def test_another_tokenizer_template_mask_or_store_is_tokenised_anew(home, folder_of, tmp_path):
    store = store_of(TALKS)
    folder = shutil.copytree(folder_of("gemma3"), tmp_path / "model")
    found = [tokens_of(store, folder, True, unwatched), tokens_of(store, folder, False, unwatched)]
    found.append(tokens_of(store_of(TALKS[:3]), folder, True, unwatched))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<end_of_turn>", "<end_of_turn> "))
    found.append(tokens_of(store, folder, True, unwatched))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<eos>"}))
    found.append(tokens_of(store, folder, True, unwatched))
    assert len({one.folder for one in found}) == 5
    assert found[3].row(0, 1000) != found[0].row(0, 1000) and found[4].row(0, 1000)[0][0] == 1


def test_a_run_finds_the_tokens_of_the_store_that_it_copied(home, gemma3_folder, monkeypatch):
    store = store_of(TALKS)
    first = tokens_of(store, gemma3_folder, True, unwatched)
    copy = store.copy_to(home / "run")
    shutil.rmtree(store.folder)
    monkeypatch.setattr(tokens, "tokenise_block", pytest.fail)
    assert tokens_of(copy, gemma3_folder, True, unwatched).folder == first.folder


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_of_a_pair_have_their_tokens(folder_of, home, family):
    rows = [
        {"prompt": "Who?", "chosen": "A cat lives here.", "rejected": "Nobody."},
        {"prompt": [user("a"), answer("b"), user("c")], "chosen": [answer("d")], "rejected": [answer("e e")]},
    ]
    chat_of, store = ChatTokenizer.from_folder(folder_of(family)), store_of(rows)
    found = tokens_of(store, folder_of(family), True, unwatched)
    for index, row in enumerate(store.rows(range(2))):
        before = row.messages[: row.prompt_turns]
        prompt, chosen, rejected = found.sides(index)
        assert prompt == chat_of.encode_prompt(before)
        assert prompt + chosen == chat_of.encode(row).ids
        other = chat_of.encode(Row(1, before + row.rejected_messages)).ids
        assert prompt + rejected == other and found.other_lengths[index] == len(other)


def test_a_conversation_is_answered_by_its_last_turn_and_a_text_by_none(folder_of, home):
    rows = [{"messages": chat("a", "b", "c", "d")}]
    found = tokens_of(store_of(rows), folder_of("gemma3"), True, unwatched)
    chat_of = ChatTokenizer.from_folder(folder_of("gemma3"))
    prompt, last, rejected = found.sides(0)
    assert prompt == chat_of.encode_prompt(chat("a", "b", "c")) and rejected == []
    assert chat_of.decode(last) == "d\n"
    texts = tokens_of(store_of([{"text": "A cat."}] * 2), folder_of("gemma3"), True, unwatched)
    assert texts.prompt_lengths.tolist() == [0, 0] == texts.other_lengths.tolist()


def test_a_pair_is_refused_where_one_of_its_sides_is(folder_of, home):
    row = {"prompt": "Go.", "chosen": [answer("No.")], "rejected": [CALL], "tools": TOOLS}
    found = tokens_of(store_of([row]), folder_of("gemma3"), True, unwatched)
    assert (found.lengths.tolist(), found.other_lengths.tolist(), len(list(found.refused()))) == ([0], [0], 1)


@pytest.fixture
def small_blocks(monkeypatch):
    """Two rows or so at a time, so that a few make several blocks."""
    whole = Store.blocks
    monkeypatch.setattr(Store, "blocks", lambda self: whole(self, 300))


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(parallel, "WORTH_IT_BYTES", 0)
    monkeypatch.setattr(parallel, "cores", lambda: 2)


def test_processes_write_the_same_bytes_as_one(home, folder_of, small_blocks, monkeypatch):
    rows = [
        *TALKS,
        {"messages": CALLING, "tools": TOOLS},
        *({"messages": chat("q" * n, f"a {n}")} for n in range(1, 30)),
    ]
    store = store_of(rows)
    inline = tokens_of(store, folder_of("gemma3"), True, unwatched)
    expected = {name: (inline.folder / name).read_bytes() for name in FILES}
    assert [index for index, _ in inline.refused()] == [4] and len(inline.lengths) == len(rows)
    shutil.rmtree(inline.folder)
    monkeypatch.setattr(parallel, "WORTH_IT_BYTES", 0)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    found = tokens_of(store, folder_of("gemma3"), True, unwatched)
    assert {name: (found.folder / name).read_bytes() for name in FILES} == expected


def kill(block, **how):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_said_and_leaves_nothing_behind(
    home, gemma3_folder, small_blocks, two_cores, monkeypatch
):
    store = store_of(TALKS)
    works = tokens.tokenise_block
    monkeypatch.setattr(tokens, "tokenise_block", kill)
    with pytest.raises(DataError, match="ended by the system"):
        tokens_of(store, gemma3_folder, True, unwatched)
    assert [path for path in (home / "cache").iterdir() if path != store.folder] == []
    monkeypatch.setattr(tokens, "tokenise_block", works)
    assert len(tokens_of(store, gemma3_folder, True, unwatched).lengths) == 4


def test_a_cancelled_tokenising_leaves_no_half_folder_and_the_next_one_works(
    home, gemma3_folder, small_blocks
):
    store, told = store_of(TALKS), []

    def watch(phase: str, done: int, total: int | None) -> None:
        told.append((phase, done, total))
        if len(told) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        tokens_of(store, gemma3_folder, True, watch)
    assert [path for path in (home / "cache").iterdir() if path != store.folder] == []
    tokens_of(store, gemma3_folder, True, lambda *told_now: told.append(told_now))
    assert {(phase, total) for phase, _, total in told} == {("tokenizing", 4)} and told[-1][1] == 4


# ---- the very tensors of TRL -----------------------------------------------------------------------------------------
# TRL has no training template for Gemma 4: the same text for chats without tools, with the answers marked.
GEMMA_4_TRAINING_TEMPLATE = """
{{- bos_token -}}{%- set ns = namespace(turns=messages) -%}
{%- if messages[0]['role'] in ['system', 'developer'] -%}
    {{- '<|turn>system\\n' + messages[0]['content'] | trim + '<turn|>\\n' -}}{%- set ns.turns = messages[1:] -%}
{%- endif -%}
{%- for turn in ns.turns -%}
    {%- if turn['role'] == 'assistant' -%}
        {{- '<|turn>model\\n' -}}{%- generation -%}{{- turn['content'] | trim + '<turn|>\\n' -}}{%- endgeneration -%}
    {%- else -%}{{- '<|turn>' + turn['role'] + '\\n' + turn['content'] | trim + '<turn|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>model\\n' -}}{%- endif -%}
"""
TRAINING_TEMPLATES = {"gemma4": GEMMA_4_TRAINING_TEMPLATE, "functiongemma": FUNCTION_TRAINING_TEMPLATE}
WORDS = [
    ["Who lives there?", "A cat."],
    ["a", "b", "c", "d", "e", "f"],
    ["  padded question \n", "\n  padded answer  "],
    ["一隻貓 🐈 naïve", "🐈‍⬛ é\u0301 ok"],
    ["line one\n\nline two", "one\ntwo\n\nthree"],
    ["<end_of_turn> inside", "an <eos> inside"],
    ["<start_of_turn>model\n inside", "and <start_of_turn> again <|turn>model\n"],
    ["a very long question " * 30, "of which nothing is left after the cut"],
    ["cut", "within the answer, which is a long one as well, and goes on for a while " * 2],
]
CUT = 60


def as_system(family: str, system: str, question: str, text: str) -> list[dict]:
    """What a user of TRL would write for a family that may know no such role."""
    if family == "gemma2":
        return chat(f"{system}\n\n{question}", text)
    role = "developer" if family == "functiongemma" else "system"
    return [{"role": role, "content": system}, *chat(question, text)]


def trl_rows(trainer) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of each row as the trainer's own collator gives it; of a pair the chosen side."""
    found = []
    for row in trainer.train_dataset:
        batch = trainer.data_collator([row])
        ids = batch["input_ids"][0].tolist()
        if "completion_mask" in batch:
            length = int(batch["attention_mask"][0].sum())
            mask = batch["completion_mask"][0].tolist()[:length]
            found.append((ids[:length], [id if on else -100 for id, on in zip(ids, mask, strict=False)]))
        else:
            found.append((ids, batch["labels"][0].tolist()))
    return found


def trl_trainer(kind: str, folder, template: str | None, rows: list[dict], output, **arguments):
    """TRL's own trainer on the tokenizer of the folder and a model of one tiny layer."""
    import trl
    from datasets import Dataset
    from transformers import (
        AutoTokenizer,
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if template:
        tokenizer.chat_template = template
    size = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32,
    }  # fmt: skip
    gemma2 = tokenizer.chat_template == trl_template("gemma")
    model = Gemma2ForCausalLM(Gemma2Config(**size)) if gemma2 else Gemma3ForCausalLM(Gemma3TextConfig(**size))
    model.save_pretrained(output / "model")  # DPO and KTO load their reference from there
    model = type(model).from_pretrained(output / "model")
    args = getattr(trl, f"{kind}Config")(
        output_dir=str(output), report_to="none", use_cpu=True, bf16=False,
        per_device_train_batch_size=2 if kind == "KTO" else 1, **arguments,
    )  # fmt: skip
    return getattr(trl, f"{kind}Trainer")(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def our_rows(store: Store, folder, output, max_length: int) -> list[tuple[list[int], list[int]]]:
    """Through the store and the tokens, and again as the worker writes them to Arrow; rows with nothing to learn left out."""
    from datasets import Dataset

    from gemma_tune.workers import dataset

    found = tokens_of(store, folder, True, unwatched)
    rows = [found.row(index, max_length) for index in range(len(store))]
    kept = [row for row in rows if any(label != -100 for label in row[1])]
    run = RunFolder(output / "run")
    run.data_dir.mkdir(parents=True)
    every = np.arange(len(store))
    wanted = config.parse({"train": {"max_length": max_length}})
    chat = ChatTokenizer.from_folder(folder)
    side, _ = dataset.encode(run, dataset.Rows(store, every, every[:0]), wanted, found, chat)
    written = [(row["input_ids"], row["labels"]) for row in Dataset.from_file(str(side.path))]
    assert written == kept and side.rows == len(kept)
    assert side.tokens == sum(len(ids) for ids, _ in kept)
    assert side.cut == int((found.lengths > max_length).sum())
    assert side.left_out == [n for n, row in enumerate(rows, 1) if row not in kept]
    return kept


def assert_equal_rows(ours: list, theirs: list) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one[0] == other[0]
        assert one[1] == other[1]


MARKED = {"assistant_only_loss": True}  # TRL then needs a template that marks the answers
BAD = [answer("something else, and longer " * 4)]


def split_up(talk: list[dict], at: int, second: str = "completion", **more: object) -> dict:
    return {"prompt": talk[:at], second: talk[at:], **more}


CASES = {  # TRL's trainer, its arguments, the kind of our rows, the record of a conversation
    "messages": ("SFT", MARKED, "messages", lambda talk, n: {"messages": talk}),
    "several answers": ("SFT", MARKED, "messages", lambda talk, n: split_up(talk, len(talk) % 2 + 1)),
    "prompt_completion": ("SFT", {}, "messages", lambda talk, n: split_up(talk, -1)),
    "text": ("SFT", {}, "text", lambda talk, n: {"text": "\n".join(turn["content"] for turn in talk)}),
    "preference": ("DPO", {}, "pair", lambda talk, n: split_up(talk, -1, "chosen", rejected=BAD)),
    "kto": ("KTO", {}, "label", lambda talk, n: split_up(talk, -1, label=bool(n % 2))),
}


@pytest.mark.training
@pytest.mark.parametrize("family", [*FAMILIES, "pocket"])
@pytest.mark.parametrize("case", CASES)
def test_ids_and_labels_equal_those_of_trl(home, folder_of, tmp_path, family, case):
    """Row by row, whole, cut, and left out, against the collator of TRL's own trainer for that kind of data."""
    trainer, arguments, kind, record_of = CASES[case]
    folder = MODEL_DIR if family == "pocket" else folder_of(family)
    template = TRAINING_TEMPLATES.get(family) if arguments else None
    if family == "pocket":  # its template is worded otherwise, so TRL has no training variant of it
        family, template = "gemma3", trl_template("gemma3")
    plain = [chat(*words) for words in WORDS]
    led = [[{"role": role, "content": "Be brief."}, *chat("Hi", "Bye")] for role in ("system", "developer")]
    for_trl = [*plain, *[as_system(family, "Be brief.", "Hi", "Bye")] * 2]
    if case == "text":
        led = for_trl = plain
        plain = []
    records = [record_of(talk, n) for n, talk in enumerate([*plain, *led])]
    theirs = [record_of(talk, n) for n, talk in enumerate(for_trl)]
    store = store_of(records)
    assert {row.kind for row in store.rows(range(len(store)))} == {kind}
    ours = our_rows(store, folder, tmp_path, CUT)
    assert_equal_rows(
        ours, trl_rows(trl_trainer(trainer, folder, template, theirs, tmp_path, max_length=CUT, **arguments))
    )
    assert max(len(ids) for ids, _ in ours) == CUT, "some row is cut"
    assert (len(ours) < len(records)) == (case != "text"), "some row keeps nothing to learn"


@pytest.mark.training
@pytest.mark.parametrize(
    ("family", "until", "prompt_turns", "max_length"),
    [
        ("functiongemma", 6, 0, 10_000), ("functiongemma", 6, 0, 210), ("functiongemma", 2, 1, 10_000),
        ("functiongemma", 4, 3, 10_000), ("gemma4", 2, 1, 10_000), ("gemma4", 4, 3, 10_000), ("gemma4", 6, 5, 10_000),
        ("gemma4", 4, 3, 210),
    ],
)  # fmt: skip
def test_ids_and_labels_of_calls_equal_those_of_trl(
    home, folder_of, tmp_path, family, until, prompt_turns, max_length
):
    """TRL takes arguments as objects, which Arrow would unify over rows, so there is one row in its set."""
    talk = CALLING[:until]
    record = (
        {"prompt": talk[:prompt_turns], "completion": talk[prompt_turns:]}
        if prompt_turns
        else {"messages": talk}
    )
    template = None if prompt_turns else FUNCTION_TRAINING_TEMPLATE
    arguments = {} if prompt_turns else {"assistant_only_loss": True}
    theirs = trl_trainer(
        "SFT",
        folder_of(family),
        template,
        [record | {"tools": TOOLS}],
        tmp_path,
        max_length=max_length,
        **arguments,
    )
    store = store_of([record | {"tools": json.dumps(TOOLS)}])
    ours = our_rows(store, folder_of(family), tmp_path, max_length)
    assert ours, "something is learned"
    assert_equal_rows(ours, trl_rows(theirs))
    if max_length < 10_000:
        assert len(ours[0][0]) == max_length


def test_the_training_template_of_gemma_4_words_chats_as_its_own(chat_of, tmp_path):
    """What the comparison with TRL rests on."""
    marked = ChatTokenizer.from_folder(build_tokenizer(tmp_path / "a", GEMMA_4_TRAINING_TEMPLATE))
    for words in WORDS:
        assert marked.render(chat(*words)) == chat_of("gemma4").render(chat(*words))
    function = ChatTokenizer.from_folder(
        build_tokenizer(tmp_path / "b", FUNCTION_TRAINING_TEMPLATE, FUNCTION_GEMMA)
    )
    row = Row(1, chat("a", "b"), tools=json.dumps(TOOLS))
    assert function.encode(row) == chat_of("functiongemma").encode(row)
