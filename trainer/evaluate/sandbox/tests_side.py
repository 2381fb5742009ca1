"""Runs inside the tests' sandbox: executes the benchmark's tests, which call the candidate through pipes.

Nothing here executes or unpickles what came from the candidate. Its answers are rebuilt as builtin types (`wire.py`).
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainer.evaluate.sandbox.candidate_side import LONGEST_TEXT
from trainer.evaluate.sandbox.entry import read_job
from trainer.evaluate.sandbox.wire import Link, WireError, decode, encode

TESTS = "<tests>"
ENDS_LOOPS = (StopIteration, StopAsyncIteration)


class CandidateError(Exception):
    """The candidate raised an exception that is not a builtin one, or that ends a process."""


class Candidate:
    """The candidate, as the tests see it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._functions: list[Callable[..., Any]] = []
        self.answers = 0
        """Number of calls that were answered."""
        self.broken = ""
        """Why no more answers come. Stays, even if a test catches the exception."""

    def load(self) -> None:
        """Wait until the candidate's code is executed. Raises what it raised."""
        self._wait()

    def ask(self, kind: str, name: str, **rest: Any) -> Any:
        """Send a request, and wait for its answer. Raises what the candidate raised."""
        try:
            self._link.send({"kind": kind, "name": name, **rest})
        except WireError as error:
            raise self._breaks(error) from None
        value = self._wait()
        self.answers += 1
        return value

    def encode(self, value: Any) -> Any:
        """Encode an argument. The candidate's own objects keep their number, and functions get one."""
        return encode(value, self._refer)

    def _wait(self) -> Any:
        try:
            while "function" in (message := self._link.receive()):
                self._link.send(self._run_function(message))
            if "raised" not in message:
                return decode(message.get("value"), lambda number: Remote(self, number))
        except (WireError, RecursionError) as error:
            raise self._breaks(error) from None
        raise _rebuilt(str(message["raised"]), str(message.get("text")))

    def _run_function(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run a function that the tests passed as an argument."""
        arguments = decode(message.get("arguments"), lambda number: Remote(self, number))
        try:
            function = self._functions[-int(message["function"]) - 1]
            return {"value": self.encode(function(*arguments))}
        except (WireError, RecursionError):
            raise
        except Exception as error:  # noqa: BLE001 — the candidate handles it, or it comes back as its exception
            return {"raised": type(error).__name__, "text": str(error)[:LONGEST_TEXT]}

    def _refer(self, value: Any) -> int:
        if isinstance(value, Remote):
            return int(object.__getattribute__(value, "_number"))
        if not callable(value):
            raise TypeError(f"the tests pass a {type(value).__name__}, which cannot travel to the candidate")
        self._functions.append(value)
        return -len(self._functions)

    def _breaks(self, error: WireError | RecursionError) -> CandidateError:
        self.broken = self.broken or f"the candidate {error if isinstance(error, WireError) else 'nests too deeply'}"
        return CandidateError(self.broken)


class Function:
    """A function or class of the candidate, by name."""

    def __init__(self, candidate: Candidate, name: str, target: int | None = None) -> None:
        self._candidate, self._name, self._target = candidate, name, target

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._candidate.ask(
            "call",
            self._name,
            target=self._target,
            arguments=[self._candidate.encode(value) for value in arguments],
            named=[[key, self._candidate.encode(value)] for key, value in named.items()],
        )


class Remote:
    """An object that stays in the candidate's process. Tests may read and set its attributes, and pass it on.

    It has no truth value and equals nothing: no assertion may hold because of an object that the candidate wrote.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, candidate: Candidate, number: int) -> None:
        object.__setattr__(self, "_candidate", candidate)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return self._candidate.ask("get", name, target=self._number)

    def __setattr__(self, name: str, value: Any) -> None:
        self._candidate.ask("set", name, target=self._number, arguments=self._candidate.encode(value))

    def __bool__(self) -> bool:
        raise TypeError("the candidate returned an object that is not plain data")

    def __eq__(self, other: object) -> bool:
        raise TypeError("the candidate returned an object that is not plain data")


def _rebuilt(name: str, text: str) -> Exception:
    """The exception that the candidate raised, if it is a builtin one. Tests may expect it.

    StopIteration would end a loop of the tests over `map(candidate, …)` without a failure.
    """
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, ENDS_LOOPS):
        try:
            return kind(text)
        except TypeError:
            pass  # UnicodeDecodeError and its like need more arguments
    return CandidateError(f"{name}: {text}")


def run_tests(job: Mapping[str, Any], candidate: Candidate) -> str:
    """Run the tests. Returns why they did not pass, or an empty text."""
    try:
        candidate.load()
        _execute(job, candidate)
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 — every one is a verdict
        return candidate.broken or _described(error, job["tests"])
    if candidate.broken:
        return candidate.broken
    return "" if candidate.answers else "the tests never called the candidate"


def _execute(job: Mapping[str, Any], candidate: Candidate) -> None:
    """Execute what the benchmark says: helpers, then tests, then HumanEval's `check`."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    exec(compile(job["helpers"], "<prompt>", "exec"), namespace)
    function = Function(candidate, job["entry_point"])
    namespace[job["entry_point"]] = function
    for name in unknown_names(job["tests"], namespace):
        standard = name in sys.stdlib_module_names
        namespace[name] = importlib.import_module(name) if standard else Function(candidate, name)
    exec(compile(job["tests"], TESTS, "exec"), namespace)
    if job["check"]:
        namespace["check"](function)


def unknown_names(code: str, known: Mapping[str, Any]) -> Iterator[str]:
    """Names that code uses and nothing defines: MBPP's tests use what the candidate imports and defines."""
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    stored = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | _defined(code)
    loaded = dict.fromkeys(node.id for node in names if isinstance(node.ctx, ast.Load))
    return (name for name in loaded if name not in stored and name not in known and not hasattr(builtins, name))


def _defined(code: str) -> set[str]:
    """Names of functions, classes, parameters and imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return names


def _described(error: BaseException, tests: str) -> str:
    """The exception, and the line of the tests where it came up."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == TESTS]
    line = tests.splitlines()[lines[-1] - 1].strip() if lines and lines[-1] else ""
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    return f"{text} (in `{line}`)"[:LONGEST_TEXT] if line else text[:LONGEST_TEXT]


def main() -> None:
    """Run the tests, and write the verdict to the parent."""
    job = read_job()
    link = Link(read_from=job["read_from"], write_to=job["write_to"], max_bytes=job["answer_bytes"])
    reason = run_tests(job, Candidate(link))
    os.write(job["verdict"], json.dumps({"token": job["token"], "reason": reason}).encode("ascii") + b"\n")
