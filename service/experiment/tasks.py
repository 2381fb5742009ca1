"""Reads the tasks of an experiment: HumanEval's or MBPP's form, or records with `prompt`, `completion` and `metadata`.

A task of MBPP becomes one in HumanEval's form: its description and tests are the docstring of the function.
"""

from __future__ import annotations

import ast
import gzip
import json
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.errors import UsageError
from service.experiment.derived import derived_metadata

SPLITS: Mapping[str, range] = {
    "few_shot": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975),
}  # fmt: skip
"""Task numbers of MBPP's splits, as its authors define them."""
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task with its solution."""

    task_id: str
    name: str
    """The task id as the file has it. MBPP's are numbers."""
    prompt: str
    completion: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the file says, and for the rest what static analysis guesses."""
    statement: str
    """The question as the file has it."""
    number: int | None = None
    """MBPP's number."""
    has_tests: bool = False

    def record(self, source: str) -> dict[str, Any]:
        """Return the row that is trained on."""
        return {
            "prompt": self.prompt, "completion": self.completion, "metadata": dict(self.metadata),
            "repository": source, "path": self.task_id, "language": "python",
        }  # fmt: skip


def read_tasks(path: Path, option: str, *, split: str | None, default_split: str) -> list[Task]:
    """Read the tasks of a file, and of MBPP those of a split.

    Args:
        option: the option that names the file, for messages
        default_split: MBPP's split if none is named

    Raises:
        UsageError: the file cannot be read, a line has none of the forms, a task is there twice, or there is no task.
    """
    tasks = [_task(line, f"{option}: {path}, line {number}", number) for number, line in _lines(path, option)]
    is_mbpp = any(task.number is not None for task in tasks)
    if split not in (None, ALL) and not is_mbpp:
        raise UsageError(f"--split {split}: {path} has no splits, because it is not MBPP. Leave the option out")
    wanted = split or default_split
    if is_mbpp and wanted != ALL:
        tasks = [task for task in tasks if task.number is not None and task.number in SPLITS[wanted]]
    ids = Counter(task.task_id for task in tasks)
    if twice := next((task_id for task_id, count in ids.items() if count > 1), None):
        raise UsageError(f"{option}: {path} has the task {twice} twice. Remove one of them")
    if not tasks:
        of = f" of MBPP's split {wanted} ({SPLITS[wanted][0]} to {SPLITS[wanted][-1]})" if is_mbpp else ""
        raise UsageError(f"{option}: {path} has no task{of}. Name a JSONL file in HumanEval's or MBPP's form")
    return tasks


def check_tests(tasks: Sequence[Task], path: Path) -> None:
    """Raises UsageError if a test task has no tests."""
    if bare := [task.task_id for task in tasks if not task.has_tests]:
        raise UsageError(
            f"--test: {len(bare)} of {len(tasks)} tasks of {path} have no tests, such as {bare[0]}. Name a file in "
            "HumanEval's form (with `test`) or MBPP's (with `test_list`)"
        )


def _lines(path: Path, option: str) -> list[tuple[int, str]]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UsageError(f"{option}: {path} cannot be read ({error}). Name a JSONL file, gzipped or not") from error
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _task(line: str, where: str, number: int) -> Task:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON ({error})") from error
    given = record.get("metadata") if isinstance(record, dict) else None
    match record:
        case {
            "task_id": str(task_id), "prompt": str(prompt), "entry_point": str(name), "canonical_solution": str(code),
        }:  # fmt: skip
            known = _metadata(given, prompt + code, name)
            return Task(
                task_id=task_id, name=task_id, prompt=prompt, completion=code, metadata=known, statement=prompt,
                has_tests=isinstance(record.get("test"), str),
            )  # fmt: skip
        case {"task_id": int(mbpp), "code": str(code), "test_list": [*tests]}:
            text = record.get("text", record.get("prompt"))
            if not isinstance(text, str) or not all(isinstance(test, str) for test in tests):
                raise UsageError(f"{where}: text and each of test_list must be texts")
            return _from_mbpp(mbpp, text, code.replace("\r\n", "\n"), tests, given)
        case {"prompt": str(prompt), "completion": str(code)} if prompt.strip() and code.strip():
            task_id = str(record.get("task_id") or f"line-{number}")
            return Task(
                task_id=task_id, name=task_id, prompt=prompt, completion=code, statement=prompt,
                metadata=_metadata(given, prompt + code, None),
            )  # fmt: skip
    raise UsageError(
        f"{where} has neither HumanEval's form (task_id, prompt, entry_point, canonical_solution) nor MBPP's "
        "(task_id as a number, text or prompt, code, test_list), and is no record with prompt and completion"
    )


def _metadata(given: object, code: str, name: str | None) -> dict[str, Any]:
    """Return what the file says, and guesses for what it does not say."""
    known = {key: value for key, value in given.items() if value} if isinstance(given, Mapping) else {}
    return {**derived_metadata(code, name), **known}


def _from_mbpp(number: int, text: str, code: str, tests: Sequence[str], given: object) -> Task:
    name = _function(code, tests)
    prompt, completion = _split(code.strip("\n") + "\n", name, f"{text}\n" + "\n".join(tests))
    return Task(
        task_id=f"MBPP/{number}", name=str(number), prompt=prompt, completion=completion, statement=text,
        number=number, metadata=_metadata(given, code, name), has_tests=bool(tests),
    )  # fmt: skip


def _function(code: str, tests: Sequence[str]) -> str | None:
    """Return the name of the function that the tests call. None: the code does not show it."""
    called = [
        node.func.id
        for test in tests
        for node in ast.walk(_parsed(test) or ast.Module(body=[], type_ignores=[]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    tree = _parsed(code)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} if tree else set()
    return next((name for name in called if name in defined), None)


def _split(code: str, name: str | None, asked: str) -> tuple[str, str]:
    """Put a docstring into the function and split the code after it. Without a function, it comes before all code."""
    asked = asked.replace('"""', "'''")
    mark = 'r"""' if "\\" in asked else '"""'
    tree = _parsed(code)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)] if tree else []
    if function := next((node for node in functions if node.name == name), None):
        lines, first = code.split("\n"), function.body[0]
        decorators = getattr(first, "decorator_list", [])
        place = min([first.lineno, *(one.lineno for one in decorators)]) - 1
        indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
        inner = "\n".join(f"{indent}{line}".rstrip() for line in asked.split("\n"))
        prompt = "\n".join([*lines[:place], f"{indent}{mark}{inner.lstrip()}", f'{indent}"""', ""])
        completion = "\n".join(lines[place:])
        if place >= function.lineno and _parsed(prompt + completion) is not None:
            return prompt, completion
    return f'{mark}\n{asked}\n"""\n', code


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MBPP's solutions have invalid escape sequences
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
