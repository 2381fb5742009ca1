"""`python -m trainer sandbox --listen PATH`: runs tasks for a trainer in another container, over a Unix socket.

One line of JSON asks, one answers; then the connection closes.

    {"task": {…}, "completion": "…"}   {"passed": true, "reason": "", "seconds": 0.06}
    {"ping": true}                     {"ready": "/usr/bin/bwrap, …"}
    anything that cannot be done       {"error": "…"}

Who can open the socket can run code, in the sandbox and within its limits. It reads no file and no network for them.
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError, UnusableInput
from trainer.evaluate.sandbox.bubblewrap import Sandbox, check_available
from trainer.evaluate.sandbox.run import run_task
from trainer.evaluate.suites import Task
from trainer.stop import write_stderr

MOST_BYTES = 4 * 1024 * 1024
"""Longest line that is read."""
READ_SECONDS = 30.0
MOST_CONNECTIONS = 64


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """As many tasks at once as there are processors. Others wait."""

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, path: str, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.places = threading.BoundedSemaphore(max(1, os.cpu_count() or 1))
        super().__init__(path, _Handler)


class _Handler(socketserver.StreamRequestHandler):
    timeout = READ_SECONDS
    server: _Server

    def handle(self) -> None:
        with suppress(OSError):  # the other side is gone, or sends nothing
            line = self.rfile.readline(MOST_BYTES)
            self.wfile.write(json.dumps(self._answer(line)).encode("ascii") + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        if not line.endswith(b"\n"):
            return {"error": f"a request is one line of at most {MOST_BYTES} bytes"}
        try:
            message = json.loads(line)
            if message.get("ping"):
                return {"ready": self.server.sandbox.describe()}
            task, completion = Task(**message["task"]), message["completion"]
            if not all(isinstance(text, str) for text in (completion, task.prompt, task.tests, task.helpers)):
                raise TypeError("completion, prompt, tests and helpers must be texts")
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            return {"error": f"the request is not a task ({type(error).__name__}: {error})"}
        with self.server.places:
            try:
                return asdict(run_task(task, completion))
            except TrainerError as error:
                return {"error": str(error)}


def listen(path: Path) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        UnusableInput: the sandbox does not start here, or the socket cannot be made.
    """
    sandbox = check_available()
    try:
        path.unlink(missing_ok=True)  # of an earlier start, which is gone: containers do not share a process
        before = os.umask(0)  # the trainer has another user; who may reach the folder decides
        try:
            server = _Server(str(path), sandbox)
        finally:
            os.umask(before)
    except OSError as error:
        raise UnusableInput(f"the socket {path} cannot be made ({error}). Name a writable folder") from error
    with server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        write_stderr(f"listening on {path}: {sandbox.describe()}")
        server.serve_forever(0.2)
    path.unlink(missing_ok=True)
