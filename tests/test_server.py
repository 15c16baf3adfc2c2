import json
import socket
import urllib.error
import urllib.request

import pytest

from gemma_tune import server
from gemma_tune.errors import ServerError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    import os

    os.environ["GEMMA_TUNE_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["HF_TOKEN"] = "hf_canary_0123456789"
    port = free_port()
    demo = server.serve("127.0.0.1", port, block=False)
    yield f"http://127.0.0.1:{port}"
    demo.close()
    del os.environ["GEMMA_TUNE_HOME"], os.environ["HF_TOKEN"]


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def test_a_taken_port_is_said_with_the_way_out():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port}.*--port {port + 1}"):
            server.check_address("127.0.0.1", port, password=None, on_space=False)


def test_another_address_needs_a_password():
    with pytest.raises(ServerError, match="GEMMA_TUNE_PASSWORD"):
        server.check_address("0.0.0.0", free_port(), password=None, on_space=False)
    server.check_address("0.0.0.0", free_port(), password="x", on_space=False)
    server.check_address("0.0.0.0", free_port(), password=None, on_space=True)


def test_a_write_from_another_site_is_refused(address):
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        body = json.dumps({"data": [{}]}).encode()
        status, text = ask(f"{address}/gradio_api/component_server", body, Origin=origin)
        assert status == 403 and "another site" in text
    assert ask(f"{address}/gradio_api/component_server", b"{}", Origin=address)[0] != 403


def test_another_host_name_is_refused(address):
    assert ask(address, Host="evil.example")[0] == 400
    assert ask(address)[0] == 200


@pytest.mark.parametrize("path", ["/etc/passwd", "/root/.bashrc", "requirements.txt", "gemma_tune/config.py"])
def test_no_file_of_the_machine_is_served(address, path):
    assert ask(f"{address}/gradio_api/file={path}")[0] in (403, 404)


def test_the_page_holds_no_token_and_asks_nothing_of_other_sites(address):
    for path in ("/", "/config", "/gradio_api/info"):
        status, text = ask(address + path)
        assert status == 200
        assert "hf_canary" not in text
        assert "fonts.googleapis" not in text


def test_plotly_comes_from_this_machine(address):
    from gemma_tune.ui.theme import PLOTLY_URL

    status, text = ask(address + PLOTLY_URL)
    assert status == 200 and "plotly.js" in text[:2000]


def test_answers_forbid_guessing_of_types(address):
    with urllib.request.urlopen(address, timeout=20) as answer:
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_actions_are_an_api(address):
    from gradio_client import Client

    client = Client(address, verbose=False)
    assert client.predict(api_name="/list_runs") == []
    with pytest.raises(Exception, match="learning_rate"):
        client.predict("train: {learning_rate: 50}", api_name="/start_run")
    with pytest.raises(Exception, match="no such run|No run|run"):
        client.predict("nothing", api_name="/run_status")
