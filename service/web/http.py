"""The HTTP server: probes, metrics, the page and the API. Only POSTs change anything."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import waitress
from flask import Flask, Response, jsonify, request
from waitress import wasyncore
from waitress.server import BaseWSGIServer
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from db.errors import DatabaseError
from service.errors import PreconditionError
from service.web.accept import preferred
from service.web.api import Commands, endpoints
from service.web.board import STALE_HEARTBEAT_SECONDS, Board
from service.web.endpoint import MAX_BODY_BYTES, add_api
from service.web.exposition import json_metrics, prometheus_metrics
from service.web.guard import add_guards
from service.web.openapi import document
from service.web.page import add_page
from service.web.views import Views

FORMATS = {"json": "application/json", "prometheus": "text/plain", "openmetrics": "application/openmetrics-text"}
"""The values of `?format=` on /metrics, and the media types of Accept. The first is the default."""


PATHS = ("/health", "/livez", "/readyz", "/metrics", "/metrics?format=prometheus", "/api/runs", "/api/adapters")


@dataclass(frozen=True, kw_only=True)
class Actions:
    """Operations for POST and /api requests."""

    request_training: Callable[[], None]
    run_history: Callable[[], list[dict[str, Any]]]
    adapter_history: Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Site:
    """What the page and /api/v1 need."""

    views: Views
    commands: Commands
    host: str
    """Where the service listens."""
    public_url: str | None


def create_app(board: Board, actions: Actions, *, token: str | None, site: Site | None = None) -> Flask:
    """Create the Flask application. Without a token, every POST is refused. Without a site, there is no page."""
    app = Flask("codelupe", static_folder=None)
    app.url_map.strict_slashes = False  # /health/ is /health
    _add_probes(app, board)
    _add_metrics(app, board)
    _add_api(app, actions)
    if site is not None:
        found = endpoints(board, site.views, site.commands, token=token)
        add_api(app, found, token=token, document=document(found))
    add_page(app, board, [*PATHS, *(["/api/v1/openapi.json"] if site else [])], has_page=site is not None)
    add_guards(app, token=token, host=site.host if site else "", public_url=site.public_url if site else None)
    _add_errors(app)
    return app


def _add_probes(app: Flask, board: Board) -> None:
    started = time.time()

    @app.get("/health")
    def health() -> tuple[Response, int]:
        snapshot = board.read()
        status, reason = snapshot.health()
        body = {
            "status": status,
            "reason": reason,
            "state": snapshot.state,
            "stream": snapshot.stream,
            "model": snapshot.model,
            "current_version": snapshot.current_version,
            "served_version": snapshot.served_version,
            "run": snapshot.progress.run_id if snapshot.progress else None,
            "uptime_seconds": round(time.time() - started, 1),
        }
        return jsonify(body), 503 if status == "unhealthy" else 200

    @app.get("/livez")
    def livez() -> tuple[Response, int]:
        age = board.read().heartbeat_age_seconds()
        alive = age <= STALE_HEARTBEAT_SECONDS
        return jsonify({"alive": alive, "heartbeat_age_seconds": round(age, 1)}), 200 if alive else 503

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        snapshot = board.read()
        checks = {
            "database": snapshot.database_ready and "database" not in snapshot.troubles,
            "migrations": snapshot.migrations_ready,
            "disk": "disk" not in snapshot.troubles,
        }
        ready = all(checks.values())
        return jsonify({"ready": ready, "checks": checks}), 200 if ready else 503


def _add_metrics(app: Flask, board: Board) -> None:
    @app.get("/metrics")
    def metrics() -> tuple[Response, int]:
        accept = request.headers.get("Accept", "")
        wanted = request.args.get("format")
        if wanted is not None and wanted.lower() not in FORMATS:
            return jsonify({"error": f"format={wanted} is not known. Use one of {', '.join(FORMATS)}"}), 400
        kind = FORMATS[wanted.lower()] if wanted else preferred(accept, list(FORMATS.values()))
        if kind == FORMATS["json"]:
            return jsonify(json_metrics(board.read())), 200
        body, content_type = prometheus_metrics(board, accept if "openmetrics" in kind and not wanted else kind)
        return Response(body, headers={"Content-Type": content_type}), 200


def _add_api(app: Flask, actions: Actions) -> None:
    @app.get("/api/runs")
    def runs() -> Response:
        return jsonify(actions.run_history())

    @app.get("/api/adapters")
    def adapters() -> Response:
        return jsonify(actions.adapter_history())

    @app.post("/api/train")
    def train() -> tuple[Response, int]:
        actions.request_training()
        return jsonify({"accepted": True}), 202


def _add_errors(app: Flask) -> None:
    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[Response, int]:
        answer = jsonify({"error": f"{error.name}: {request.method} {request.path}"})
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            answer.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return answer, error.code or 500

    @app.errorhandler(DatabaseError)
    def database_error(error: DatabaseError) -> tuple[Response, int]:
        return jsonify({"error": str(error)}), 503


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Port 0 selects any free port.

    Raises:
        PreconditionError: the address is not available. The message names the variables to change.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = infos[0]
        server = socket.socket(family, kind, protocol)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(1024)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that IDNA cannot encode, such as a..b
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise PreconditionError(
            f"cannot listen on {host}:{port} ({reason}). "
            "Choose another port with METRICS_PORT or --port, or another address with METRICS_HOST"
        ) from error
    return server


THREADS = 8
"""More than the requests that may read the database at a time, so that probes are always answered."""


CLOSE_SECONDS = 2.0


class HttpServer:
    """Runs waitress in a thread."""

    def __init__(self, app: Flask, listening: socket.socket) -> None:
        # With the defaults, 600 half-open requests block the server. With these limits they do not.
        self._server: BaseWSGIServer = waitress.create_server(
            app,
            sockets=[listening],
            threads=THREADS,
            connection_limit=1000,
            channel_timeout=10,
            max_request_body_size=MAX_BODY_BYTES,  # the default is 1 GB, which waitress keeps below /tmp
            asyncore_use_poll=True,
            ident="codelupe",
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing.is_set():
            wasyncore.loop(timeout=1.0, use_poll=True, map=self._server._map, count=1)

    def close(self) -> None:
        """Stop the server. Answers in progress have a moment: a thread whose socket is gone prints a traceback."""
        self._closing.set()
        self._server.task_dispatcher.shutdown(cancel_pending=True, timeout=CLOSE_SECONDS)
        self._server.pull_trigger()  # ends the wait of the loop
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        wasyncore.close_all(self._server._map, ignore_all=True)
