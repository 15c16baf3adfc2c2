"""The doctor for gated repositories: is there a token, does the Hub know it, may its account read this one id?

At most three quick requests, and nothing is downloaded. No token stands in any of the words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from gemma_tune import hub, hub_client
from gemma_tune.errors import GemmaTuneError, shown
from gemma_tune.hub_errors import SITE, TOKENS_PAGE, endpoint, hub_error, hub_failures, offline, page

GATED_TOKEN_PAGE = f"{TOKENS_PAGE}/new?tokenType=fineGrained&canReadGatedRepos=true"  # with that right ticked
REQUESTS_PAGE = f"{SITE}/settings/gated-repos"  # all that an account asked for, and what came of it


@dataclass(frozen=True)
class Check:
    """The answer to one question. Where it is "no", `words` say what to do at `page`."""

    name: str  # "token": is there one? "valid": does the Hub know it? "licence": may it read this repository?
    state: str  # "yes", "no", "unknown" or "not needed"
    words: str
    page: str = ""  # empty where nothing is to be done


@dataclass(frozen=True)
class _Repository:
    id: str
    type: str  # "model" or "dataset"

    @property
    def noun(self) -> str:
        return "data set" if self.type == "dataset" else "model"

    @property
    def page(self) -> str:
        return page(self.id, self.type)

    def error(self, error: Exception) -> GemmaTuneError:
        return hub_error(error, self.id, self.id, self.type)


def access(repo_id: str, repo_type: str = "model", token: str | None = None) -> list[Check]:
    """The three questions in order. Without a token, the one that is saved on this machine counts."""
    repository = _Repository(repo_id, repo_type)
    try:
        token, words = _token_in_use(repo_id, token)
        valid, account = _valid(token, repository)
        usable = "" if valid.state == "no" else token  # with a wrong one the Hub refuses all
        gated, licence = _licence(repository, usable, account)
    except hub_failures() as error:
        return [_unknown(name, error, repository) for name in ("token", "valid", "licence")]
    if token:
        return [Check("token", "yes", words), valid, licence]
    if gated is False:
        valid = Check("valid", "not needed", "No token is used.")
    return [_no_token(gated, repository), valid, licence]


def _token_in_use(repo_id: str, token: str | None) -> tuple[str, str]:
    """(the token, where it is from). Raises what forbids to ask at all."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    if offline():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    if token and token.strip():
        return token.strip(), "A token is entered."
    return get_token() or "", "The token that is saved on this machine is used."


def _no_token(gated: bool | None, repository: _Repository) -> Check:
    if gated is False:
        return Check("token", "not needed", f"The {repository.noun} is open to all.")
    if gated is None:
        words = "There is no token; only a private or gated repository needs one."
        return Check("token", "unknown", words, TOKENS_PAGE)
    words = f"The {repository.noun} is gated, and there is no token. Make one with read rights and enter it."
    return Check("token", "no", words, TOKENS_PAGE)


def _valid(token: str, repository: _Repository) -> tuple[Check, str]:
    """(whether the Hub knows the token, the name of its account)."""
    from huggingface_hub.errors import HfHubHTTPError

    if not token:
        return Check("valid", "unknown", "There is no token to ask for."), ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        # Not even sent: the error of a header that cannot be sent would show it.
        words = "This is not a token: one is a single word that begins with hf_. Copy one from there."
        return Check("valid", "no", words, TOKENS_PAGE), ""
    try:
        account = shown(str(_facts(_ask("whoami-v2", token), "name")["name"]))
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            return _unknown("valid", error, repository), ""
        words = (
            "The Hub does not know this token: it is mistyped, expired or revoked. "
            "Make a new one with read rights and enter it."
        )
        return Check("valid", "no", words, TOKENS_PAGE), ""
    return Check("valid", "yes", f"The token is that of the account {account}."), account


def _licence(repository: _Repository, token: str, account: str) -> tuple[bool | None, Check]:
    """(whether it is gated, None where that cannot be told; whether the account may read its files)."""
    from huggingface_hub.errors import HfHubHTTPError

    path = f"{repository.type}s/{repository.id}"
    try:
        facts = _facts(_ask(path, token), "id")
    except HfHubHTTPError as error:
        return None, _not_seen(error, repository, account)
    gated = facts.get("gated")
    if not gated:
        private = facts.get("private")
        words = "private, and the account of the token may read it" if private else "not gated"
        return False, Check("licence", "not needed", f"The {repository.noun} is {words}.")
    if not token:
        words = (
            f"The {repository.noun} is gated. Its licence can be accepted there now; whether it is, the Hub tells "
            "for a token only."
        )
        return True, Check("licence", "unknown", words, repository.page)
    try:
        _ask(f"{path}/auth-check", token)
    except HfHubHTTPError as error:
        return True, _refused(error, repository, account or "The account", by_hand=gated == "manual")
    return True, Check("licence", "yes", f"{account or 'The account'} may read this {repository.noun}.")


def _not_seen(error, repository: _Repository, account: str) -> Check:
    """For a repository that does not exist, or that is not shown to this account."""
    status, said = error.response.status_code, _said(error)
    if status == 403 and "fine-grained" in said:
        return _lacks_a_right()
    if status not in (401, 404) or not said:  # proxies and login pages lack the Hub's words
        return _unknown("licence", error, repository)
    way_out = "a private one needs a token of an account that may read it."
    if account:
        way_out = f"a private one must be open to {account}, and to this token."
    words = f"The Hub has no such {repository.noun}, or it is private. Check the spelling; {way_out}"
    return Check("licence", "no", words, repository.page)


def _refused(error, repository: _Repository, who: str, by_hand: bool) -> Check:
    """For a gated repository whose files may not be read: why, as the Hub's own words tell it."""
    if error.response.status_code not in (401, 403):
        return _unknown("licence", error, repository)
    said = _said(error)
    if "fine-grained" in said:
        return _lacks_a_right()
    if "awaiting a review" in said:
        words = f"{who} has accepted the licence, but the owners have yet to approve it. See there whether they did."
        return Check("licence", "no", words, REQUESTS_PAGE)
    if "rejected" in said:
        words = f"The owners have refused {who}. Ask them there, or choose another {repository.noun}."
        return Check("licence", "no", words, repository.page)
    when = "the owners then approve each account, which can take a while" if by_hand else "it is open at once"
    words = (
        f"{who} has not accepted the licence of this {repository.noun}. "
        f"Sign in there with the same account and accept it; {when}."
    )
    return Check("licence", "no", words, repository.page)


def _lacks_a_right() -> Check:
    words = (
        "The token is fine-grained and lacks the right to read this repository. "
        "Make one there that may read gated repositories, and enter it."
    )
    return Check("licence", "no", words, GATED_TOKEN_PAGE)


def _unknown(name: str, error: Exception, repository: _Repository) -> Check:
    fault = repository.error(error).faults[0]
    return Check(name, "unknown", f"{fault.rule} {fault.way_out}")


def _said(error) -> str:
    return error.response.headers.get("X-Error-Message", "").lower()


def _ask(path: str, token: str):
    """The answer to a GET of the Hub's API. `huggingface_hub` itself sets whoami and auth-check no time limit."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    hub_client.give_up_early()
    response = get_session().get(
        f"{endpoint() or SITE}/api/{path}",
        headers=build_hf_headers(token=token or False),
        timeout=hub.TIMEOUT_SECONDS,
    )
    marks = {"X-Error-Message", "X-Error-Code"} & {name.title() for name in response.headers}
    if response.status_code == 403 and not marks:
        raise _stranger(response)
    hf_raise_for_status(response)
    return response


def _facts(answer, key: str) -> dict:
    """The object of an answer; one without this key is not from the Hub."""
    facts = answer.json()
    if not isinstance(facts, dict) or key not in facts:
        raise _stranger(answer)
    return facts


def _stranger(answer) -> Exception:
    """For an answer of a proxy or of the login page of a network; `hub_error` knows it by this type."""
    return json.JSONDecodeError("not an answer of the Hub", answer.text[:80], 0)
