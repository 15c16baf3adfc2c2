"""What the Hub answers, as errors of ours: which of token, licence, name or network it is, and the page to open."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

from gemma_tune.errors import AccessError, DataError, GemmaTuneError, ModelError

SITE = "https://huggingface.co"
TOKENS_PAGE = f"{SITE}/settings/tokens"


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "on", "yes", "true")


def page(repo_id: str, repo_type: str = "model") -> str:
    return f"{SITE}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


def hub_failures() -> tuple[type[Exception], ...]:
    """What `huggingface_hub` and the network raise; all of it is for `hub_error`."""
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError
    from huggingface_hub.utils import httpx

    return (
        OSError, httpx.HTTPError, httpx.InvalidURL, json.JSONDecodeError, EntryNotFoundError, HFValidationError,
    )  # fmt: skip


def hub_error(error: Exception, where: str, repo_id: str, repo_type: str = "model") -> GemmaTuneError:
    """The error to raise for what the Hub or the way to it answered."""
    if isinstance(error, GemmaTuneError):
        return error
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    kind = DataError if repo_type == "dataset" else ModelError
    chain = list(_chain(error))
    if offline() or any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return kind.at(
            where, repo_id, "It is not on this disk, and HF_HUB_OFFLINE forbids to ask the Hub.",
            "Unset HF_HUB_OFFLINE, or use what is here: Pocket Gemma (pocket), a built-in example, a local file.",
        )  # fmt: skip
    if any(isinstance(one, HFValidationError) for one in chain):
        return kind.at(where, repo_id, "This is not an id of the Hub.", "Write it as OWNER/NAME.")
    response = next((found for one in chain if (found := getattr(one, "response", None)) is not None), None)
    if response is not None:
        return _answered(response, where, repo_id, repo_type, kind)
    if any(isinstance(one, PermissionError) or getattr(one, "errno", None) == 28 for one in chain):
        return kind.at(
            where, str(error), "The download cannot be written to this disk.",
            "Free some space, or set HF_HOME to a folder that can be written.",
        )  # fmt: skip
    if any(isinstance(one, json.JSONDecodeError) for one in chain):
        return _stranger("not JSON", where, repo_id, repo_type, kind)
    if not any(isinstance(one, _network_failures()) for one in chain):
        return kind.at(
            where, _reason(chain), "What the Hub holds there cannot be read.",
            f"See {page(repo_id, repo_type)}, or download its files and use them from this disk.",
        )  # fmt: skip
    return kind.at(
        where, _reason(chain), f"The Hub cannot be reached from here ({endpoint()}).",
        "Check the network, or use what is here: Pocket Gemma (pocket), a built-in example, a local file.",
    )  # fmt: skip


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", SITE).rstrip("/")


def _answered(
    response, where: str, repo_id: str, repo_type: str, kind: type[GemmaTuneError]
) -> GemmaTuneError:
    """By status and the Hub's own error code."""
    status = response.status_code
    code = response.headers.get("X-Error-Code", "")
    said = response.headers.get("X-Error-Message", "")
    has_token = bool(_request_headers(response).get("authorization"))
    if status in (401, 403):
        if has_token or code == "GatedRepo":
            return _no_access(status, said, has_token, where, page(repo_id, repo_type))
        if status == 403:
            return _stranger(status, where, repo_id, repo_type, kind)
        # The Hub says 401 to strangers who ask for what is not there.
        return _not_found(where, repo_id, repo_type, kind)
    if code == "RevisionNotFound":
        return kind.at(
            where,
            repo_id,
            "The repository has no such revision.",
            f"See its branches at {page(repo_id, repo_type)}.",
        )
    if code == "EntryNotFound":
        return kind.at(
            where, str(response.url).rpartition("/")[2], "The repository lacks this file.",
            f"See what it holds at {page(repo_id, repo_type)}/tree/main.",
        )  # fmt: skip
    if status == 404 and code:
        return _not_found(where, repo_id, repo_type, kind)
    if status == 404:
        return _stranger(status, where, repo_id, repo_type, kind)
    if status == 429:
        wait = response.headers.get("Retry-After")
        return kind.at(
            where, "429", "The Hub answers that there were too many requests.",
            f"Wait {f'{wait} seconds' if wait else 'some minutes'}, or use a token from {TOKENS_PAGE}: it allows more.",
        )  # fmt: skip
    return kind.at(
        where, f"{status} {said}".strip(), "The Hub has trouble answering.",
        "Try again in some minutes; https://status.huggingface.co tells its state.",
    )  # fmt: skip


def _no_access(status: int, said: str, has_token: bool, where: str, repo_page: str) -> AccessError:
    if not has_token:
        return AccessError.at(
            where, "no token", "The repository is gated: its licence must be accepted, and a token shows who you are.",
            f"Accept the licence at {repo_page}, make a token with read rights at {TOKENS_PAGE} and enter it.",
        )  # fmt: skip
    if status == 401:
        return AccessError.at(
            where, "the token is not valid", "The Hub does not know this token: it is mistyped, expired or revoked.",
            f"Make a new one with read rights at {TOKENS_PAGE} and enter it.",
        )  # fmt: skip
    if "fine-grained" in said.lower():
        return AccessError.at(
            where, "the token lacks a right", "The token may not read public gated repositories.",
            f"Give it that right at {TOKENS_PAGE}.",
        )  # fmt: skip
    return AccessError.at(
        where, "licence not accepted", "The token is valid, but its owner has not accepted the licence, or waits for it.",
        f"Open {repo_page} with the same account, accept the licence, then try again.",
    )  # fmt: skip


def _stranger(
    status: int | str, where: str, repo_id: str, repo_type: str, kind: type[GemmaTuneError]
) -> GemmaTuneError:
    """For an answer without the Hub's own marks, as proxies and login pages of networks give it."""
    return kind.at(
        where, str(status), f"What answers at {endpoint()} does not speak as the Hub does.",
        f"A proxy may stand between, or it does not hold this: open {page(repo_id, repo_type)} in a browser.",
    )  # fmt: skip


def _not_found(where: str, repo_id: str, repo_type: str, kind: type[GemmaTuneError]) -> GemmaTuneError:
    what = "data set" if repo_type == "dataset" else "model"
    return kind.at(
        where, repo_id, f"The Hub has no such {what}, or it is private.",
        f"Check the spelling at {page(repo_id, repo_type)}; a private one needs a token from {TOKENS_PAGE}.",
    )  # fmt: skip


def _network_failures() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import LocalEntryNotFoundError  # what a download raises without a network
    from huggingface_hub.utils import httpx

    return httpx.TransportError, ConnectionError, TimeoutError, socket.gaierror, LocalEntryNotFoundError


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from; libraries wrap the Hub's answer."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _reason(chain: list[BaseException]) -> str:
    """Type and text of the error at the root; never headers, which may hold a token."""
    root = chain[-1]
    return f"{type(root).__name__}: {root}"


def _request_headers(response) -> dict:
    try:
        return response.request.headers
    except RuntimeError:  # a response without its request
        return {}
