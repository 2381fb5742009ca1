"""Reads benchmarks in HumanEval's or MBPP's form: JSONL, gzipped or not. (no torch)

HumanEval's form: `task_id`, `prompt` (code), `entry_point`, `canonical_solution`, `test` (defines `check(candidate)`).
MBPP's form: `task_id`, `text` or `prompt` (prose), `code`, `test_list`, and optionally `test_setup_code` and
`test_imports`. EvalPlus' tasks have these forms on the Hub. Its own files have inputs instead of tests.
"""

from __future__ import annotations

import ast
import builtins
import gzip
import json
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import UnusableInput

Form = Literal["humaneval", "mbpp"]
Split = Literal["few_shot", "test", "validation", "train"]

MBPP_SPLITS: dict[Split, range] = {
    "few_shot": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
"""Task numbers of MBPP's splits, as its authors define them."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a benchmark."""

    task_id: str
    form: Form
    prompt: str
    """HumanEval: the code that the model continues. MBPP: a description in prose."""
    entry_point: str
    """Name of the function that the tests call."""
    tests: str
    """Python. HumanEval: defines `check(candidate)`. MBPP: assertions, after the setup that they need."""
    solution: str
    """HumanEval: continues the prompt. MBPP: the whole code."""
    helpers: str = ""
    """HumanEval: the prompt as code that runs by itself. Its tests may use what it defines beside the entry point."""
    split: Split | None = None
    """MBPP's split. None for numbers outside of MBPP, and for HumanEval."""

    def program(self, completion: str) -> str:
        """Return the candidate's whole code."""
        return self.prompt + completion if self.form == "humaneval" else completion


def read_suite(path: Path) -> tuple[Task, ...]:
    """Read all tasks of a file.

    Raises:
        UnusableInput: the file is unreadable or empty, a task is given twice, or a line has neither form.
    """
    tasks: dict[str, Task] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        task = _task(_record(line, where), where)
        if task.task_id in tasks:
            raise UnusableInput(f"{where}: the task {task.task_id} is there twice. Remove one of them")
        tasks[task.task_id] = task
    if not tasks:
        raise UnusableInput(f"the suite {path} is empty. Name a JSONL file in HumanEval's or MBPP's form")
    return tuple(tasks.values())


def _lines(path: Path) -> list[str]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UnusableInput(f"the suite {path} cannot be read ({error}). Name a JSONL file, gzipped or not") from error


def _record(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnusableInput(f"{where} is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise UnusableInput(f"{where} is not a JSON object, but {type(record).__name__}")
    return record


def _task(record: Mapping[str, Any], where: str) -> Task:
    match record:
        case {
            "task_id": str(task_id),
            "prompt": str(prompt),
            "entry_point": str(entry_point),
            "canonical_solution": str(solution),
            "test": str(tests),
        }:
            task = Task(
                task_id=task_id,
                form="humaneval",
                prompt=prompt,
                entry_point=entry_point,
                tests=tests,
                solution=solution,
                helpers=_helpers(prompt, where),
            )
        case {"task_id": int(number), "code": str(code), "test_list": [*tests]} if tests:
            task = _mbpp_task(record, number, code, tests, where)
        case {"canonical_solution": str(), "plus_input": _}:
            raise UnusableInput(
                f"{where} has inputs instead of tests, as EvalPlus' own files do. Use the same tasks from the Hub "
                "(evalplus/humanevalplus, evalplus/mbppplus), saved as JSONL: there they have tests"
            )
        case _:
            raise UnusableInput(
                f"{where} has neither HumanEval's form (task_id, prompt, entry_point, canonical_solution, test) "
                "nor MBPP's (task_id as a number, text or prompt, code, test_list)"
            )
    try:
        _tree(task.tests)
    except (SyntaxError, ValueError) as error:
        raise UnusableInput(f"{where}: the tests are not Python ({error}). Correct or remove the task") from error
    return task


def _helpers(prompt: str, where: str) -> str:
    """Complete the prompt, which ends with a docstring or with a function's first line."""
    for code in (prompt, f"{prompt.rstrip()}\n    pass\n"):
        try:
            _tree(code)
        except (SyntaxError, ValueError):
            continue
        return code
    raise UnusableInput(f"{where}: the prompt is not the start of a Python function. Correct or remove the task")


def _mbpp_task(record: Mapping[str, Any], number: int, code: str, tests: list[Any], where: str) -> Task:
    prompt = record.get("text", record.get("prompt"))
    setup, imports = record.get("test_setup_code") or "", record.get("test_imports") or []
    texts = [prompt, setup, *tests, *imports] if isinstance(imports, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise UnusableInput(f"{where}: text, test_setup_code and each of test_imports and test_list must be texts")
    lines = "\n".join([setup, *imports, *tests]).replace("\r\n", "\n")
    return Task(
        task_id=f"MBPP/{number}",
        form="mbpp",
        prompt=prompt,
        entry_point=_called_function(code, "\n".join(tests), where),
        tests=lines,
        solution=code,
        split=next((name for name, numbers in MBPP_SPLITS.items() if number in numbers), None),
    )


def _tree(code: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MBPP's solutions have invalid escape sequences
        return ast.parse(code)


def _called_function(code: str, tests: str, where: str) -> str:
    """The function under test: the first one that the tests call and the solution defines."""
    try:
        called = [
            node.func.id
            for node in ast.walk(_tree(tests))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        defined = {node.name for node in ast.walk(_tree(code)) if isinstance(node, ast.FunctionDef)}
    except (SyntaxError, ValueError) as error:
        raise UnusableInput(f"{where}: code or test_list is not Python ({error}). Correct or remove it") from error
    names = [name for name in called if name in defined] + [name for name in called if not hasattr(builtins, name)]
    if not names:
        raise UnusableInput(f"{where}: the tests call no function. Correct or remove the task")
    return names[0]
