"""Runs each program once: many answers to an easy task are the same. (no torch)

What does not parse is not run at all.
"""

from __future__ import annotations

import ast
import threading
import warnings
from concurrent.futures import Future

from trainer.evaluate.execute import Runner
from trainer.evaluate.sandbox.limits import Outcome
from trainer.evaluate.suites import Task


class Once:
    """A runner that remembers its verdicts. Several threads may call it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._verdicts: dict[tuple[str, str, str], Future[Outcome]] = {}
        self._lock = threading.Lock()

    def __call__(self, task: Task, completion: str) -> Outcome:
        """Return the verdict on an answer."""
        program = task.program(completion)
        if parsed(program) is None:
            return Outcome(passed=False, reason="SyntaxError: the answer is not Python", seconds=0.0)
        key = (task.task_id, task.tests, program)
        with self._lock:
            mine = key not in self._verdicts
            verdict = self._verdicts.setdefault(key, Future())
        if mine:
            try:
                verdict.set_result(self._runner(task, completion))
            except BaseException as error:  # noqa: BLE001 — other threads wait for this verdict
                verdict.set_exception(error)
        return verdict.result()


def parsed(program: str) -> ast.Module | None:
    """Return the program's tree, or None if it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
