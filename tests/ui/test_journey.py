"""The whole journey in a real browser, on the built-in model and data."""

import time

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
PATIENCE = 120_000  # ms; a loaded machine may take long to load torch


def to_review(page, epochs: str | None = None) -> None:
    page.click("#model-next")
    expect(page.locator("#data-summary")).to_contain_text("Accepted", timeout=PATIENCE)
    page.click("#data-next")
    expect(page.locator("#train-num-train-epochs input")).to_be_visible(timeout=PATIENCE)
    if epochs:
        page.fill("#train-num-train-epochs input", epochs)
        page.locator("#train-num-train-epochs input").blur()
    page.click("#method-next")
    expect(page.locator("#review-card")).to_contain_text("steps", timeout=PATIENCE)


def action(page, name: str):
    return page.locator("#monitor").get_by_role("button", name=name)


def pill(page):
    return page.locator('#monitor [data-at="pill"]')


def step(page) -> int:
    return int(page.locator('#monitor [data-card="step"] strong').inner_text().replace(",", ""))


def wait_for_step(page, at_least: int) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while step(page) < at_least:
        assert time.monotonic() < deadline, f"step {step(page)} of {at_least}"
        page.wait_for_timeout(200)


def test_set_up_watch_stop_resume_finish_compare(open_page, own_app):
    page = open_page()
    to_review(page, epochs="2")
    page.click("#start")
    expect(pill(page)).to_have_text("Training", timeout=PATIENCE)
    assert "tab=watch" in page.url
    wait_for_step(page, 3)

    second = open_page("/?tab=watch")
    expect(pill(second)).to_have_text("Training", timeout=PATIENCE)
    wait_for_step(second, 3)

    action(page, "Stop and keep").click()
    for shown in (page, second):
        expect(pill(shown)).to_have_text("Stopped", timeout=PATIENCE)
    stopped_at = step(page)
    assert 3 <= stopped_at < 60

    action(page, "Resume").click()
    expect(pill(page)).to_have_text("Training", timeout=PATIENCE)
    expect(pill(page)).to_have_text("Finished", timeout=2 * PATIENCE)
    expect(page.locator('#monitor [data-at="report"]')).to_contain_text("Exact answers")
    for chart in ("loss", "rate"):  # the whole curve is drawn, not only its beginning
        drawn = f"document.querySelector('#monitor [data-at={chart}]')._fullLayout.xaxis.range[1]"
        assert page.evaluate(drawn) >= step(page) == 60

    action(page, "Compare base and tuned").click()
    page.fill("#prompt textarea", "As JSON: At the shop, Mia sells 5 purple towels.")
    page.click("#ask")
    expect(page.locator("#stats-tuned")).to_contain_text("tokens/s", timeout=PATIENCE)
    expect(page.locator("#stats-base")).to_contain_text("tokens/s", timeout=PATIENCE)
    base, tuned = (page.locator(f"#chat-{name}").inner_text() for name in ("base", "tuned"))
    assert '"name":"Mia"' in tuned
    assert '"name":"Mia"' not in base


def test_a_killed_app_comes_back_to_a_live_run_within_two_seconds(open_page, own_app):
    page = open_page()
    to_review(page, epochs="20")
    page.click("#start")
    expect(pill(page)).to_have_text("Training", timeout=PATIENCE)
    wait_for_step(page, 2)
    own_app.kill()
    expect(page.locator('#monitor [data-at="offline"]')).to_be_visible(timeout=10_000)
    before = step(page)
    own_app.start()
    began = time.monotonic()
    expect(page.locator('#monitor [data-at="offline"]')).to_be_hidden(timeout=10_000)
    back_after = time.monotonic() - began
    wait_for_step(page, before + 1)
    fresh = open_page("/?tab=watch")
    expect(pill(fresh)).to_have_text("Training", timeout=10_000)
    assert back_after < 2.0 + 0.5  # the page asks once a second; half a second is the browser driver's
    action(page, "Stop now").click()
    action(page, "Really stop now?").click()
    expect(pill(page)).to_have_text("Stopped", timeout=PATIENCE)
    page.troubles[:] = [trouble for trouble in page.troubles if "ERR_CONNECTION_REFUSED" not in trouble]


def test_the_form_survives_a_refresh_and_marks_faults_at_their_fields(open_page):
    page = open_page()
    to_review(page)
    page.click("#review-back")
    page.fill("#train-learning-rate input", "50")
    page.locator("#train-learning-rate input").blur()
    page.click("#method-next")
    expect(page.locator("#train-learning-rate")).to_contain_text("at most 0.1", timeout=PATIENCE)
    expect(page.locator("#forecast")).to_contain_text("at most 0.1")
    page.fill("#train-seed input", "7")
    page.fill("#train-learning-rate input", "0.002")
    page.locator("#train-learning-rate input").blur()
    expect(page.locator("#advice")).to_contain_text(
        "yours: 0.002", timeout=PATIENCE
    )  # kept by the same answer
    page.reload()
    page.wait_for_selector("#tabs")
    to_review(page)
    page.click("#review-back")
    expect(page.locator("#train-learning-rate input")).to_have_value("0.002")
    expect(page.locator("#train-seed input")).to_have_value("7")
    page.troubles[:] = [
        trouble for trouble in page.troubles if "422" not in trouble
    ]  # how a validator answers


def test_pairs_offer_preferences_and_only_what_applies_is_shown(open_page):
    page = open_page()
    page.locator("#model-family label", has_text="Gemma 3").first.click()
    page.locator("#model-size label", has_text="4B").click()
    expect(page.locator("#model-facts")).to_contain_text("google/gemma-3-4b-it", timeout=PATIENCE)
    page.locator("#model-variant label", has_text="Base").click()
    expect(page.locator("#model-facts")).to_contain_text("google/gemma-3-4b-pt", timeout=PATIENCE)
    page.locator("#model-family label", has_text="Pocket").click()
    expect(page.locator("#model-size")).to_be_hidden()
    page.click("#model-next")
    page.locator("#data-example label", has_text="polite").click()
    expect(page.locator("#data-summary")).to_contain_text("The chosen answers are learned", timeout=PATIENCE)
    page.click("#data-next")
    goals = page.locator("#objective-type label")
    expect(goals).to_have_count(4, timeout=PATIENCE)
    expect(page.locator("#objective-beta")).to_be_hidden()
    goals.filter(has_text="DPO").click()
    expect(page.locator("#objective-beta input")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#train-learning-rate input")).to_have_value("0.002")  # Pocket's own
    page.locator("#method-type label", has_text="Full").click()
    expect(page.locator("#method-r")).to_be_hidden(timeout=PATIENCE)
    expect(page.locator("#forecast")).to_contain_text("Optimizer", timeout=PATIENCE)
    page.click("#method-next")
    expect(page.locator("#review-card")).to_contain_text("Preferences (DPO)", timeout=PATIENCE)
    expect(page.locator("#review-forecast")).to_contain_text("Will it fit?")


def test_a_bad_file_is_answered_with_its_rows_and_a_good_one_goes_on(open_page, tmp_path):
    page = open_page()
    page.click("#model-next")
    page.get_by_label("Upload", exact=True).click()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"')
    page.set_input_files("#data-upload input[type=file]", str(bad))
    expect(page.locator("#data-summary")).to_contain_text("batch", timeout=PATIENCE)
    with page.expect_response(lambda answer: "queue/data" in answer.url or "queue/join" in answer.url):
        page.click("#data-next")
    expect(page.locator("#data-summary")).to_be_visible()  # still on this step
    rows = "".join(f'{{"question": "What is {n}?", "answer": "It is {n}."}}\n' for n in range(40))
    good = tmp_path / "good.jsonl"
    good.write_text(rows + '{"question": "Empty?", "answer": ""}\n')
    page.locator("#data-upload").get_by_label("Clear").or_(
        page.locator("#data-upload button[aria-label='Clear']")
    ).first.click()
    page.set_input_files("#data-upload input[type=file]", str(good))
    expect(page.locator("#data-summary")).to_contain_text("41", timeout=PATIENCE)
    page.get_by_role("tab", name="Left out").click()
    expect(page.locator("#data-rejected")).to_contain_text("41")
    expect(page.locator("#rejected-download")).to_be_visible()
    page.click("#data-next")
    expect(page.locator("#train-learning-rate input")).to_be_visible(timeout=PATIENCE)


def test_no_tab_is_wider_than_the_screen(open_page):
    for tab in ("setup", "watch", "compare", "runs"):
        page = open_page(f"/?tab={tab}")
        for width, scheme in ((1440, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (tab, width)
        page.close()


def test_eight_tabs_of_one_browser_all_answer(open_page, chromium):
    context = chromium.new_context()
    pages = [open_page("/?tab=runs", context=context) for _ in range(8)]
    for page in pages:
        page.bring_to_front()
        expect(page.locator("#runs-table")).to_contain_text("No runs yet", timeout=15_000)
    context.close()
