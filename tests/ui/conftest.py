"""A real app process and a real Chromium; every page error and console error fails the test."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import gradio as gr
import pytest

from gemma_tune.ui import setup
from gemma_tune.ui.form import SetUp

ROOT = Path(__file__).parent.parent.parent
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class App:
    """The app as a user starts it. Guards its process; `kill` and `start` play the crash and the restart."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        environment = os.environ | {"GEMMA_TUNE_HOME": str(self.home), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(self.port)], cwd=ROOT, env=environment
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.url, timeout=2).close()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("the app did not answer within 60 s")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def tab() -> SetUp:
    """The Set up tab as it is before a browser opens it."""
    with gr.Blocks():
        return setup.build()


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """The app that all tests share which start no run."""
    started = App(tmp_path_factory.mktemp("shared") / "home")
    started.start()
    yield started
    started.kill()


@pytest.fixture
def own_app(tmp_path):
    """An app of one's own, for runs and crashes."""
    started = App(tmp_path / "home")
    started.start()
    yield started
    started.kill()
    _end_runs(started.home)


def _end_runs(home: Path) -> None:
    """Stop what a failed test left running."""
    os.environ["GEMMA_TUNE_HOME"] = str(home)
    try:
        from gemma_tune.runs import engine
        from gemma_tune.runs.folder import list_runs

        for folder in list_runs():
            engine.stop(folder.id, now=True)
    finally:
        del os.environ["GEMMA_TUNE_HOME"]


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    path = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if path is None:
        pytest.fail("The browser tests need Chromium: run 'make chromium', or set CHROMIUM to its path.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, request):
    """Opens pages of the test's own app, or of the shared one; at the end none may have had an error, a console error
    or a request to another site."""
    app = request.getfixturevalue("own_app" if "own_app" in request.fixturenames else "app")
    contexts, troubles = [], []

    def opening(path: str = "/", width: int = 1440, scheme: str = "light", context=None):
        if context is None:
            context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            contexts.append(context)
        page = context.new_page()
        page.troubles = troubles
        page.on("pageerror", lambda error: troubles.append(f"page error: {error}"))
        page.on(
            "console", lambda line: troubles.append(f"console: {line.text}") if line.type == "error" else None
        )
        page.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith((app.url, "data:", "blob:"))
                else troubles.append(f"request to another site: {asked.url}")
            ),
        )
        page.goto(app.url + path)
        page.wait_for_selector("#tabs")
        return page

    yield opening
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture
def checks_end():
    """Waits, so that no check of data that was stopped tells its result to the next test."""
    yield
    for thread in threading.enumerate():
        if thread.name == "data check":
            thread.join(5)
