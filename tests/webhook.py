"""A real HTTP server that takes alerts as the plain webhook of apprise (json://), or treats them badly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET, PASSWORD = "tok-5f1c9d", "pass-83ab21"
"""Parts of the address that nothing may show."""


class Webhook:
    """What has arrived, and how the server answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        """Path and body of all requests."""
        self.taken: list[dict[str, Any]] = []
        """Bodies that were answered with 200."""
        self.status: Callable[[int], int] = lambda number: 200
        """The status for each request, counted from 1."""
        self.location: str | None = None
        """Where each answer sends the client."""
        self.hanging = threading.Event()
        """Set: requests are read and never answered."""
        self.closing = threading.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"json://someone:{PASSWORD}@127.0.0.1:{self.port}/hooks/{SECRET}"

    def titles(self) -> list[str]:
        return [body["title"] for body in self.taken]

    def wait(self, count: int, seconds: float = 15.0) -> list[str]:
        """Wait until so many messages were taken, and return their titles."""
        deadline = time.monotonic() + seconds
        while len(self.taken) < count:
            assert time.monotonic() < deadline, f"{len(self.taken)} of {count} messages: {self.titles()}"
            time.sleep(0.02)
        return self.titles()


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Run the server while the block runs."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            hook.requests.append((self.path, body))
            if hook.hanging.is_set():
                hook.closing.wait(60)
                return
            status = hook.status(len(hook.requests))
            if status == 200:
                hook.taken.append(body)
            self.send_response(status)
            if hook.location is not None:
                self.send_header("Location", hook.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hook.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hook
    finally:
        hook.closing.set()
        server.shutdown()
        server.server_close()
