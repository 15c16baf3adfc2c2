"""Patience with the Hub: what fails twice in a row ends within seconds, where `huggingface_hub` would try for minutes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

SILENCE_SECONDS = 10.0  # without a byte; HF_HUB_DOWNLOAD_TIMEOUT sets another
PROGRESS_BYTES = 16 << 20  # between two failures makes a third try worth it; a download keeps 10 MB at a time

_failed_at: dict[str, float] = {}  # address → when a request to it failed last, on time.monotonic's clock


@cache
def give_up_early() -> None:
    """Once in a process: what fails twice in a row is not tried a third time.

    huggingface_hub sets some requests no time limit, tries others six times, and waits as long as a 429 says each time.
    No setting changes that; a client of our own does, and that is the public way to say how requests are sent.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client():
        made = default_client_factory()
        made.send = _patient(made.send)
        return made

    set_client_factory(client)
    # Downloads of hf_xet do not pass our client. Its own limits are 300 seconds of silence and five tries.
    os.environ.setdefault("HF_XET_CLIENT_CONNECT_TIMEOUT", f"{SILENCE_SECONDS:.0f}s")
    os.environ.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{SILENCE_SECONDS:.0f}s")
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2")


def _patient(send):
    """`send` of an httpx client, that gives up on what is read; what is written is left alone."""
    from huggingface_hub.utils import hf_raise_for_status, httpx

    class Body(httpx.SyncByteStream):
        def __init__(self, stream, address: str) -> None:
            self.stream, self.address, self.close = stream, address, stream.close

        def __iter__(self):
            got_bytes = 0
            with _twice(self.address):
                for piece in self.stream:
                    yield piece
                    got_bytes += len(piece)
                    if got_bytes > PROGRESS_BYTES:
                        _failed_at.pop(self.address, None)

    def patient_send(request, **options):
        if request.method not in ("GET", "HEAD"):
            return send(request, **options)
        address, limit = str(request.url), _silence_seconds()
        given = request.extensions.get("timeout", {})
        shorter = {step: min(given.get(step) or limit, limit) for step in ("connect", "read")}
        request.extensions["timeout"] = {**given, **shorter}
        with _twice(address):
            response = send(request, **options)
        if response.status_code == 429 or (response.status_code >= 500 and _has_failed_before(address)):
            response.read()
            hf_raise_for_status(response)
        if options.get("stream"):
            response.stream = Body(response.stream, address)
        return response

    return patient_send


@contextmanager
def _twice(address: str) -> Iterator[None]:
    """Lets the libraries try once more what failed; the second time it fails as something that they do not retry."""
    from huggingface_hub.utils import httpx

    try:
        yield
    except httpx.TransportError as error:
        if not _has_failed_before(address):
            raise
        raise ConnectionError(f"twice in a row: {error}") from error


def _has_failed_before(address: str) -> bool:
    """Notes a failure, and tells whether it is the second within a minute."""
    now = time.monotonic()
    if now - _failed_at.pop(address, -1e9) < 60:
        return True
    _failed_at[address] = now
    return False


def _silence_seconds() -> float:
    try:
        return float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")) or SILENCE_SECONDS
    except ValueError:
        return SILENCE_SECONDS
