"""A hub on this machine: the few addresses that a push needs, and what was asked of them."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_right"


@dataclass
class FakeHub:
    """asked: (method, path) in order. created: bodies of requests for repositories. cards: front matter that it was to
    check. commits: path in the repository -> content of each commit. refuse: path -> status that it answers."""

    address: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    cards: list[str] = field(default_factory=list)
    commits: list[dict[str, bytes]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """Status and content."""
        self.asked.append((method, path))
        if path.startswith("/upload/"):  # addresses that the hub itself gave out need no token
            self.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        if path in self.refuse:
            return self.refuse[path], {"error": "not today", "url": f"{self.address}/owner/name"}
        if path == "/api/whoami-v2":
            return 200, {"name": "owner", "type": "user"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.address}/owner/name"}
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return 200, {
                "files": [{**file, "uploadMode": _mode(file["path"]), "shouldIgnore": False} for file in asked]
            }
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._target(o) for o in json.loads(body)["objects"]]}
        if "/commit/" in path:
            self.commits.append(self._commit(body))
            return 200, {"commitUrl": f"{self.address}/owner/name/commit/1", "commitOid": "1" * 40, "success": True}
        if path.startswith("/api/models/"):
            return 200, {"id": "owner/name", "sha": "0" * 40, "siblings": []}
        return 404, {"error": f"nothing at {path}"}

    def _target(self, wanted: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.address}/upload/{wanted['oid']}", "header": {}}
        return {**wanted, "authenticated": True, "actions": {"upload": upload}}

    def _commit(self, body: bytes) -> dict[str, bytes]:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        return files


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Within: it answers at `address`."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            status, content = hub.answer(self.command, path, self.headers.get("Authorization", ""), body)
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = _serve  # noqa: N815 - names of http.server

        def log_message(self, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
