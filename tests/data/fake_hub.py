"""A small server that answers as the Hub does, for the requests of huggingface_hub and datasets."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VALID_TOKEN = "hf_known"
ACCOUNT = "tester"  # of VALID_TOKEN


class FakeHub:
    """`repos`: "models/OWNER/NAME" or "datasets/OWNER/NAME" → {"files": {name: bytes}, "gated": …}, and where wanted

    private      only VALID_TOKEN sees it
    stall        seconds before each answer of the API
    said         what refuses VALID_TOKEN in a gated one, as "awaiting a review" or "fine-grained"
    file_status  answers each download so, and `retry_after` says for how long
    stall_at     the byte of each file at which the server falls silent
    break_at     the byte of each file at which it closes the connection
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict] = {}
        self.accepted = False  # whether the owner of VALID_TOKEN accepted the licences
        self.requests: list[str] = []
        self.sent: Counter[str] = Counter()  # bytes of each file, "datasets/OWNER/NAME/FILE"
        self.status: int | None = None  # answers everything so where set
        self.whoami_status: int | None = None
        self.body = b"{}"  # of such an answer
        self.url = ""
        self.closing = threading.Event()

    def add(self, repo: str, files: dict[str, bytes], **facts) -> None:
        self.repos[repo] = {"files": files, "gated": False, **facts}


@contextmanager
def serve():
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()


def _handler(hub: FakeHub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def handle(self):
            with suppress(BrokenPipeError, ConnectionResetError):  # a client that gave up or has read enough
                super().handle()

        def do_GET(self):
            self.answer(body=True)

        def do_HEAD(self):
            self.answer(body=False)

        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            self.posted = self.rfile.read(length)
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            url = urlsplit(self.path)
            hub.requests.append(f"{self.command} {self.path}")
            path = unquote(url.path).strip("/")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if hub.status:
                return self.send(hub.status, hub.body, {"Retry-After": "7"}, body)
            if token and token != VALID_TOKEN:
                return self.refuse(401, "", "Invalid credentials in Authorization header", body)
            if path == "api/whoami-v2":
                return self.whoami(token, body)
            match = re.fullmatch(r"api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?", path)
            if match:
                return self.api(f"{match[1]}/{match[2]}", match[3] or "", token, body)
            match = re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if match:
                return self.file(f"{match[1] or 'models/'}{match[2]}", match[4], token, body)
            return self.send(404, b"{}", {}, body)

        def whoami(self, token: str, body: bool) -> None:
            if hub.whoami_status:
                return self.send(hub.whoami_status, b"{}", {"Retry-After": "7"}, body)
            if not token:
                return self.refuse(401, "", "Invalid username or password.", body)
            return self.send_json({"type": "user", "name": ACCOUNT}, body)

        def seen(self, key: str, token: str) -> dict | None:
            repo = hub.repos.get(key)
            return None if repo and repo.get("private") and not token else repo

        def api(self, key: str, rest: str, token: str, body: bool) -> None:
            repo = self.seen(key, token)
            if repo is None:
                status = 404 if token else 401
                return self.refuse(status, "RepoNotFound" if token else "", "Repository not found", body)
            if repo.get("stall"):
                time.sleep(repo["stall"])
            if rest == "auth-check":
                open_to_all = not repo["gated"] or (token and hub.accepted)
                return self.send_json({}, body) if open_to_all else self.gate(repo, token, body)
            if rest.startswith("tree/"):
                return self.send_json([_entry(name, data) for name, data in repo["files"].items()], body)
            if rest.startswith("paths-info/"):
                wanted = parse_qs(self.posted.decode()).get("paths", [])
                found = [_entry(name, repo["files"][name]) for name in wanted if name in repo["files"]]
                return self.send_json(found, body)
            if rest.startswith("revision/") and rest.split("/")[1] not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound", "Invalid rev id", body)
            answer = {
                "id": key.split("/", 1)[1],
                "sha": COMMIT,
                "gated": repo["gated"],
                "private": bool(repo.get("private")),
                "siblings": [{"rfilename": name, "size": len(data)} for name, data in repo["files"].items()],
                "cardData": {"license": "gemma"},
                "tags": [],
                "downloads": 0,
            }
            answer.update({name: repo[name] for name in ("config", "safetensors") if name in repo})
            return self.send_json(answer, body)

        def file(self, key: str, name: str, token: str, body: bool) -> None:
            repo = self.seen(key, token)
            if repo is None:
                return self.refuse(404, "RepoNotFound", "Repository not found", body)
            if repo["gated"] and not (token and hub.accepted):
                return self.gate(repo, token, body)
            if name not in repo["files"]:
                return self.refuse(404, "EntryNotFound", "Entry not found", body)
            if repo.get("file_status"):
                wait = {"Retry-After": repo["retry_after"]} if "retry_after" in repo else {}
                return self.send(repo["file_status"], b"{}", wait, body)
            data = repo["files"][name]
            start, status, headers = 0, 200, {}
            if ranged := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(ranged[1]), min(int(ranged[2] or len(data)), len(data) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
                status, data = 206, data[start : end + 1]
            etag = hashlib.sha1(repo["files"][name]).hexdigest()
            headers |= {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
            self.begin(status, headers, len(data))
            if body:
                self.transfer(f"{key}/{name}", start, data, repo)
            return None

        def transfer(self, file: str, start: int, data: bytes, repo: dict) -> None:
            """Sends the file up to the byte at which this repository falls silent or breaks off."""
            stops = [repo[name] for name in ("stall_at", "break_at") if name in repo]
            whole = not stops or stops[0] >= start + len(data)
            part = memoryview(data) if whole else memoryview(data)[: max(0, stops[0] - start)]
            for at in range(0, len(part), 1 << 16):
                hub.sent[file] += self.wfile.write(part[at : at + (1 << 16)])
            if "stall_at" in repo and not whole:
                hub.closing.wait(60)
            self.close_connection |= not whole

        def gate(self, repo: dict, token: str, body: bool) -> None:
            said = repo.get("said", "Access to it is restricted") if token else "You must be authenticated"
            self.refuse(403 if token else 401, "GatedRepo", said, body)

        def refuse(self, status: int, code: str, message: str, body: bool) -> None:
            headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
            self.send(status, json.dumps({"error": message}).encode(), headers, body)

        def send_json(self, value: object, body: bool) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body)

        def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.begin(status, headers, len(data))
            if body:
                self.wfile.write(data)

        def begin(self, status: int, headers: dict[str, str], length: int) -> None:
            self.send_response(status)
            for name, value in {"Accept-Ranges": "bytes", **headers, "Content-Length": length}.items():
                self.send_header(name, str(value))
            self.end_headers()

    return Handler


def _entry(name: str, data: bytes) -> dict:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
