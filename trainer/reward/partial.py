"""The share of a task's assertions that an answer meets: each is run alone, in a sandbox of its own. (no torch)

    def check(candidate):             def check(candidate):        def check(candidate):
        x = 1                    ▶        x = 1                        x = 1
        assert candidate(1) == x          assert candidate(1) == x
        assert candidate(2) == 3                                       assert candidate(2) == 3

A loop that asserts counts as one assertion.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace

from trainer.evaluate.suites import Task

CHECK = "check"


def single_assertions(task: Task) -> list[Task]:
    """Return the task once for each of its assertions, with no other one."""
    tree = ast.parse(task.tests)
    body = _body(tree, task)
    places = [place for place, statement in enumerate(body) if _asserts(statement)]
    found = []
    for kept in places:
        tree = ast.parse(task.tests)
        body = _body(tree, task)
        body[:] = [statement for place, statement in enumerate(body) if place == kept or place not in places]
        found.append(replace(task, tests=ast.unparse(tree)))
    return found


def _body(tree: ast.Module, task: Task) -> list[ast.stmt]:
    """The statements among which the assertions are: those of `check`, or MBPP's lines."""
    if task.form == "humaneval":
        for statement in tree.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == CHECK:
                return statement.body
    return tree.body


def _asserts(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(statement))


def share(verdicts: Sequence[bool]) -> float:
    """Return the share of assertions that hold. Without any, there is nothing to share."""
    return sum(verdicts) / len(verdicts) if verdicts else 0.0
