"""The doctor for gated repositories against a small server that answers as the Hub does. No network is used."""

import time

import pytest
from data.fake_hub import ACCOUNT, VALID_TOKEN, serve

from gemma_tune import hub
from gemma_tune.hub_access import GATED_TOKEN_PAGE, REQUESTS_PAGE, access
from gemma_tune.hub_errors import TOKENS_PAGE, page

KINDS = ("model", "dataset")
pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The server as the Hub, with no token of the user's."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for kind in KINDS:
            server.add(f"{kind}s/me/open", {"a": b"large"})
            server.add(f"{kind}s/me/gated", {"a": b"large"}, gated="auto")
            server.add(f"{kind}s/me/by-hand", {"a": b"large"}, gated="manual")
            server.add(f"{kind}s/me/private", {"a": b"large"}, private=True)
        yield server
        assert not server.sent and len(server.requests) <= 3
        assert all(request.startswith("GET /api/") for request in server.requests)


def states(checks) -> list[str]:
    """The three answers; each that asks for something names a page, and none shows a token."""
    assert [check.name for check in checks] == ["token", "valid", "licence"]
    for check in checks:
        assert check.words.endswith(".") and "hf_known" not in check.words and "hf_wrong" not in check.words
        assert check.page.startswith("https://huggingface.co/") or check.state != "no"
    return [check.state for check in checks]


def test_a_gated_repository_without_a_token_asks_for_one_and_shows_where_the_licence_is(fake, kind):
    checks = access("me/gated", kind, None)
    assert states(checks) == ["no", "unknown", "unknown"]
    assert checks[0].page == TOKENS_PAGE and "gated" in checks[0].words
    assert checks[2].page == page("me/gated", kind)


def test_a_token_that_the_hub_does_not_know_is_told_before_the_licence(fake, kind):
    checks = access("me/gated", kind, "hf_wrong")
    assert states(checks) == ["yes", "no", "unknown"]
    assert checks[1].page == TOKENS_PAGE and "expired" in checks[1].words


@pytest.mark.parametrize(("repo", "words"), [("me/gated", "at once"), ("me/by-hand", "owners")])
def test_a_licence_that_is_not_accepted_says_who_opens_it(fake, kind, repo, words):
    checks = access(repo, kind, VALID_TOKEN)
    assert states(checks) == ["yes", "yes", "no"]
    assert ACCOUNT in checks[1].words and ACCOUNT in checks[2].words
    assert checks[2].page == page(repo, kind) and words in checks[2].words


@pytest.mark.parametrize(
    ("said", "words", "where"),
    [
        ("Your request to access it is awaiting a review from the repo authors.", "yet to approve", REQUESTS_PAGE),
        ("Your request to access it has been rejected by the repo's authors.", "have refused", ""),
        ("Please enable access to public gated repositories in your fine-grained token settings", "fine-grained", GATED_TOKEN_PAGE),
    ],
)  # fmt: skip
def test_a_refusal_is_told_as_the_hub_gives_its_reason(fake, kind, said, words, where):
    fake.repos[f"{kind}s/me/by-hand"]["said"] = said
    checks = access("me/by-hand", kind, VALID_TOKEN)
    assert states(checks) == ["yes", "yes", "no"]
    assert words in checks[2].words and checks[2].page == (where or page("me/by-hand", kind))


def test_an_accepted_licence_leaves_nothing_to_do(fake, kind):
    fake.accepted = True
    checks = access("me/by-hand", kind, VALID_TOKEN)
    assert states(checks) == ["yes", "yes", "yes"]
    assert not any(check.page for check in checks)


def test_what_is_open_to_all_needs_neither_token_nor_licence(fake, kind):
    assert states(access("me/open", kind, None)) == ["not needed", "not needed", "not needed"]


def test_a_wrong_token_is_told_even_where_none_is_needed(fake, kind):
    assert states(access("me/open", kind, "hf_wrong")) == ["yes", "no", "not needed"]


@pytest.mark.parametrize("token", [None, "hf_wrong", VALID_TOKEN])
def test_what_is_private_or_missing_says_so(fake, kind, token):
    checks = access("me/nothing", kind, token)
    assert states(checks)[2] == "no" and "or it is private" in checks[2].words
    assert ("data set" if kind == "dataset" else "model") in checks[2].words
    assert checks[2].page == page("me/nothing", kind)


def test_a_private_repository_is_open_to_the_token_of_its_owner(fake, kind):
    checks = access("me/private", kind, VALID_TOKEN)
    assert states(checks) == ["yes", "yes", "not needed"] and "private" in checks[2].words


def test_the_token_that_is_saved_on_this_machine_counts(fake, kind, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", VALID_TOKEN)
    checks = access("me/gated", kind, "")
    assert states(checks) == ["yes", "yes", "no"] and "saved on this machine" in checks[0].words


@pytest.mark.parametrize("token", ["hf_known\nX-Header: hf_known", "hf_knöwn", "my hf_known"])
def test_what_is_no_token_is_told_without_being_sent(fake, kind, token):
    checks = access("me/open", kind, token)
    assert states(checks) == ["yes", "no", "not needed"] and "hf_" in checks[1].words
    assert not any("whoami" in request for request in fake.requests)


def test_too_many_requests_leave_the_answers_open(fake, kind):
    fake.whoami_status = 429  # the Hub is strict with this one
    checks = access("me/gated", kind, VALID_TOKEN)
    assert states(checks) == ["yes", "unknown", "no"] and "too many requests" in checks[1].words
    fake.requests.clear()
    fake.status = 429
    checks = access("me/gated", kind, VALID_TOKEN)
    assert states(checks) == ["yes", "unknown", "unknown"] and "7 seconds" in checks[2].words


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>log in</html>"), (200, b"[]"), (403, b""), (404, b"")]
)
def test_an_answer_that_is_not_the_hubs_leaves_all_open(fake, kind, status, body):
    fake.status, fake.body = status, body
    for token in (None, VALID_TOKEN):
        fake.requests.clear()
        checks = access("me/gated", kind, token)
        assert "yes" not in states(checks)[1:] and "no" not in states(checks)[1:]
        assert "does not speak as the Hub does" in checks[2].words


def test_no_network_a_stalled_one_and_offline_say_why_nothing_is_known(fake, kind, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.3)
    fake.repos[f"{kind}s/me/open"]["stall"] = 3
    begun = time.monotonic()
    checks = access("me/open", kind, VALID_TOKEN)
    assert states(checks) == ["unknown"] * 3 and "cannot be reached" in checks[0].words
    assert time.monotonic() - begun < 2.5
    asked = len(fake.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in access("me/open", kind, VALID_TOKEN)[0].words
    assert len(fake.requests) == asked
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    checks = access("me/open", kind, None)
    assert states(checks) == ["unknown"] * 3 and "cannot be reached" in checks[2].words


def test_what_is_no_id_of_the_hub_is_told(fake, kind):
    checks = access("me/two--dashes", kind, None)
    assert states(checks) == ["unknown"] * 3 and "OWNER/NAME" in checks[2].words
    assert fake.requests == []
