"""Asks a sandbox in another container to run a task (SANDBOX_SOCKET)."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.limits import Outcome
from trainer.evaluate.suites import Task

ANSWER_SECONDS = 600.0
"""Tasks wait for each other there."""
MOST_BYTES = 1024 * 1024


class RemoteSandbox:
    """The sandbox behind a Unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self) -> str:
        """Return what it stands on.

        Raises:
            UnusableInput: it does not answer.
        """
        return str(self._ask({"ping": True}).get("ready"))

    def run_task(self, task: Task, completion: str) -> Outcome:
        """Run a task's tests against what a model wrote.

        Raises:
            UnusableInput: it does not answer, or cannot judge.
        """
        answer = self._ask({"task": asdict(task), "completion": completion})
        try:
            return Outcome(passed=answer["passed"] is True, reason=str(answer["reason"]), seconds=answer["seconds"])
        except KeyError as error:
            raise UnusableInput(f"the sandbox at {self._path} answers in an unknown form: {answer}") from error

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ANSWER_SECONDS)
                connection.connect(str(self._path))
                connection.sendall(json.dumps(message).encode("ascii") + b"\n")
                with connection.makefile("rb") as file:
                    line = file.readline(MOST_BYTES)
            answer = json.loads(line)
        except (OSError, ValueError) as error:
            raise UnusableInput(
                f"the sandbox at {self._path} (SANDBOX_SOCKET) does not answer ({error}). Start it: "
                "docker-compose --profile evaluation up -d sandbox"
            ) from error
        if not isinstance(answer, dict) or "error" in answer:
            said = answer.get("error") if isinstance(answer, dict) else answer
            raise UnusableInput(f"the sandbox at {self._path} cannot run the task: {said}")
        return answer
