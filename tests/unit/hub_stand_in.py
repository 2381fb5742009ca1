"""A small Hugging Face Hub over a real socket, as far as an upload needs it. The real one cannot be reached here."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_right"


class Hub:
    """Repositories by name, with their files and whether they are private."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.hangs = False
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.hangs:
                    outer.released.wait(30)
                self.answer(*outer.post(self.path, body, self.headers.get("Authorization")))

            def do_GET(self) -> None:
                self.answer(*outer.get(self.path))

            def answer(self, status: int, record: dict[str, Any]) -> None:
                data = json.dumps(record).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        name = path.partition("?")[0].removeprefix("/api/models/").removesuffix("/revision/main")
        found = self.repositories.get(name)
        if found is None:
            return 404, {"error": "Repository not found"}
        return 200, {
            "id": name,
            "modelId": name,
            "private": found["private"],
            "sha": "a" * 40,
            "siblings": [],
            "tags": [],
        }

    def post(self, path: str, body: bytes, key: str | None) -> tuple[int, dict[str, Any]]:
        if key != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid token"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            url = {"url": f"{self.url}/{name}"}
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", **url}
            private = asked.get("private", asked.get("visibility") == "private")
            self.repositories[name] = {"private": private, "files": {}}
            return 200, url
        name = "/".join(path.removeprefix("/api/models/").split("/")[:-2])
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[name]["files"][line["value"]["path"]] = content
            return 200, {"success": True, "commitOid": "b" * 40, "commitUrl": f"{self.url}/{name}/commit/{'b' * 40}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        return 404, {"error": f"no such place: {path}"}

    def run(self) -> None:
        self._server.serve_forever(0.05)

    def stop(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
