"""A W&B server as small as `wandb sync` needs it: it takes runs and their curves, and keeps them in memory.

There is no W&B server here, so this stands in for one. What talks to it is wandb itself.
"""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """What was sent, by run."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.away = False
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        """The rows of each run's curves, at their offsets."""
        self.runs: dict[str, dict[str, Any]] = {}
        """The last upsert of each run."""
        self.artifacts: list[dict[str, Any]] = []
        self.operations: list[str] = []
        self.keys: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        """Answer nobody any more."""
        self.away = True


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        sent = self._body()
        if self.server.away:
            return self.connection.close()
        if "graphql" not in self.path and "file_stream" not in self.path:  # W&B's own telemetry
            return self._answer({})
        body = json.loads(sent or b"{}")
        self.server.keys.add(self.headers.get("Authorization", ""))
        if self.path.endswith("/graphql"):
            return self._answer({"data": self._graphql(body)})
        if found := re.search(r"/files/[^/]*/[^/]*/([^/]+)/file_stream", self.path):
            rows = self.server.history[found[1]]
            stream = body.get("files", {}).get("wandb-history.jsonl")
            if stream:
                del rows[stream["offset"] :]
                rows += [json.loads(line) for line in stream["content"]]
        return self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def _graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        query, given = body["query"], body.get("variables") or {}
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = name[1] if name else "?"
        self.server.operations.append(operation)
        match operation:
            case "UpsertBucket":
                return {"upsertBucket": self._upsert(given)}
            case "RunResumeStatus":
                return {"model": self._resume(given["name"])}
            case "CreateArtifact":
                self.server.artifacts.append(given["input"])
                sequence = {"id": "s", "latestArtifact": None}
                return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
            case "Viewer":
                return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            case _:
                return {}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        run = given["name"]
        new = run not in self.server.runs
        self.server.runs[run] = {**self.server.runs.get(run, {}), **{k: v for k, v in given.items() if v is not None}}
        project = {"id": "p", "name": given.get("project") or "p", "entity": {"id": "e", "name": "me"}}
        bucket = {
            "id": f"id-{run}", "name": run, "displayName": given.get("displayName") or run, "description": "",
            "config": given.get("config") or "{}", "sweepName": None, "project": project,
            "historyLineCount": len(self.server.history[run]),
        }  # fmt: skip
        return {"bucket": bucket, "inserted": new}

    def _resume(self, run: str) -> dict[str, Any] | None:
        if run not in self.server.runs:
            return {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": None}
        rows = self.server.history[run]
        bucket = {
            "id": f"id-{run}", "name": run, "historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(rows[-1])] if rows else []), "eventsTail": "[]",
            "config": self.server.runs[run].get("config") or "{}", "summaryMetrics": "{}", "tags": [],
            "wandbConfig": "{\"t\": 1}",
        }  # fmt: skip
        return {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Nothing: a test's output is for its failures."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
