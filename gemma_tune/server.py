"""Starts the page: address, password, middleware, and the followers of live runs. No torch here."""

from __future__ import annotations

import argparse
import os
import socket
from urllib.parse import urlsplit

from gemma_tune.errors import GemmaTuneError, ServerError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT_PORT = 7860
MAX_UPLOAD = "4gb"
USER_NAME = "gemma"


class OriginGuard:
    """Refuses writes that another site's page sends; Gradio's server functions do not look at the origin."""

    def __init__(self, app, trusted: tuple[str, ...] = ()) -> None:
        self.app, self.trusted = app, trusted

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
            origin = headers.get(b"origin")
            if origin is not None and not self._same(origin, headers.get(b"host", "")):
                await _refuse(send)
                return
        await self.app(scope, receive, send)

    def _same(self, origin: str, host: str) -> bool:
        netloc = urlsplit(origin).netloc
        return bool(netloc) and (netloc == host or netloc in self.trusted)


async def _refuse(send) -> None:
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
    await send(
        {"type": "http.response.body", "body": b"This request came from another site and was refused."}
    )


class SafeHeaders:
    """Adds `nosniff` to every answer, so that an uploaded file is never taken for a page."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def sending(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


def main(argv: list[str] | None = None) -> None:
    """`python app.py [--host ADDRESS] [--port N]`. Exits with a sentence where it cannot start."""
    parser = argparse.ArgumentParser(prog="gemma-tune ui", description="Open Gemma Tune in the browser.")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", DEFAULT_PORT)))
    arguments = parser.parse_args(argv)
    try:
        serve(arguments.host, arguments.port)
    except GemmaTuneError as error:
        raise SystemExit(str(error)) from None


def serve(host: str, port: int, *, block: bool = True):
    """Start the app on `host:port`; returns Gradio's Blocks. Raises ServerError before anything is bound."""
    password = os.environ.get("GEMMA_TUNE_PASSWORD")
    on_space = bool(os.environ.get("SPACE_ID"))
    check_address(host, port, password=password, on_space=on_space)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

    from gemma_tune.runs.follower import resume_following
    from gemma_tune.ui import build, theme

    resume_following()
    demo = build()
    demo.launch(
        server_name=host,
        server_port=port,
        auth=(USER_NAME, password) if password else None,
        theme=theme.THEME,
        css_paths=[theme.CSS_PATH],
        head=theme.HEAD,
        favicon_path=str(theme.FAVICON_PATH),
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        share=False,
        max_file_size=MAX_UPLOAD,
        state_session_capacity=300,
        app_kwargs={"middleware": _middleware(host, password), "openapi_url": None},
    )
    print(f"Gemma Tune is open at http://{host}:{port}  (Ctrl-C closes the page; runs go on)", flush=True)  # noqa: T201
    if block:
        demo.block_thread()
    return demo


def check_address(host: str, port: int, *, password: str | None, on_space: bool) -> None:
    """Loopback is free; any other address needs a password; the port must be free."""
    if host not in LOOPBACK and not password and not on_space:
        raise ServerError.at(
            "--host",
            host,
            "Gemma Tune listens on this machine only, unless a password protects it.",
            "Set GEMMA_TUNE_PASSWORD, or leave --host away.",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError.at(
                f"port {port}",
                error.strerror,
                f"The address {host}:{port} cannot be used; another program may hold it, perhaps Gemma Tune itself.",
                f"Open http://{host}:{port} to see, or start with --port {port + 1}.",
            ) from None


def _middleware(host: str, password: str | None) -> list:
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    space = os.environ.get("SPACE_HOST", "")
    hosts = [*LOOPBACK[:2], "[::1]", *([space] if space else [])]
    if host not in LOOPBACK:
        hosts = ["*"] if password else [*hosts, "*.hf.space"]
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
        Middleware(OriginGuard, trusted=(space,) if space else ()),
        Middleware(SafeHeaders),
    ]
