"""Where images come from, and why some cannot be used: sources of every form, through the whole way to a store."""

import json
import os
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import bomb, data_uri, picture, turned
from PIL import Image

from gemma_tune.config import RunConfig
from gemma_tune.data import images
from gemma_tune.data.images import Images
from gemma_tune.data.prepare import gather
from gemma_tune.data.rows import IMAGE, RowFault
from gemma_tune.data.sources import keep_uploads

RED, BLUE = picture(), picture((5, 9), "blue")
ANSWER = {"role": "assistant", "content": "A square."}


def read(source: str, **data):
    """The store of a source."""
    return gather(
        RunConfig.model_validate({"data": {"source": str(source), "validation_fraction": 0, **data}})
    ).store


def only(store):
    (row,) = store.rows(range(len(store)))
    return row


def reason(store) -> str:
    (one,) = store.rejected()
    return f"{one.field} [{one.value}] {one.rule} {one.way_out}"


def seen(store, row) -> list[bytes]:
    return [store.image_path(one["file"]).read_bytes() for one in row.images]


def parts(*named: object) -> list[dict]:
    """A question about images, each named in a part."""
    return [{"type": "image", **one} for one in named] + [{"type": "text", "text": "What is this?"}]


def talk(*named: object) -> dict:
    return {"messages": [{"role": "user", "content": parts(*named)}, ANSWER]}


@pytest.mark.parametrize(
    "row",
    [
        {"images": ["a.png", "in/b.png"], "messages": [{"role": "user", "content": "What is this?"}, ANSWER]},
        talk({"image": "a.png"}, {"path": "in/b.png"}),
        talk({"url": "./a.png"}, {"image": {"bytes": None, "path": "in\\b.png"}}),
        talk({"image": data_uri(RED)}, {"url": data_uri(BLUE)}),
        talk({"type": "image_url", "image_url": {"url": data_uri(RED)}}, {"type": "image_url", "image_url": data_uri(BLUE)}),
        talk({}, {}) | {"images": ["a.png", data_uri(BLUE)]},
        talk({"text": None, "image": None}, {"image": {"bytes": None, "path": None}}) | {"images": ["a.png", "in/b.png"]},
        {"image": ["a.png", "in/b.png"], "conversations": [
            {"from": "human", "value": "<image><image>What is this?"}, {"from": "gpt", "value": "A square."}]},
        {"images": ["a.png", "in/b.png"], "instruction": "What is this?", "output": "A square."},
        {"images": ["a.png", "in/b.png"], "prompt": "What is this?", "completion": "A square."},
        {"images": ["a.png", "in/b.png"], "frage": "What is this?", "antwort": "A square."},
        {"prompt": [{"role": "user", "content": parts({"image": "a.png"}, {"image": "in/b.png"})}], "completion": [ANSWER]},
    ],
)  # fmt: skip
def test_an_image_is_found_however_it_is_named(folder, row):
    (folder / "set" / "in").mkdir(parents=True)
    (folder / "set" / "a.png").write_bytes(RED)
    (folder / "set" / "in" / "b.png").write_bytes(BLUE)
    (folder / "set" / "rows.jsonl").write_text(json.dumps(row))
    store = read(folder / "set" / "rows.jsonl")
    assert not list(store.rejected())
    found = only(store)
    assert found.messages[0] == {"role": "user", "content": f"{IMAGE}{IMAGE}What is this?"}
    assert [(one["width"], one["height"]) for one in found.images] == [(8, 6), (5, 9)]
    assert seen(store, found) == [RED, BLUE] and store.has_images
    assert [one["file"].rpartition(".")[2] for one in found.images] == ["png", "png"]


def test_a_folder_with_images_and_one_data_file_is_read_without_a_word_about_the_images(folder):
    (folder / "set" / "images").mkdir(parents=True)
    (folder / "set" / "images" / "a.png").write_bytes(RED)
    (folder / "set" / "b.jpg").write_bytes(picture(form="JPEG"))
    rows = [{"prompt": "What?", "completion": "Red.", "image": name} for name in ("images/a.png", "b.jpg")]
    (folder / "set" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = gather(
        RunConfig.model_validate({"data": {"source": str(folder / "set"), "validation_fraction": 0}})
    )
    assert len(found.store) == 2 and found.store.has_images
    assert not [one for one in found.warnings if "passed over" in one.rule]


def test_a_zip_file_holds_rows_and_their_images_in_its_folders(folder):
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        rows = [
            {"prompt": "What?", "completion": "Red.", "image": name}
            for name in ("pics/a.png", "data/pics/a.png")
        ]
        archive.writestr("data/rows.jsonl", "\n".join(map(json.dumps, rows)))
        archive.writestr("data/pics/a.png", RED)
    store = read(folder / "set.zip")
    assert [seen(store, row) for row in store.rows(range(2))] == [[RED], [RED]]
    assert len(list((store.folder / "images").iterdir())) == 1, "the same bytes are kept once"


def test_uploads_keep_their_images_under_names_that_are_safe(folder):
    names = {"my rows.jsonl": b"", "the cat (1).png": RED, "ü.png": BLUE}
    rows = [{"prompt": "What?", "completion": "It.", "image": f"pics/{name}"} for name in list(names)[1:]]
    names["my rows.jsonl"] = "\n".join(map(json.dumps, rows)).encode()
    (folder / "browser").mkdir()
    for name, content in names.items():
        (folder / "browser" / name).write_bytes(content)
    store = read(keep_uploads(folder / "browser" / name for name in names))
    assert [seen(store, row) for row in store.rows(range(2))] == [[RED], [BLUE]]


def test_a_single_upload_cannot_name_what_others_uploaded(folder):
    for name, content in (("secret.png", RED), ("rows.jsonl", b"")):
        (folder / name).write_bytes(content)
    secret = keep_uploads([folder / "secret.png"])
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b", "image": secret.name}))
    assert "no such image" in reason(read(keep_uploads([folder / "rows.jsonl"])))


@pytest.mark.parametrize("kind", ["struct", "bytes", "list"])
def test_parquet_holds_its_images(folder, kind):
    cells = {
        "struct": [{"bytes": RED, "path": "x.png"}],
        "bytes": [RED],
        "list": [[{"bytes": RED, "path": None}]],
    }
    columns = {
        "image" if kind != "list" else "images": cells[kind],
        "prompt": ["What?"],
        "completion": ["Red."],
    }
    pq.write_table(pa.table(columns), folder / "a.parquet")
    store = read(folder / "a.parquet")
    assert seen(store, only(store)) == [RED]


def test_rows_with_heavy_images_are_read_a_few_at_a_time(folder):
    noise = [os.urandom(400_000) for _ in range(60)]
    pq.write_table(
        pa.table({"image": noise, "prompt": ["a"] * 60, "completion": ["b"] * 60}), folder / "a.parquet"
    )
    from gemma_tune.data.readers import PIECE_BYTES, open_path

    sizes = [
        sum(len(row["image"]) for row in one.values) for one in open_path(folder / "a.parquet").records()
    ]
    assert sum(sizes) == 24_000_000 and max(sizes) <= PIECE_BYTES


def test_a_csv_names_images_by_path_or_by_a_list_in_json(folder, write):
    (folder / "a.png").write_bytes(RED)
    lines = ["prompt,completion,images", "a,b,a.png", 'a,c,"[""a.png"", ""a.png""]"', "a,d,"]
    store = read(write("rows.csv", "\n".join(lines)))
    assert [len(row.images) for row in store.rows(range(3))] == [1, 2, 0]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("../a.png", "leads out of the data file's folder"),
        ("in/../../a.png", "leads out of the data file's folder"),
        ("/etc/a.png", "leads out of the data file's folder"),
        ("C:\\a.png", "leads out of the data file's folder"),
        ("file:///etc/a.png", "leads out of the data file's folder"),
        ("~/a.png", "leads out of the data file's folder"),
        ("link.png", "no such image beside the data file"),
        ("missing.png", "no such image beside the data file"),
        ("http://127.0.0.1:9/a.png", "not fetched from a network"),
        ("HTTPS://example.org/a.png?x=1", "not fetched from a network"),
        ("data:image/png;base64,###", "holds no image in base64"),
        ("data:text/html;base64,PGI+", "holds no image in base64"),
        (data_uri(b"no image"), "broken, or it is none of PNG"),
        (data_uri(RED[:45]), "broken"),
        (data_uri(bomb()), "too large"),
        (7, "This is no image"),
        ({"type": "image"}, "This is no image"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_used_leaves_its_row_out_with_the_reason(folder, write, image, words):
    (folder / "a.png").write_bytes(RED)
    (folder / "set").mkdir()
    (folder / "set" / "link.png").symlink_to(folder / "a.png")
    row = {"prompt": "What?", "completion": "Red.", "photo": image}
    good = {"prompt": "What else?", "completion": "Red.", "photo": data_uri(RED)}
    (folder / "set" / "rows.json").write_text(json.dumps([row, good]))
    store = read(folder / "set" / "rows.json", columns={"images": "photo"})
    assert words in reason(store) and reason(store).startswith("photo [") and len(store) == 1


def test_the_limits_of_an_image_are_said(monkeypatch):
    keep = Images().keep
    monkeypatch.setattr(images, "MAX_SIDE", 7)
    with pytest.raises(RowFault, match="too large") as caught:
        keep(RED, "image")
    assert caught.value.value == "8 × 6 pixels"
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with pytest.raises(RowFault, match="too large"):
        keep(RED, "image")


def test_a_broken_image_is_decoded_once_however_often_it_is_named(monkeypatch):
    calls = []
    upright = images._upright
    monkeypatch.setattr(images, "_upright", lambda *one: calls.append(1) or upright(*one))
    keep = Images().keep
    for field in ("a", "b"):
        with pytest.raises(RowFault) as caught:
            keep(b"no image", field)
        assert caught.value.field == field
    assert keep(RED, "a") == keep(RED, "b") and len(calls) == 2


@pytest.mark.parametrize(
    ("form", "suffix"), [("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp")]
)
def test_every_form_is_kept_as_it_is(tmp_path, form, suffix):
    content = picture(form=form)
    found = Images(folder=tmp_path / "images").keep(content, "image")
    assert (
        found["file"].endswith(f".{suffix}") and (tmp_path / "images" / found["file"]).read_bytes() == content
    )


def test_a_photograph_on_its_side_is_kept_upright(tmp_path):
    found = Images(folder=tmp_path).keep(turned((8, 6)), "image")
    assert (found["width"], found["height"]) == (6, 8)
    with Image.open(tmp_path / found["file"]) as image:
        assert image.size == (6, 8) and 0x0112 not in image.getexif()


def test_a_picture_of_another_format_is_not_opened(tmp_path):
    with pytest.raises(RowFault, match="none of PNG"):
        Images(folder=tmp_path).keep(picture(form="TIFF"), "image")
    assert not list(tmp_path.iterdir())


# ---- the cache -------------------------------------------------------------------------------------------------------
def test_an_image_that_is_added_or_replaced_is_seen_though_the_data_file_is_the_same(folder, write):
    source = write(
        "rows.jsonl", [{"prompt": "a", "completion": str(n), "image": f"{n}.png"} for n in range(2)]
    )
    (folder / "0.png").write_bytes(RED)
    first = read(source)
    assert len(first) == 1 and first.rejected_count == 1
    (folder / "1.png").write_bytes(RED)
    second = read(source)
    assert len(second) == 2 and second.key != first.key
    assert read(source).folder == second.folder
    (folder / "1.png").write_bytes(BLUE)
    third = read(source)
    assert seen(third, third.row(1)) == [BLUE]


def test_an_image_in_a_zip_that_is_replaced_is_seen(folder):
    def pack(content: bytes) -> None:
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.writestr("rows.jsonl", json.dumps({"prompt": "a", "completion": "b", "image": "a.png"}))
            archive.writestr("a.png", content)

    pack(RED)
    first = read(folder / "a.zip")
    pack(BLUE)
    second = read(folder / "a.zip")
    assert seen(first, only(first)) == [RED] and seen(second, only(second)) == [BLUE]


def test_images_in_processes_are_those_of_one(folder, write, monkeypatch):
    from gemma_tune.data import parallel

    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture((4 + number, 4)))
    source = write(
        "rows.jsonl", [{"prompt": "a", "completion": str(n), "image": f"{n % 3}.png"} for n in range(250)]
    )
    alone = list(read(source).rows(range(250)))
    for one in (folder / "cache").iterdir():
        one.rename(folder / f"away-{one.name}")
    monkeypatch.setattr(parallel, "WORTH_IT_BYTES", 0)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    shared = read(source)
    assert list(shared.rows(range(250))) == alone and [row.number for row in alone] == list(range(1, 251))
    assert len(list((shared.folder / "images").iterdir())) == 3
