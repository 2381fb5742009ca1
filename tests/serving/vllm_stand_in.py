"""A small server with vLLM's protocol for adapters, over a real socket. Its answers are those of vLLM 0.32.

It does not cover batching, streaming, or the engine's limits on the rank and number of adapters.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import waitress
from flask import Flask, Response, jsonify, request

BASE = "tiny-qwen2"
KEY = "the-right-key"
Fault = Callable[[], Response | None]


def error(status: int, message: str, kind: str) -> Response:
    answer = jsonify({"error": {"message": message, "type": kind, "param": None, "code": status}})
    answer.status_code = status
    return answer


class StandIn:
    """One server. `stop` and `start` restart it on the same port, and it forgets every name."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        """(what, name) of every call with the right key."""
        self.faults: dict[tuple[str, str], Fault] = {}
        """Faults that replace a call, by (what, name). If a fault returns None, the call goes through."""
        self.runtime_loading = True
        self.port = 0
        self._release = threading.Event()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.loaded.clear()
        self._release.clear()
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        listening.listen(64)
        self.port = listening.getsockname()[1]
        self._server = waitress.create_server(self._app(), sockets=[listening], threads=4)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # closed below
            self._server.run()

    def stop(self) -> None:
        self._release.set()
        self._server.close()
        for channel in list(self._server._map.values()):
            channel.close()
        self._thread.join(5)

    # --- faults --------------------------------------------------------------------------------------------

    def hang(self) -> Response | None:
        """Give no answer until the server stops."""
        self._release.wait(60)
        return None

    def die(self) -> Response | None:
        """Stop the server during the call. It loses all its state."""
        threading.Thread(target=self.stop).start()
        self._release.wait(60)
        time.sleep(0.2)
        return None

    def broken(self) -> Response:
        return error(500, "EngineCore encountered an issue.", "InternalServerError")

    # --- the protocol --------------------------------------------------------------------------------------

    def _app(self) -> Flask:
        app = Flask("vllm")

        @app.before_request
        def key() -> Response | None:
            if request.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {KEY}":
                refused = jsonify({"error": "Unauthorized"})
                refused.status_code = 401
                return refused
            return None

        @app.get("/v1/models")
        def models() -> Response:
            return self._answer("models", "", self._models)

        @app.post("/v1/completions")
        def completions() -> Response:
            body = request.get_json()
            return self._answer("complete", body["model"], lambda: self._complete(body))

        if self.runtime_loading:
            self._add_loading(app)

        @app.errorhandler(404)
        @app.errorhandler(405)
        def no_route(problem: Any) -> Response:
            return Response(json.dumps({"detail": problem.name}, separators=(",", ":")), problem.code)

        return app

    def _add_loading(self, app: Flask) -> None:
        @app.post("/v1/load_lora_adapter")
        def load() -> Response:
            body = request.get_json()
            return self._answer("load", body["lora_name"], lambda: self._load(body["lora_name"], body["lora_path"]))

        @app.post("/v1/unload_lora_adapter")
        def unload() -> Response:
            name = request.get_json()["lora_name"]
            return self._answer("unload", name, lambda: self._unload(name))

    def _answer(self, what: str, name: str, answer: Callable[[], Response]) -> Response:
        self.calls.append((what, name))
        fault = self.faults.get((what, name))
        return (fault() if fault else None) or answer()

    def _models(self) -> Response:
        cards = [{"id": BASE, "object": "model", "root": "/models/base", "parent": None}]
        cards += [{"id": name, "object": "model", "root": path, "parent": BASE} for name, path in self.loaded.items()]
        return jsonify({"object": "list", "data": cards})

    def _load(self, name: str, path: str) -> Response:
        if name in self.loaded:
            message = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, …"
            return error(400, message, "InvalidUserInput")
        if not (Path(path) / "adapter_config.json").exists():
            return error(404, f"Loading lora {name} failed: No adapter found for <path>", "NotFoundError")
        self.loaded[name] = path
        return Response(f"Success: LoRA adapter '{name}' added successfully.")

    def _unload(self, name: str) -> Response:
        if name not in self.loaded:
            return error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.loaded[name]
        return Response(f"Success: LoRA adapter '{name}' removed successfully.")

    def _complete(self, body: dict[str, Any]) -> Response:
        name = body["model"]
        if name != BASE and name not in self.loaded:
            return error(404, f"The model `{name}` does not exist. Valid aliases: {BASE}.", "NotFoundError")
        number = json.loads((Path(self.loaded[name]) / "adapter_config.json").read_text())["answers"]
        if number != number:
            return error(400, "Out of range float values are not JSON compliant", "BadRequestError")
        choice = {"index": 0, "text": "x", "logprobs": {"token_logprobs": [number] * body["max_tokens"]}}
        return jsonify({"object": "text_completion", "model": name, "choices": [choice]})
