"""HumanEval's and MBPP's own solutions pass in the sandbox, and broken ones fail."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.sandboxed import DATA
from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.bubblewrap import check_available
from trainer.evaluate.sandbox.limits import Limits, Outcome
from trainer.evaluate.sandbox.run import run_task
from trainer.evaluate.suites import Task, read_suite

LIMITS = Limits(wall_seconds=60, cpu_seconds=60)
"""MBPP/123 computes for seconds, and the machine may be busy."""

BROKEN = {
    "returns nothing": "    return None\n",
    "raises": "    raise ValueError('broken')\n",
    "ends the process": "    import os; os._exit(0)\n",
    "is no Python": "    return (\n",
}


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> None:
    try:
        check_available()
    except UnusableInput as error:
        pytest.skip(str(error))


def tasks(name: str) -> tuple[Task, ...]:
    path: Path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return read_suite(path)


def run_all(suite: Sequence[Task], completion: Callable[[Task], str]) -> dict[str, Outcome]:
    with ThreadPoolExecutor(3) as threads:
        outcomes = threads.map(lambda task: run_task(task, completion(task), LIMITS), suite)
        return {task.task_id: outcome for task, outcome in zip(suite, outcomes, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "every", "number"),
    [
        ("HumanEval.jsonl.gz", 1, 164),
        ("mbpp.jsonl.gz", 5, 195),
        pytest.param("mbpp.jsonl.gz", 1, 974, marks=pytest.mark.long),  # takes a minute: pytest -m long
    ],
)
def test_the_given_solutions_pass(name: str, every: int, number: int) -> None:
    outcomes = run_all(tasks(name)[::every], lambda task: task.solution)
    assert len(outcomes) == number
    assert not {task: outcome.reason for task, outcome in outcomes.items() if not outcome.passed}


@pytest.mark.slow
def test_broken_solutions_of_humaneval_fail() -> None:
    suite = tasks("HumanEval.jsonl.gz")
    bodies = list(BROKEN.values())
    numbers = {task.task_id: number for number, task in enumerate(suite)}
    outcomes = run_all(suite, lambda task: bodies[numbers[task.task_id] % len(bodies)])
    assert len(outcomes) == 164
    assert not [task for task, outcome in outcomes.items() if outcome.passed]


@pytest.mark.slow
def test_broken_solutions_of_mbpp_fail() -> None:
    suite = [task for task in tasks("mbpp.jsonl.gz") if task.split == "validation"]
    outcomes = run_all(suite, lambda task: f"def {task.entry_point}(*values):\n    return object()")
    assert not [task for task, outcome in outcomes.items() if outcome.passed]


@pytest.mark.parametrize("number", [32, 38, 50], ids=lambda number: f"HumanEval/{number}")
def test_tests_use_helpers_that_the_prompt_defines(number: int) -> None:
    task = tasks("HumanEval.jsonl.gz")[number]
    assert run_task(task, task.solution, LIMITS).passed
    assert not run_task(task, BROKEN["returns nothing"], LIMITS).passed


@pytest.mark.parametrize("number", [367, 533, 596, 601], ids=lambda number: f"MBPP/{number}")
def test_tests_use_classes_types_and_modules(number: int) -> None:
    task = tasks("mbpp.jsonl.gz")[number - 1]
    outcome = run_task(task, task.solution, LIMITS)
    assert outcome.passed, outcome


def test_a_helper_that_the_candidate_redefines_changes_no_test() -> None:
    task = tasks("HumanEval.jsonl.gz")[32]
    code = "    return 0\n\ndef poly(values, x):\n    return 0\n"
    assert not run_task(task, code, LIMITS).passed


if not sys.platform.startswith("linux"):
    pytest.skip("the sandbox needs Linux", allow_module_level=True)
