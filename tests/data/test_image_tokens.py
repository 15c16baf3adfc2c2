"""The ids of rows with images, against Transformers' own processors and TRL's own collator."""

import io
import json
import random
import shutil

import numpy as np
import pytest
from pictures import data_uri, picture
from PIL import Image
from tiny_tokenizer import IMAGE_GRID, IMAGE_SEQ_LENGTH, trl_template

from gemma_tune.data.formats import recognise
from gemma_tune.data.image_tokens import image_tokens
from gemma_tune.data.lengths import lengths_of
from gemma_tune.data.rendering import NOT_LEARNED, ChatTokenizer
from gemma_tune.data.rows import IMAGE, Opened, Row, values_in_chunks
from gemma_tune.data.sources import first_rows
from gemma_tune.data.store import Part, Store, stored
from gemma_tune.data.tokens import Tokens, tokens_of
from gemma_tune.errors import ModelError

FAMILIES = ["gemma3", "gemma4"]
SIZES = [(40, 30), (640, 480), (31, 97), (300, 40), (1, 1), (7, 400), (1200, 900), (5, 3)]


def talk(*contents: str, system: str = "") -> list[dict]:
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


TALKS = [
    talk(f"{IMAGE}What is this?", "A cat."),
    talk(f"  {IMAGE}  padded \n", " an answer \n"),
    talk(f"{IMAGE}{IMAGE} Which?", "The first.", f"And {IMAGE} this one?\n", "No.", "Why?", "It is red."),
    talk("First a question.", "Yes?", f"Here: {IMAGE}\n{IMAGE}", "Two cats."),
    talk(f"a {IMAGE} b", "c", system="You are brief."),
    talk(IMAGE, "A dog."),
    talk(f"{IMAGE}\n\nnew lines\n\n{IMAGE}\n", "\n\nyes"),
]


def row_of(messages: list[dict], seed: int = 0, **more) -> Row:
    places = sum(turn["content"].count(IMAGE) for turn in messages)
    sizes = random.Random(seed).sample(SIZES, places)
    images = [{"file": f"{w}x{h}.png", "width": w, "height": h} for w, h in sizes]
    return Row(1, messages, images=images, **more)


def filled(row: Row) -> list[dict]:
    """The conversation as Transformers takes it: parts, an image in each that is one.

    A system turn stays a text, as in rows without images: Gemma 4's template puts a blank behind one that is in parts.
    """
    images = (Image.new("RGB", (one["width"], one["height"])) for one in row.images)
    found = Row(1, row.messages, images=row.images).as_trl()["messages"]
    for turn, own in zip(found, row.messages, strict=True):
        if turn["role"] == "system":
            turn["content"] = own["content"]
            continue
        turn["content"] = [
            part | {"image": next(images)} if part["type"] == "image" else part for part in turn["content"]
        ]
    return found


def processor_of(family: str, folder, template: str = ""):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = template or (folder / "chat_template.jinja").read_text()
    if family == "gemma3":
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
        from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

        options = {"chat_template": template, "image_seq_length": IMAGE_SEQ_LENGTH}
        return Gemma3Processor(Gemma3ImageProcessorPil(), tokenizer, **options)
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
    from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

    class ForImages(Gemma4Processor):
        """Without the parts for sound and video, of which the latter needs torchvision."""

        def check_argument_for_proper_class(self, name: str, argument: object) -> None:
            pass

    found = ForImages(None, Gemma4ImageProcessorPil(**IMAGE_GRID), tokenizer, None, chat_template=template)
    found.boa_token = found.eoa_token = "<sound>"  # it asks for them though there is no sound
    return found


@pytest.fixture(scope="module")
def processors(seeing_folder):
    return {family: processor_of(family, seeing_folder(family)) for family in FAMILIES}


@pytest.fixture
def seeing(seeing_folder):
    return lambda family: ChatTokenizer.from_folder(seeing_folder(family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(len(TALKS)))
def test_ids_equal_those_of_transformers_own_processor(processors, seeing, family, number):
    chat = seeing(family)
    for seed in range(4):
        row = row_of(TALKS[number], seed)
        theirs = processors[family].apply_chat_template(filled(row), tokenize=True, return_dict=True)
        assert chat.encode(row).ids == theirs["input_ids"][0]
        asked = Row(1, row.messages[:-1], images=row.images)
        theirs = processors[family].apply_chat_template(
            filled(asked), tokenize=True, return_dict=True, add_generation_prompt=True
        )
        assert chat.encode_prompt(asked.messages, images=asked.images) == theirs["input_ids"][0]


def test_gemma_4_counts_as_transformers_does_for_every_shape():
    from transformers.models.gemma4.processing_gemma4 import get_aspect_ratio_preserving_size

    config = {"model_type": "gemma4", "vision_config": {"x": 1}}
    draw = random.Random(0)
    for patch_size, kernel, most in ((16, 3, 280), (16, 3, 70), (4, 2, 70), (14, 3, 1120)):
        own = {"patch_size": patch_size, "pooling_kernel_size": kernel, "max_soft_tokens": most}
        count = image_tokens(config, {}, own, {}).count
        for _ in range(500):
            width, height = (int(2 ** draw.uniform(0, 14)) for _ in range(2))
            try:
                size = get_aspect_ratio_preserving_size(height, width, patch_size, most * kernel**2, kernel)
            except ValueError:
                with pytest.raises(ModelError, match="no way to resize"):
                    count({"width": width, "height": height})
                continue
            wanted = size[0] * size[1] // (patch_size * kernel) ** 2
            assert count({"width": width, "height": height}) == wanted, (width, height)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("messages", TALKS)
def test_the_answers_and_only_they_are_learned(seeing, family, messages):
    chat = seeing(family)
    encoding = chat.encode(row_of(messages))
    learned = [
        chat.decode(encoding.ids[start:end], skip_special_tokens=True).strip()
        for start, end in encoding.spans
    ]
    assert learned == [turn["content"].strip() for turn in messages if turn["role"] == "assistant"]
    assert encoding.spans == chat._exact(row_of(messages)).spans
    assert chat.image_ids.isdisjoint(label for label in encoding.labels if label != NOT_LEARNED)


@pytest.mark.parametrize("family", FAMILIES)
def test_where_all_is_learned_the_tokens_of_images_are_not(seeing, family):
    chat = seeing(family)
    encoding = chat.encode(row_of(TALKS[2]), assistant_only_loss=False)
    for token, label in zip(encoding.ids, encoding.labels, strict=True):
        assert label == (NOT_LEARNED if token in chat.image_ids else token)


def test_labels_of_gemma_3_equal_those_of_trls_collator(seeing_folder, seeing):
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    processor = processor_of("gemma3", seeing_folder("gemma3"), trl_template("gemma3_training"))
    collate = DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)
    for seed, messages in enumerate(TALKS):
        row = row_of(messages, seed)
        images = [Image.new("RGB", (one["width"], one["height"])) for one in row.images]
        theirs = collate([{"messages": row.as_trl()["messages"], "images": images}])
        ours = seeing("gemma3").encode(row)
        assert theirs["input_ids"][0].tolist() == ours.ids
        assert theirs["labels"][0].tolist() == ours.labels


# ---- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("gemma3", "a <start_of_image> b"), ("gemma3", "<image_soft_token>"), ("gemma3", "<end_of_image>"),
        ("gemma4", "<|image|>"), ("gemma4", "<|image>"), ("gemma4", "<image|>"),
    ],
)  # fmt: skip
def test_a_text_that_spells_a_token_of_images_is_refused_beside_images_and_only_there(seeing, family, text):
    chat = seeing(family)
    alone, beside = Row(1, talk(text, "b")), row_of(talk(f"{IMAGE}{text}", "b"))
    answered = row_of(talk(IMAGE, text))
    assert chat.encode(alone).refusal == ""
    for row, among in ((beside, False), (answered, False), (alone, True)):
        (found,) = chat.encode_all([row], among_images=among)
        assert found.ids == [] and "spells a token that stands for an image" in found.refusal
    with pytest.raises(ModelError, match="spells a token"):
        chat.encode_prompt(beside.messages[:1], images=beside.images)


def test_each_image_needs_a_place(seeing):
    chat, image = seeing("gemma3"), {"file": "a.png", "width": 4, "height": 4}
    for content, images in ((f"{IMAGE}{IMAGE}", [image]), ("a", [image]), (IMAGE, [image, image])):
        with pytest.raises(ModelError, match="Each image needs a place"):
            chat.render(talk(content), images=images)
    assert IMAGE in chat.render(talk(f"{IMAGE} a")), "without images it is text"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config.json": {"model_type": "gemma3_text"}}, "reads text only"),
        ({"config.json": {"model_type": "gemma3", "vision_config": None}}, "reads text only"),
        ({"config.json": {"model_type": "gemma3n"}}, "timm"),
        ({"config.json": {"model_type": "gemma4_unified"}}, "torchvision"),
        ({"preprocessor_config.json": {"do_pan_and_scan": True}}, "pan and scan"),
        ({"preprocessor_config.json": None, "processor_config.json": None}, "no preprocessor_config.json"),
        ({"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<none>"}}}, "reads text only"),
    ],
)
def test_a_model_that_reads_no_images_says_why(seeing_folder, tmp_path, changes, words):
    folder = shutil.copytree(seeing_folder("gemma3"), tmp_path / "model")
    for name, values in changes.items():
        known = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(known | values)) if values else (folder / name).unlink()
    chat = ChatTokenizer.from_folder(folder)
    assert not chat.reads_images and chat.image_token_id is None and chat.image_ids == frozenset()
    assert words in chat.no_images.rule and chat.no_images.way_out
    assert words in chat.encode(row_of(TALKS[0])).refusal
    assert chat.encode(Row(1, talk("a", "b"))).ids, "text is read as ever"


def test_an_adapter_saved_without_its_bases_config_reads_images_by_its_processor(seeing_folder, tmp_path):
    for family in FAMILIES:
        folder = shutil.copytree(seeing_folder(family), tmp_path / family)
        (folder / "config.json").unlink()
        chat = ChatTokenizer.from_folder(folder)
        assert chat.reads_images
        assert chat.encode(row_of(TALKS[2])) == ChatTokenizer.from_folder(seeing_folder(family)).encode(
            row_of(TALKS[2])
        )


def test_a_processor_as_transformers_saves_it_now_is_read(seeing_folder, tmp_path):
    """In one file, the image processor within."""
    for family in FAMILIES:
        folder = shutil.copytree(seeing_folder(family), tmp_path / family)
        own = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").unlink()
        kept = folder / "processor_config.json"
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        kept.write_text(json.dumps(known | {"image_processor": own}))
        assert ChatTokenizer.from_folder(folder).encode(row_of(TALKS[2])).ids == (
            ChatTokenizer.from_folder(seeing_folder(family)).encode(row_of(TALKS[2])).ids
        )


# ---- on disk ---------------------------------------------------------------------------------------------------------
URI = data_uri(picture((40, 30)))
RECORDS = [
    {"images": [URI], "messages": talk("What is this?", "A cat.")},
    {"images": [], "messages": talk("No image here.", "None.")},
    {
        "images": [URI, URI],
        "messages": talk("Hm?", "Hm.", "<image> or <image>?", "The first, which is longer."),
    },
]


def store_of(records: list[dict]) -> Store:
    opened = Opened("rows", lambda: values_in_chunks(records, size=2), lambda: json.dumps(records))
    return stored([Part(opened, recognise(first_rows(opened)))], lambda *_: None)


@pytest.fixture
def kept(folder, seeing_folder):
    def keep(family: str) -> tuple[Store, Tokens]:
        store = store_of(RECORDS)
        return store, tokens_of(store, seeing_folder(family), True, lambda *_: None)

    return keep


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_the_last_image_is_kept_of_every_row(kept, seeing, family):
    store, tokens = kept(family)
    soft = seeing(family).image_token_id
    for index in range(len(store)):
        ids, _ = tokens.row(index, 10_000)
        assert ids == seeing(family).encode(store.row(index)).ids
        last = max((at for at, token in enumerate(ids) if token == soft), default=-1)
        assert tokens.image_ends[index] == last + 1
    assert tokens.image_ends[1] == 0 and store.has_images


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_never_goes_through_an_image(kept, family):
    from gemma_tune.config import parse

    _, tokens = kept(family)
    ends = tokens.image_ends.tolist()
    whole = tokens.lengths.tolist()
    limits = {one for end in (*ends, *whole) for one in (end - 1, end, end + 1)}
    for limit in sorted(one for one in limits if one >= 16):
        found = lengths_of(tokens, parse({"train": {"max_length": limit}}))
        for index, end in enumerate(ends):
            learned = tokens.learned(limit)[index]
            assert found.usable[index] == (learned > 0 and end <= limit)
            assert found.learned[index] == (learned if end <= limit else 0)


def test_another_way_to_read_images_gives_other_tokens_from_the_same_rows(folder, seeing_folder, tmp_path):
    store = store_of(RECORDS)
    other = shutil.copytree(seeing_folder("gemma3"), tmp_path / "other")
    processor = json.loads((other / "processor_config.json").read_text())
    (other / "processor_config.json").write_text(json.dumps(processor | {"image_seq_length": 9}))
    lengths = [
        tokens_of(store, one, True, lambda *_: None).lengths for one in (seeing_folder("gemma3"), other)
    ]
    assert (lengths[1] - lengths[0]).tolist() == [5, 0, 10]


# ---- as it is shown --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_is_one_piece_with_the_number_of_its_tokens(seeing, family):
    chat, row = seeing(family), row_of(TALKS[2])
    encoding, pieces = chat.encode(row), seeing(family).pieces(row, 10_000)
    images = [piece for piece in pieces if piece.kind == "image"]
    assert [one.image_tokens for one in images] == [chat.image_tokens.count(one) for one in row.images]
    assert all([text for _, text in one.tokens] == list(chat.image_tokens.marks) for one in images)
    assert sum(piece.count for piece in pieces) == len(encoding.ids) and not any(one.cut for one in images)
    learned = "".join(piece.text for piece in pieces if piece.kind == "learned")
    assert "The first." in learned and "It is red." in learned and chat.image_tokens.soft not in learned
    cut = chat.pieces(row, encoding.ids.index(chat.image_token_id) + 1)
    assert [one.cut for one in cut if one.kind == "image"] == [True] * 3
    assert not any(piece.kind == "learned" for piece in cut)


def test_pictures_of_the_store_are_the_ones_that_are_named(kept):
    store, _ = kept("gemma3")
    with Image.open(io.BytesIO(store.image_path(store.row(0).images[0]["file"]).read_bytes())) as image:
        assert image.size == (40, 30)
    assert np.array_equal(store.facts["number"], [1, 2, 3])
