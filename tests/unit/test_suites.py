"""Benchmarks are read in HumanEval's and MBPP's form, and what is wrong with a line is named."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sandboxed import DATA
from trainer.errors import UnusableInput
from trainer.evaluate.suites import read_suite

HUMANEVAL = {
    "task_id": "Own/0",
    "prompt": 'def double(x):\n    """Double."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
MBPP: dict[str, Any] = {
    "task_id": 601,
    "text": "Double a number.",
    "code": "def half(x):\r\n    return x / 2\r\ndef double(x):\r\n    return 2 * x",
    "test_list": ["assert set([double(2)]) == {4}", "assert double(3) == 6"],
}


def written(folder: Path, *records: object) -> Path:
    path = folder / "suite.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_humanevals_form(tmp_path: Path) -> None:
    (task,) = read_suite(written(tmp_path, HUMANEVAL))
    assert (task.task_id, task.form, task.entry_point, task.split) == ("Own/0", "humaneval", "double", None)
    assert task.program("    return x + x") == HUMANEVAL["prompt"] + "    return x + x"


def test_mbpps_form(tmp_path: Path) -> None:
    (task,) = read_suite(written(tmp_path, MBPP))
    assert (task.task_id, task.form, task.entry_point, task.split) == ("MBPP/601", "mbpp", "double", "train")
    assert task.program("def double(x): return x") == "def double(x): return x"


def test_both_forms_gzipped_with_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl.gz"
    path.write_bytes(gzip.compress(f"\ufeff{json.dumps(HUMANEVAL)}\n\n{json.dumps(MBPP)}\n".encode()))
    assert [task.task_id for task in read_suite(path)] == ["Own/0", "MBPP/601"]


@pytest.mark.parametrize(
    ("number", "split"),
    [(1, "few_shot"), (10, "few_shot"), (11, "test"), (510, "test"), (511, "validation"), (600, "validation"),
     (601, "train"), (974, "train"), (0, None), (975, None)],
)  # fmt: skip
def test_mbpps_splits_are_kept_apart(tmp_path: Path, number: int, split: str | None) -> None:
    (task,) = read_suite(written(tmp_path, {**MBPP, "task_id": number}))
    assert task.split == split


def test_a_prompt_without_a_body_becomes_whole_code(tmp_path: Path) -> None:
    prompt = "def helper():\n    return 1\n\ndef double(x):\n"
    (task,) = read_suite(written(tmp_path, {**HUMANEVAL, "prompt": prompt}))
    compile(task.helpers, "helpers", "exec")


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ([1], "is not a JSON object"),
        ({"task_id": "Own/1"}, "neither HumanEval's form"),
        ({**MBPP, "task_id": "one"}, "neither HumanEval's form"),
        (
            {"task_id": "Mbpp/2", "canonical_solution": "x", "base_input": [], "plus_input": []},
            "as EvalPlus' own files do",
        ),
        ({**MBPP, "test_imports": "import math"}, "test_imports"),
        ({**MBPP, "test_list": []}, "neither HumanEval's form"),
        ({**MBPP, "test_list": [1]}, "must be texts"),
        ({**MBPP, "text": 5}, "must be texts"),
        ({**MBPP, "code": "def"}, "is not Python"),
        ({**MBPP, "test_list": ["assert 1"]}, "call no function"),
        ({**HUMANEVAL, "test": "def"}, "is not Python|are not Python"),
        ({**HUMANEVAL, "prompt": "return ("}, "not the start of a Python function"),
        (HUMANEVAL, "is there twice"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, record: object, problem: str) -> None:
    path = written(tmp_path, HUMANEVAL, record)
    with pytest.raises(UnusableInput, match=f"line 2.*({problem})"):
        read_suite(path)


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, HUMANEVAL)
    path.write_text(path.read_text() + "{")
    with pytest.raises(UnusableInput, match="line 2 is not JSON"):
        read_suite(path)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "suite.jsonl").write_bytes(content)
    with pytest.raises(UnusableInput, match="is empty"):
        read_suite(tmp_path / "suite.jsonl")


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "suite.jsonl.gz").write_bytes(b"no gzip")
    for name in ("suite.jsonl.gz", "missing.jsonl"):
        with pytest.raises(UnusableInput, match="cannot be read"):
            read_suite(tmp_path / name)


def test_the_published_files_are_read_whole() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    assert len(read_suite(DATA / "HumanEval.jsonl.gz")) == 164
    splits = Counter(task.split for task in read_suite(DATA / "mbpp.jsonl.gz"))
    assert splits == {"few_shot": 10, "test": 500, "validation": 90, "train": 374}
