"""A small server with OpenAI's API for completions, over a real socket. It stands for vLLM, which needs a GPU."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "the-right-key"
Answer = Callable[[dict[str, Any]], str]


class StandIn:
    """One server. It answers with the text of a function."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.faults: list[tuple[int, str]] = []
        """Status and body of the next answers."""
        self.finish = "stop"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, text = outer.respond(self.path, body, self.headers.get("Authorization"))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def respond(self, path: str, body: dict[str, Any], key: str | None) -> tuple[int, str]:
        self.calls.append((path, body))
        if key != f"Bearer {KEY}":
            return 401, '{"error": "Unauthorized"}'
        if self.faults:
            return self.faults.pop(0)
        text = self.answer(body)
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish}
        choice |= {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        return 200, json.dumps({"choices": [choice], "usage": {"completion_tokens": len(text.split())}})

    def run(self) -> None:
        self._server.serve_forever(0.05)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def stand_in(answer: Answer) -> Iterator[StandIn]:
    server = StandIn(answer)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
