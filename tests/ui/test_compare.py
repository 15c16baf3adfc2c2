import asyncio
from types import SimpleNamespace

import pytest
from PIL import Image

from gemma_tune.data.rows import IMAGE
from gemma_tune.errors import ModelError
from gemma_tune.runs.state import State
from gemma_tune.ui import asked_images, compare

SETTINGS = ("Be brief.", 0.5, 0.9, 40, 64, 7)


class FakeSession:
    def __init__(self, pieces):
        self.pieces, self.asked, self.stopped = pieces, None, False

    def ask(self, messages, sampling, images):
        self.asked, self.images = (messages, sampling), images
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class FakeResident:
    def __init__(self, session):
        self.session = session

    def of(self, run_id):
        return self.session

    def stop(self):
        self.session.stopped = True


def answers(monkeypatch, pieces, prompt="Hi?", run="r1", pictures=None) -> tuple[list[list], FakeSession]:
    session = FakeSession(pieces)
    monkeypatch.setattr(compare, "resident", FakeResident(session))

    async def collect():
        return [update async for update in compare._ask_anyway(run, prompt, [], [], pictures, *SETTINGS)]

    return asyncio.run(collect()), session


def test_both_columns_grow_in_one_update_and_end_with_their_speed(monkeypatch):
    pieces = [
        {"column": "base", "text": "No"},
        {"column": "tuned", "text": "Yes"},
        {"column": "tuned", "text": "!"},
    ]
    done = [
        {"done": True, "column": name, "tokens": 10, "seconds": 2.0, "why": "end"}
        for name in ("base", "tuned")
    ]
    updates, session = answers(monkeypatch, pieces + done)
    base, tuned, base_stats, tuned_stats, note, _ = updates[-1]
    assert (base[-1]["content"], tuned[-1]["content"]) == ("No", "Yes!")
    assert "10 tokens · 5.0 tokens/s" in base_stats and "5.0 tokens/s" in tuned_stats and note == ""
    messages, sampling = session.asked
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    assert sampling == {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "max_new_tokens": 64, "seed": 7}


def test_an_answer_of_blank_lines_is_said_to_be_one(monkeypatch):
    done = {"done": True, "column": "base", "tokens": 2, "seconds": 1.0, "why": "end"}
    updates, _ = answers(monkeypatch, [{"column": "base", "text": "\n \n"}, done])
    assert "(only blank lines)" in updates[-1][0][-1]["content"].value
    assert updates[-1][1][-1]["content"] == ""  # still being written


def test_fast_tokens_are_gathered_into_few_updates(monkeypatch):
    updates, _ = answers(monkeypatch, [{"column": "base", "text": "x"}] * 5000)
    assert updates[-1][0][-1]["content"] == "x" * 5000
    assert len(updates) < 50


def test_a_model_that_cannot_be_loaded_is_said_on_the_page(monkeypatch):
    error = ModelError.at("memory", "20 GB", "Two models do not fit.", "Close other programs.")
    updates, _ = answers(monkeypatch, [error])
    assert "Two models do not fit." in updates[-1][4]


@pytest.mark.parametrize(
    ("run", "prompt", "words"), [(None, "Hi", "Choose a run"), ("r1", "  ", "Write a question")]
)
def test_what_is_missing_is_asked_for(monkeypatch, run, prompt, words):
    updates, session = answers(monkeypatch, [], prompt, run)
    assert words in updates[-1][4] and session.asked is None


@pytest.mark.parametrize(
    ("gpus", "status", "asks"),
    [(1, "training", True), (1, "queued", False), (0, "training", False), (2, "training", False)],
)
def test_only_a_run_on_the_only_gpu_is_in_the_way(monkeypatch, gpus, status, asks):
    monkeypatch.setattr(compare, "Sampler", lambda: SimpleNamespace(gpus=lambda: [{}] * gpus))
    monkeypatch.setattr(compare, "list_runs", lambda: [SimpleNamespace(id="r2")])
    monkeypatch.setattr(compare.engine, "read_state", lambda run_id: State(status=status, name="other"))
    assert compare._training_on_the_gpu() == ("other" if asks else None)

    async def first():
        return await anext(compare._ask("r1", "", [], [], None, *SETTINGS))

    note, anyway = asyncio.run(first())[4:]
    assert ("other trains on the only GPU" in note) is asks
    assert anyway["visible"] is asks


def test_images_go_with_the_question_at_its_beginning(monkeypatch, tmp_path):
    path = tmp_path / "red.png"
    path.write_bytes(b"as it is")
    done = [
        {"done": True, "column": name, "tokens": 1, "seconds": 1.0, "why": "end"}
        for name in ("base", "tuned")
    ]
    updates, session = answers(monkeypatch, done, "Which colour?", pictures=[(str(path), None)])
    assert session.asked[0][-1]["content"] == f"{IMAGE}Which colour?" and session.images == [b"as it is"]
    assert [turn["content"] for turn in updates[-1][0]][:2] == [{"path": str(path)}, "Which colour?"]


def test_a_held_out_question_brings_its_image(monkeypatch, tmp_path):
    sample = {"prompt": f"{IMAGE}Which colour?", "images": ["red.png"]}
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (4, 4), "red").save(folder / "red.png")
    monkeypatch.setattr(compare.engine, "read_state", lambda run_id: State(samples=[sample]))
    monkeypatch.setattr(asked_images, "find_run", lambda run_id: SimpleNamespace(data_dir=tmp_path))
    monkeypatch.setattr(
        asked_images, "Store", lambda _: SimpleNamespace(image_path=lambda name: folder / name)
    )
    prompt, pictures = compare._take("r1", 0)
    assert prompt == "Which colour?" and pictures[0].getpixel((0, 0)) == (255, 0, 0)
