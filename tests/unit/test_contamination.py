"""Rows that contain a benchmark's solution or statement are found, and real code passes."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "hygiene"))

from planted import standard_library

from service.admission.contamination import Benchmarks, read_tasks
from service.errors import PreconditionError

HUMAN_EVAL = Path(__file__).parents[3] / "shared" / "data" / "HumanEval.jsonl.gz"
TASK = {
    "task_id": "Own/1",
    "prompt": "def closest(numbers, wanted):\n    # Return a number that lies nearest to wanted, the lesser of two.\n",
    "canonical_solution": "    best = None\n    for number in sorted(numbers):\n        gap = abs(number - wanted)\n"
    "        if best is None or gap < best[0]:\n            best = (gap, number)\n    return best[1]\n",
    "test": "def check(candidate):\n    assert candidate([1, 4, 9], 5) == 4\n",
}
OTHER = {
    "task_id": 2,
    "text": "Write a function that turns every word of a sentence around and keeps their order.",
    "code": "def turned(sentence):\n    parts = sentence.split()\n    return ' '.join(part[::-1] for part in parts)\n",
    "test_list": ["assert turned('ab cd') == 'ba dc'"],
}
AROUND = "".join(f"value_{n} = compute({n}, other_{n})\n" for n in range(20))


@pytest.fixture
def benchmarks(tmp_path: Path) -> Benchmarks:
    (tmp_path / "own.jsonl").write_text(json.dumps(TASK) + "\n\n")
    (tmp_path / "mbpp.jsonl.gz").write_bytes(gzip.compress(json.dumps(OTHER).encode()))
    return Benchmarks([str(tmp_path / "own.jsonl"), str(tmp_path / "mbpp.jsonl.gz")], 10)


GIVEN_AWAY = pytest.mark.parametrize(
    "text",
    [
        TASK["canonical_solution"].replace("    ", "\t"),
        TASK["prompt"],
        OTHER["code"],
        "# " + OTHER["text"],
        "def f(x):\n" + "\n".join("    " + line for line in str(TASK["canonical_solution"]).split("\n")),
    ],
)


@GIVEN_AWAY
def test_a_task_that_occurs_twice_is_still_detected(tmp_path: Path, text: str):
    """A file may be named twice, or a benchmark beside its successor. Then two tasks share every word."""
    again = [task | {"task_id": f"again/{n}"} for n, task in enumerate((TASK, OTHER))]
    more = [task | change for task, change in ((TASK, {"test": "def check(f): ..."}), (OTHER, {"test_list": []}))]
    tasks = [[TASK, OTHER], again, more]
    for number, file in enumerate(tasks):
        (tmp_path / str(number)).write_text("\n".join(map(json.dumps, file)))
    for files in ([0, 0], [0, 1], [0, 2], [2, 1, 0]):
        found = Benchmarks([str(tmp_path / str(number)) for number in files], 10)
        assert found.reason(AROUND + text + AROUND) == "benchmark"


def test_a_solution_is_detected_without_a_run_of_words(tmp_path: Path):
    task = {"task_id": 1, "text": "f", "code": "x=[" + "+".join("abcdefghijklm") + "]", "test_list": []}
    (tmp_path / "own.jsonl").write_text(json.dumps(task))
    assert Benchmarks([str(tmp_path / "own.jsonl")], 50).reason(f"{AROUND}{task['code']}") == "benchmark"


def test_formats_of_a_benchmark_file(tmp_path: Path):
    lines = [OTHER | {"text": "a\u2028b"}, {("prompt" if key == "text" else key): v for key, v in OTHER.items()}]
    (tmp_path / "own.jsonl").write_text("\ufeff" + "\r\n".join(json.dumps(x, ensure_ascii=False) for x in lines))
    assert [task.texts[0] for task in read_tasks(tmp_path / "own.jsonl")] == ["a\u2028b", OTHER["text"]]
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PreconditionError, match="is empty"):
        list(read_tasks(tmp_path / "empty.jsonl"))


HUMANEVAL_PLUS = {
    "task_id": "HumanEval/0",
    "prompt": 'def has_close(numbers, limit):\n    """Are any two of these nearer to each other than limit? """\n',
    "contract": "\n    assert all(type(x) in [int, float] for x in numbers)\n",
    "canonical_solution": "    line = sorted(numbers)\n    return any(b - a < limit for a, b in pairwise(line))\n",
    "entry_point": "has_close",
    "base_input": [[[1.0, 2.0], 0.5]],
    "plus_input": [],
    "atol": 0,
}
MBPP_PLUS = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nWrite a function to find elements that two given lists share.\nassert shared((3,), (3,))\n"""\n',
    "entry_point": "shared",
    "canonical_solution": "\ndef shared(left, right):\n    found = set(left) & set(right)\n    return {*found}\n",
    "base_input": [[[3, 4], [4, 5]]],
    "plus_input": [],
    "contract": "",
    "assertion": "\nassert set(shared((3, 4, 5, 6), (5, 7, 4, 10))) == set((4, 5))\n",
    "atol": 0,
}
MBPP_PLUS_OF_THE_HUB = {
    "task_id": 2,
    "code": MBPP_PLUS["canonical_solution"],
    "prompt": "Write a function to find the elements that two given lists share.",
    "source_file": "x.ipynb",
    "test_imports": [],
    "test_list": ["assert shared((3, 4), (4, 5)) == {4}"],
    "test": "import numpy as np",
}


@pytest.mark.parametrize("record", [HUMANEVAL_PLUS, MBPP_PLUS, MBPP_PLUS_OF_THE_HUB])
def test_evalplus_files_are_read(tmp_path: Path, record: dict[str, object]):
    (tmp_path / "Plus.jsonl.gz").write_bytes(gzip.compress(json.dumps(record).encode()))
    found = Benchmarks([str(tmp_path / "Plus.jsonl.gz")], 10)
    solution = str(record.get("canonical_solution") or record["code"])
    assert found.reason(f"{AROUND}{solution}") == "benchmark"
    assert found.reason(f"# {' '.join(str(record['prompt']).split())}") == "benchmark"
    assert found.reason(AROUND) is None


@GIVEN_AWAY
def test_texts_that_contain_a_task(benchmarks: Benchmarks, text: str):
    assert benchmarks.reason(AROUND + text + AROUND) == "benchmark"


@pytest.mark.parametrize(
    "text",
    [
        AROUND,
        "",
        "best = None\nfor number in sorted(numbers):\n    pass\n",
        "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]",
        str(TASK["canonical_solution"]).replace("best", "other").replace("gap", "way"),
    ],
)
def test_texts_that_do_not_contain_a_task(benchmarks: Benchmarks, text: str):
    assert benchmarks.reason(text) is None


def test_text_that_two_tasks_share_identifies_neither(tmp_path: Path):
    second = TASK | {"task_id": "Own/2", "canonical_solution": "    return min(numbers)\n"}
    (tmp_path / "own.jsonl").write_text(json.dumps(TASK) + "\n" + json.dumps(second))
    assert Benchmarks([str(tmp_path / "own.jsonl")], 10).reason(str(TASK["prompt"])) is None


def test_only_a_whole_solution_counts(tmp_path: Path):
    signs = TASK | {"canonical_solution": "    t = [(0, -1), (0, +1), (-1, 0), (+1, 0)]\n    return t\n"}
    (tmp_path / "own.jsonl").write_text(json.dumps(signs))
    found = Benchmarks([str(tmp_path / "own.jsonl")], 10)
    assert found.reason("t = [(0, -1), (0, +1), (-1, 0), (+1, 0)]\nreturn t\n") == "benchmark"
    assert found.reason("t = [(0, -1), (0, +1), (-1, 0), (+1, 9)]\nreturn t\n") is None


def test_no_benchmark_no_reason():
    assert Benchmarks([], 10).reason(str(TASK["prompt"])) is None


@pytest.mark.parametrize(
    "line", ['{"task_id": 1}', "[]", "{", '{"task_id": 1, "text": 5, "code": "", "test_list": []}']
)
def test_an_unknown_format_is_reported_with_its_line(tmp_path: Path, line: str):
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(OTHER) + "\n" + line + "\n")
    with pytest.raises(PreconditionError, match=r"odd\.jsonl, line 2 has neither HumanEval's format"):
        list(read_tasks(path))


@pytest.mark.parametrize("name", ["absent.jsonl", "broken.jsonl.gz"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str):
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(b"{}" * 100)[:20])
    with pytest.raises(PreconditionError, match=rf"{name} cannot be read .*BENCHMARK_FILES"):
        Benchmarks([str(tmp_path / name)], 10)


@pytest.mark.skipif(not HUMAN_EVAL.exists(), reason="HumanEval is not beside this checkout")
def test_humaneval_is_found_and_the_standard_library_passes():
    found, tasks, texts = Benchmarks([str(HUMAN_EVAL)], 10), list(read_tasks(HUMAN_EVAL)), standard_library(300)
    assert all(found.reason(texts[n] + task.texts[0]) for n, task in enumerate(tasks))
    solutions = sum(found.reason(texts[n] + task.solution) is not None for n, task in enumerate(tasks))
    assert solutions / len(tasks) > 0.85  # the others have fewer than 20 tokens
    assert sum(found.reason(text) is not None for text in texts) <= 1
