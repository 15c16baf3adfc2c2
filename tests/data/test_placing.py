"""Where images stand in their conversation, and what cannot be placed."""

import pytest
from pictures import data_uri, picture

from gemma_tune.data.formats import convert, recognise
from gemma_tune.data.rows import IMAGE, Rejected, Row, Table, parts_of

URI = data_uri(picture())


def converted(
    record: dict, format: str = "auto", columns: dict | None = None, fixes: tuple = ()
) -> Row | Rejected:
    table = Table(list(record), [(1, record)], [], "a.json")
    rows, rejected = convert(table, recognise(table, format, columns), frozenset(fixes))
    return (rows + rejected)[0]


def user(content: object) -> dict:
    return {"role": "user", "content": content}


def answer(content: object = "It is.") -> dict:
    return {"role": "assistant", "content": content}


IMAGE_PART, TEXT_PART = {"type": "image", "image": URI}, {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    ("record", "contents"),
    [
        ({"images": [URI], "messages": [user("a"), answer(), user("b"), answer()]}, [f"{IMAGE}a", "b"]),
        ({"image": URI, "messages": [{"role": "system", "content": "s"}, user("a"), answer()]}, ["s", f"{IMAGE}a"]),
        ({"images": [URI, URI], "messages": [user("a <image> b"), answer(), user("c\n<image>"), answer()]},
         [f"a {IMAGE} b", f"c\n{IMAGE}"]),
        ({"image": URI, "messages": [user("<image>\nDraw <image>s in SVG"), answer("Use <image>.")]}, None),
        ({"image": URI, "messages": [user("<image>\nDraw it"), answer("Use <image>.")]}, [f"{IMAGE}\nDraw it"]),
        ({"messages": [user([TEXT_PART, IMAGE_PART, TEXT_PART]), answer()]}, [f"What?{IMAGE}What?"]),
        ({"messages": [user([IMAGE_PART, {"type": "text", "text": "\n a"}, IMAGE_PART]), answer()]}, [f"{IMAGE}\n a{IMAGE}"]),
        ({"messages": [user([IMAGE_PART]), answer(), user([TEXT_PART, TEXT_PART]), answer()]}, [IMAGE, "What?\nWhat?"]),
        ({"image": URI, "instruction": "a", "input": "b", "output": "c"}, [f"{IMAGE}a\n\nb"]),
        ({"image": None, "instruction": "a", "input": "b", "output": "c"}, ["a\n\nb"]),
    ],
)  # fmt: skip
def test_images_stand_where_parts_or_marks_say_else_before_the_first_question(record, contents):
    found = converted(record)
    if contents is None:
        assert isinstance(found, Rejected) and "do not agree" in found.rule
        return
    assert [turn["content"] for turn in found.messages if turn["role"] != "assistant"] == contents
    assert sum(content.count(IMAGE) for content in contents) == len(found.images)
    assert all(set(turn) == {"role", "content"} for turn in found.messages)


@pytest.mark.parametrize(
    ("record", "field", "rule"),
    [
        ({"images": [URI, URI], "messages": [user("<image> a"), answer()]}, "images", "do not agree"),
        ({"images": [URI], "messages": [user("<image> a <image>"), answer()]}, "images", "do not agree"),
        ({"images": [URI], "messages": [user([{"type": "image"}, {"type": "image"}]), answer()]}, "images", "do not agree"),
        ({"images": [URI], "messages": [user([IMAGE_PART]), answer()]}, "images", "do not agree"),
        ({"messages": [user([{"type": "image"}]), answer()]}, "messages[0].content[0]", "do not agree"),
        ({"images": [URI], "messages": [user(f"a {IMAGE}"), answer()]}, "messages", "U+FFFC"),
        ({"messages": [user([IMAGE_PART, {"type": "text", "text": IMAGE}]), answer()]}, "messages", "U+FFFC"),
        ({"messages": [user("a"), answer([IMAGE_PART])]}, "messages[1]", "user turn only"),
        ({"images": [URI], "messages": [user("a"), answer("<image>")]}, "messages[1]", "user turn only"),
        ({"messages": [{"role": "system", "content": [IMAGE_PART]}, user("a"), answer()]}, "messages[0]", "user turn only"),
        ({"image": URI, "prompt": "a", "chosen": "b", "rejected": "c"}, "image", "not from preferences"),
        ({"chosen": [user([IMAGE_PART]), answer("b")], "rejected": [user([IMAGE_PART]), answer("c")]}, "chosen", "not from preferences"),
        ({"prompt": [user([IMAGE_PART])], "chosen": "b", "rejected": "c"}, "messages", "not from preferences"),
        ({"images": [URI], "prompt": "a", "completion": "b", "label": True}, "images", "not from preferences"),
        ({"image": URI, "text": "a caption"}, "image", "no question beside which"),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_is_rejected_with_its_place(record, field, rule):
    found = converted(record)
    assert isinstance(found, Rejected) and found.field == field and rule in found.rule and found.way_out


def test_a_mark_without_an_image_is_rejected_in_a_set_of_images_and_text_elsewhere():
    rows = [
        {"image": URI, "prompt": "a", "completion": "b"},
        {"image": None, "prompt": "<image> a", "completion": "b"},
    ]
    table = Table(["image", "prompt", "completion"], list(enumerate(rows, 1)), [], "a.json")
    kept, (rejected,) = convert(table, recognise(table))
    assert len(kept) == 1 and rejected.number == 2 and rejected.value == "0 images, 1 places"
    assert converted({"prompt": "<image> a", "completion": "b"}).messages[0]["content"] == "<image> a"


def test_the_character_of_a_place_is_plain_text_in_a_row_without_images():
    row = converted({"prompt": f"a {IMAGE} b", "completion": "c"})
    assert row.images == [] and row.messages[0]["content"] == f"a {IMAGE} b"
    assert row.as_trl()["prompt"][0]["content"] == f"a {IMAGE} b" and row.whole_text() == f"a {IMAGE} b\nc"


def test_a_column_named_image_that_holds_none_is_a_column_like_any_other():
    for value in (7, None, "Ubuntu 24.04", {"id": 3}, "see\na.png"):
        record = {"prompt": "a", "completion": "b", "image": value}
        table = Table(list(record), [(1, record)], [], "a.json")
        assert "images" not in recognise(table).columns
        assert converted(record).images == []


def test_the_mechanical_fixes_keep_images_in_their_places():
    record = {"messages": [user([IMAGE_PART, TEXT_PART]), user([TEXT_PART, IMAGE_PART]), answer()]}
    refused = converted(record)
    assert isinstance(refused, Rejected) and refused.fixes == ("merge_turns",)
    assert "base64" not in refused.after and len(refused.before) < 700
    row = converted(record, fixes=("merge_turns",))
    assert row.messages[0]["content"] == f"{IMAGE}What?\n\nWhat?{IMAGE}" and len(row.images) == 2


def test_a_row_with_images_has_trls_own_form():
    row = converted({"images": [URI], "prompt": "a <image> b", "completion": "c"})
    found = row.as_trl()
    assert found["prompt"] == [
        user([{"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": " b"}])
    ]
    assert found["completion"] == [answer([{"type": "text", "text": "c"}])]
    assert found["images"] == [row.images[0]["file"]]
    assert parts_of(f"{IMAGE}{IMAGE}") == [{"type": "image"}, {"type": "image"}] and parts_of("") == []


def test_a_row_comes_back_from_its_line():
    row = converted({"image": URI, "prompt": "a", "completion": "b"})
    assert Row.from_json(row.to_json()) == row
    assert b"images" not in converted({"prompt": "a", "completion": "b"}).to_json()
