"""The page at `/` and its files. They are part of the package: the page needs no network but this service."""

from __future__ import annotations

import hashlib
import mimetypes
from importlib.metadata import version
from pathlib import Path

from flask import Flask, Response, jsonify, render_template, request
from werkzeug.exceptions import NotFound

from service.web.accept import preferred
from service.web.board import Board
from service.web.overview import overview

HERE = Path(__file__).parent
STATIC = HERE / "static"
TYPES = ("text/javascript", "text/css", "image/svg+xml")


def add_page(app: Flask, board: Board, paths: list[str], *, has_page: bool) -> None:
    """Add `/`: the page for browsers, and the list of endpoints for everybody else."""
    app.template_folder = str(HERE / "templates")
    files = _files()
    modules = [name for name in files if name.endswith(".js") and "/" not in name]  # asked for at once, not in turn
    release = version("codelupe")

    @app.get("/")
    def index() -> Response:
        offers = ["application/json", "text/html"]
        if not has_page or preferred(request.headers.get("Accept", ""), offers) == offers[0]:
            return jsonify({"service": "codelupe", "endpoints": paths})
        now = overview(board.read(), can_act=False, poll_seconds=0.0)
        text = render_template("page.html", now=now, version=release, modules=modules)
        return Response(text, content_type="text/html; charset=utf-8")

    @app.get("/static/<path:name>")
    def static_file(name: str) -> Response:
        if not has_page or name not in files:
            raise NotFound
        body, kind, tag = files[name]
        answer = Response(body, content_type=kind)
        answer.set_etag(tag)
        answer.headers["Cache-Control"] = "no-cache"  # asked for each time, sent only if it has changed
        answer.make_conditional(request)
        return answer


def _files() -> dict[str, tuple[bytes, str, str]]:
    """Return all static files by name: bytes, type and digest. No other file can be asked for."""
    found = {}
    for path in sorted(STATIC.rglob("*")):
        kind = (mimetypes.guess_type(path.name)[0] or "").replace("application/javascript", "text/javascript")
        if path.is_file() and kind in TYPES:
            body = path.read_bytes()
            found[path.relative_to(STATIC).as_posix()] = (body, kind, hashlib.sha256(body).hexdigest()[:32])
    return found
