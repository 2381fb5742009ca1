"""Runs inside the candidate's sandbox: loads the code that a model wrote, and answers calls to it.

The code can change everything in this process, this file included. That gains it nothing: all it can send is answers.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from trainer.evaluate.sandbox.entry import read_job
from trainer.evaluate.sandbox.wire import Link, WireError, decode, encode

LONGEST_TEXT = 300


class Answerer:
    """Answers messages. Keeps what cannot travel, under a number."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._objects: list[Any] = []
        self.module = types.ModuleType("candidate")

    def load(self, code: str) -> dict[str, Any]:
        """Execute the code, and return the first message."""
        sys.modules["candidate"] = self.module  # dataclasses look their module up
        return self._attempt(lambda: exec(compile(code, "<candidate>", "exec"), self.module.__dict__))

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one request."""
        return self._attempt(lambda: self._value(**request))

    def _attempt(self, action: Any) -> dict[str, Any]:
        try:
            return {"value": encode(action(), self._refer)}
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 — the tests' process judges it
            return {"raised": type(error).__name__, "text": _text(error)}

    def _value(self, kind: str, name: str, target: int | None = None, arguments: Any = (), named: Any = ()) -> Any:
        owner = self.module if target is None else self._objects[target]
        if kind == "call":
            function = getattr(owner, name)
            return function(
                *(decode(value, self._resolve) for value in arguments),
                **{key: decode(value, self._resolve) for key, value in named},
            )
        if kind == "set":
            return setattr(owner, name, decode(arguments, self._resolve))
        return getattr(owner, name)

    def _refer(self, value: Any) -> int:
        self._objects.append(value)
        return len(self._objects) - 1

    def _resolve(self, number: int) -> Any:
        """An own object has a number from 0. A function of the tests has a negative one."""
        if number >= 0:
            return self._objects[number]
        return lambda *arguments: self._call_back(number, arguments)

    def _call_back(self, number: int, arguments: Any) -> Any:
        """Call a function of the tests, which wait for an answer meanwhile."""
        self._link.send({"function": number, "arguments": [encode(value, self._refer) for value in arguments]})
        reply = self._link.receive()
        if "value" not in reply:
            raise RuntimeError(reply.get("text"))
        return decode(reply["value"], self._resolve)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:LONGEST_TEXT]
    except Exception:  # noqa: BLE001 — the candidate's own exception may fail to describe itself
        return ""


def main() -> None:
    """Serve until the tests' process closes the pipe."""
    job = read_job()
    answerer = Answerer(link := Link(read_from=job["read_from"], write_to=job["write_to"], max_bytes=sys.maxsize))
    try:
        link.send(answerer.load(job["code"]))
        while True:
            link.send(answerer.answer(link.receive()))
    except WireError:
        return
