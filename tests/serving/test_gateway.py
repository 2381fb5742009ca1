"""The gateway under a real nginx. It forwards and streams four paths. Every other path is 404 in any spelling."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

NGINX = shutil.which("nginx")
CONF = Path(__file__).parents[2] / "serving" / "gateway.conf"
FIRST, SECOND = b"data: one\n\n", b"data: two\n\n"
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx-light)")


class Upstream(BaseHTTPRequestHandler):
    """Records requests. It sends a completion in two parts, the second after the test has seen the first."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, str | None]]
    first_was_seen: threading.Event

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.command, self.path, self.headers.get("Authorization")))
        self.send_response(200)
        if self.path.endswith("completions"):
            # The body has a Content-Length, because nginx forwards chunked bodies at once even if it buffers.
            self.send_header("Content-Length", str(len(FIRST + SECOND)))
            self.end_headers()
            self.wfile.write(FIRST)
            self.first_was_seen.wait(10)
            self.wfile.write(SECOND)
        else:
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    do_GET = do_POST = do_DELETE = do_PUT = answer

    def log_message(self, *arguments: object) -> None:
        pass


class Gateway:
    def __init__(self, port: int, upstream: type[Upstream]) -> None:
        self.port, self.upstream = port, upstream

    def open(self, request: str, body: bytes = b"") -> socket.socket:
        """Send a request line unchanged. An HTTP client would normalise the path."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        head = f"{request} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nConnection: close\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return connection

    def status(self, request: str) -> int:
        with self.open(request, b"{}") as connection, connection.makefile("rb") as answer:
            return int(answer.readline().split()[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    upstream = type("Here", (Upstream,), {"seen": [], "first_was_seen": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = free_port()
    conf = CONF.read_text()
    for before, after in (
        ("listen 8080", f"listen 127.0.0.1:{port}"),
        ("http://vllm:8000", f"http://127.0.0.1:{server.server_port}"),
    ):
        assert before in conf
        conf = conf.replace(before, after)
    (tmp_path / "gateway.conf").write_text(conf)
    scratch = "".join(
        f"{name}_temp_path {tmp_path}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (tmp_path / "nginx.conf").write_text(
        f"{user}daemon off;\nworker_processes 1;\npid {tmp_path}/nginx.pid;\nerror_log {tmp_path}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{scratch}include {tmp_path}/gateway.conf;\n}}\n"
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "error.log"])
    try:
        wait_for_port(port, process, tmp_path)
        yield Gateway(port, upstream)
    finally:
        process.terminate()
        process.wait(10)
        server.shutdown()
        server.server_close()


def wait_for_port(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "error.log").read_text()
            time.sleep(0.05)


def test_the_four_paths_are_forwarded_unchanged_with_the_key(gateway: Gateway):
    gateway.upstream.first_was_seen.set()
    requests = ["GET /health", "GET /v1/models", "POST /v1/completions", "POST /v1/chat/completions"]
    assert [gateway.status(request) for request in requests] == [200] * 4
    assert gateway.upstream.seen == [(*request.split(), "Bearer k") for request in requests]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/%6coad_lora_adapter", "/v1%2fload_lora_adapter",
        "//v1/load_lora_adapter", "/v1//load_lora_adapter", "/v1/./load_lora_adapter",
        "/v1/models/../load_lora_adapter",
        "/v1/models/%2e%2e/load_lora_adapter", "/v1/completions/..%2fload_lora_adapter",
        "/v1/models;/load_lora_adapter",
        "/V1/LOAD_LORA_ADAPTER", "/v1/load_lora_adapter/", "/v1/load_lora_adapter?x=/v1/models",
        "http://vllm:8000/v1/load_lora_adapter", "/adapters", "/adapters/x", "/v1/completions/render", "/v1/models/",
        "/v1/responses", "/v1/embeddings", "/metrics", "/version", "/docs", "/openapi.json", "/", "/pause", "/sleep",
    ],
)  # fmt: skip
def test_every_other_path_is_404_and_is_not_forwarded(gateway: Gateway, path: str):
    for method in ("GET", "POST", "DELETE"):
        assert gateway.status(f"{method} {path}") == 404
    assert gateway.upstream.seen == []


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter/../models", "//v1/models", "/v1/%6dodels", "/v1/models?a=b"])
def test_another_spelling_of_an_open_path_is_normalised(gateway: Gateway, path: str):
    assert gateway.status(f"GET {path}") == 200
    assert [seen[1] for seen in gateway.upstream.seen] == ["/v1/models"]


@pytest.mark.parametrize(
    "request_line", ["DELETE /v1/models", "POST /v1/models", "PUT /v1/completions", "POST /health"]
)
def test_other_methods_are_not_forwarded(gateway: Gateway, request_line: str):
    assert gateway.status(request_line) == 403
    assert gateway.upstream.seen == []


def test_a_completion_is_streamed(gateway: Gateway):
    with gateway.open("POST /v1/chat/completions", b'{"stream": true}') as connection:
        received = b""
        while FIRST not in received:
            received += connection.recv(4096)  # within 10 s, before the upstream sends the second part
        assert SECOND not in received
        gateway.upstream.first_was_seen.set()
        while piece := connection.recv(4096):
            received += piece
    assert SECOND in received
