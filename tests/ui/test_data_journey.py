"""The data step in a real browser: fixes, mapping by hand, a mix, token ids, a check that is stopped."""

import json

import pytest
from data.tiny_tokenizer import build_seeing
from PIL import Image
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
PATIENCE = 60_000  # ms


@pytest.fixture
def page(open_page):
    opened = open_page()
    opened.click("#model-next")
    expect(opened.locator("#data-summary")).to_contain_text("pocket-json", timeout=PATIENCE)
    return opened


def upload(page, path) -> None:
    page.get_by_label("Upload", exact=True).click()
    page.set_input_files("#data-upload input[type=file]", str(path))
    expect(page.locator("#data-summary")).to_contain_text(path.name, timeout=PATIENCE)


def figure(page, label: str):
    return page.locator("#data-summary .gt-figure", has_text=label).locator("strong")


def talk(number: int, twice: bool = False) -> str:
    question = {"role": "user", "content": f"What is {number}?"}
    turns = [question, question] if twice else [question]
    return json.dumps({"messages": [*turns, {"role": "assistant", "content": f"It is {number}, as ever."}]})


def test_a_fix_is_shown_then_applied_and_a_row_is_seen_token_by_token(page, tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(talk(number, twice=number % 10 == 0) for number in range(40)))
    upload(page, path)
    expect(figure(page, "Left out")).to_have_text("4")
    page.get_by_role("tab", name="Left out (4)").click()
    expect(page.locator("#data-fixed")).to_contain_text("neighbouring turns of one role merged")
    page.get_by_label("merge_turns").check()
    expect(figure(page, "Accepted")).to_have_text("40", timeout=PATIENCE)
    expect(page.locator("#data-nothing")).to_contain_text("No row is left out")
    page.get_by_role("tab", name="What the model sees").click()
    page.locator("#row-ids input").click()
    page.get_by_role("option", name="text with token ids").click()
    expect(page.locator("#data-sees rt").first).to_have_text("2", timeout=PATIENCE)  # <bos>
    page.get_by_role("tab", name="Lengths").click()
    expect(page.locator("#data-lengths")).to_contain_text("every row fits into 1,024")


def test_columns_are_mapped_by_hand_and_data_are_mixed(page, tmp_path):
    path = tmp_path / "de.csv"
    lines = [f"{number},Was ist {number}?,Das ist {number}.,jemand {number}" for number in range(30)]
    path.write_text("\n".join(["id,frage,antwort,autor", *lines]))
    upload(page, path)
    expect(page.locator("#data-summary")).to_contain_text("No known schema fits")
    page.get_by_role("button", name="Schema and columns").click()
    for field, column in (("prompt", "frage"), ("completion", "antwort")):
        page.locator(f"#column-{field} input").click()
        page.get_by_role("option", name=column, exact=True).click()
    expect(figure(page, "Accepted")).to_have_text("30", timeout=PATIENCE)
    expect(page.locator("#data-sees")).to_contain_text("Was ist 0?")
    page.get_by_role("button", name="Mix several data sets").click()
    page.fill("#data-weight input", "2")
    page.click("#mix-add")
    expect(page.locator("#data-mix")).to_contain_text("de.csv", timeout=PATIENCE)
    expect(page.locator("#data-summary")).to_contain_text("Choose the next data set")
    page.get_by_label("Built-in example").click()
    expect(figure(page, "Accepted")).to_have_text("590", timeout=PATIENCE)
    expect(page.locator("#data-summary")).to_contain_text("Weight 2.")
    page.locator("#data-mix").get_by_role("button", name="Remove").click()
    expect(figure(page, "Accepted")).to_have_text("560", timeout=PATIENCE)


def test_a_long_check_shows_the_first_rows_and_its_progress_and_can_be_stopped(page, tmp_path, app):
    path = app.home / "many.jsonl"
    with path.open("w") as file:
        for number in range(150_000):
            file.write(talk(number) + "\n")
    page.get_by_label("Folder on the server").click()
    page.fill("#data-folder input, #data-folder textarea", str(path))
    page.keyboard.press("Enter")
    expect(page.locator("#data-sees")).to_contain_text("What is 0?", timeout=PATIENCE)
    expect(page.locator("#data-summary .gt-track")).to_be_visible()
    page.click("#check-cancel")
    expect(page.locator("#data-summary")).to_contain_text("The check was stopped", timeout=PATIENCE)
    expect(page.locator("#check-cancel")).to_be_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_images_are_uploaded_with_their_rows_and_shown_in_their_place(
    own_app, open_page, tmp_path, width, scheme
):
    model = build_seeing(own_app.home / "seeing", "gemma3")
    rows = [
        {"image": f"pics/{n}.png", "prompt": "What is this?", "completion": f"Square {n}."} for n in range(20)
    ]
    paths = [tmp_path / "rows.jsonl", *(tmp_path / f"{n}.png" for n in range(20))]
    paths[0].write_text("\n".join(map(json.dumps, rows)))
    for number, path in enumerate(paths[1:]):
        Image.linear_gradient("L").resize((480, 360 + number)).save(path)
    page = open_page(width=width, scheme=scheme)
    page.click("#model-next")
    expect(page.locator("#data-summary")).to_contain_text("pocket-json", timeout=PATIENCE)
    page.click("#data-back")
    page.locator("#model-family").get_by_text("Another Gemma").click()
    own = page.locator("#own-model input, #own-model textarea")
    expect(own).to_be_visible(timeout=PATIENCE)
    own.fill(str(model))
    page.click("#own-find")
    expect(page.locator("#model-facts")).to_contain_text("seeing", timeout=PATIENCE)
    page.click("#model-next")
    page.get_by_label("Upload", exact=True).click()
    page.set_input_files("#data-upload input[type=file]", [str(path) for path in paths])
    expect(page.locator("#data-sees .gt-image")).to_contain_text("image · 4 tokens", timeout=PATIENCE)
    picture = page.locator("#data-sees .gt-image img")
    box = picture.bounding_box()
    assert (
        picture.evaluate("image => image.naturalWidth") == 160 and 20 < box["width"] <= 160 >= box["height"]
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(figure(page, "Accepted")).to_have_text("20")
