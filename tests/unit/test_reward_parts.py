"""Training on rewards, without a model: tasks, assertions, advantages, answers, and what is refused."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_suites import HUMANEVAL, MBPP

from service.errors import UsageError
from service.reward import overlap
from service.reward.overlap import check_overlap
from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.limits import Outcome
from trainer.evaluate.suites import MBPP_SPLITS, Task
from trainer.reward.advantages import advantages
from trainer.reward.answers import Answer, kept_answers, normalized, pass_rate
from trainer.reward.once import Once
from trainer.reward.partial import single_assertions
from trainer.reward.tasks import divide, read_tasks


def task(name: str = "Own/1", **changes: Any) -> Task:
    made = Task(
        task_id=name, form="humaneval", prompt="def double(x):\n", entry_point="double",
        tests="LIMIT = 2\ndef check(candidate):\n    one = 1\n    assert candidate(one) == LIMIT\n"
        "    for n in (2, 3):\n        assert candidate(n) == 2 * n\n",
        solution="    return 2 * x\n",
    )  # fmt: skip
    return replace(made, **changes)


def answer(text: str, *, passed: bool = True, sample: int = 0, of: Task | None = None, finish: str = "stop") -> Answer:
    of = of or task()
    return Answer(task=of, sample=sample, text=text, completion=text, finish=finish, passed=passed)  # type: ignore[arg-type]


def test_held_out_tasks_stay_held_out_when_others_are_added():
    tasks = [task(f"Own/{n}") for n in range(200)]
    few, many = divide(tasks[:100], 0.2), divide(tasks, 0.2)
    assert {one.task_id for one in few.held_out} < {one.task_id for one in many.held_out}
    assert 20 < len(many.held_out) < 60 and len(many.training) + len(many.held_out) == 200
    assert not {one.task_id for one in many.training} & {one.task_id for one in many.held_out}


@pytest.mark.parametrize("fraction", [0.01, 0.9])
def test_each_side_has_a_task(fraction):
    found = divide([task("Own/1"), task("Own/2")], fraction)
    assert (len(found.training), len(found.held_out)) == (1, 1)


def test_mbpp_is_trained_on_its_training_part(tmp_path: Path):
    file = tmp_path / "mbpp.jsonl"
    file.write_text("".join(json.dumps({**MBPP, "task_id": n}) + "\n" for n in (11, 510, 601, 974)))
    found = read_tasks(file, None, held_out_fraction=0.2)
    assert {one.task_id for one in found.all} == {"MBPP/601", "MBPP/974"}
    with pytest.raises(UnusableInput, match=r"few_shot.*test, train.*--split"):
        read_tasks(file, "few_shot", held_out_fraction=0.2)


def test_each_assertion_is_run_alone_with_what_it_needs():
    first, loop = single_assertions(task())
    assert "LIMIT = 2" in first.tests and "one = 1" in first.tests
    assert "candidate(one)" in first.tests and "for n" not in first.tests
    assert "candidate(one)" not in loop.tests and "for n" in loop.tests
    mbpp = task(form="mbpp", tests="import math\nassert double(1) == 2\nassert double(2) == 4")
    assert [one.tests for one in single_assertions(mbpp)] == [
        "import math\nassert double(1) == 2",
        "import math\nassert double(2) == 4",
    ]


def test_advantages_are_relative_to_the_group():
    assert advantages([1, 0, 0, 0]) == [0.75, -0.25, -0.25, -0.25]
    assert advantages([1, 0], divide_by_deviation=True) == [1.0, -1.0]
    assert advantages([1, 1, 1], divide_by_deviation=True) == [0.0] * 3, "equal rewards say nothing"


def test_a_program_is_run_once_and_broken_code_never():
    seen: list[str] = []
    both = threading.Barrier(2)

    def runner(of: Task, completion: str) -> Outcome:
        seen.append(completion)
        return Outcome(passed=True, reason="", seconds=0.0)

    once = Once(runner)

    def ask() -> None:
        both.wait()
        assert once(task(), "    return 1\n").passed

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not once(task(), "    return (").passed
    assert once(task("Own/2"), "    return 1\n").passed
    assert seen == ["    return 1\n"] * 2, "once for each task"


def test_an_error_of_the_sandbox_is_no_verdict():
    def runner(of: Task, completion: str) -> Outcome:
        raise UnusableInput("no sandbox")

    once = Once(runner)
    for _ in range(2):
        with pytest.raises(UnusableInput):
            once(task(), "    return 1\n")


def test_answers_are_kept_that_pass_are_whole_and_differ():
    same, other = "    return 2 * x\n", "    return x + x\n"
    found = kept_answers(
        [
            answer("    return 3\n", passed=False),
            answer("    return x * 2", finish="length"),
            answer(same),
            answer("    return 2*x  # twice\n"),
            answer(other),
            answer("    return x * 2\n"),
            answer(same, of=task("Own/2")),
        ],
        2,
    )
    assert [(one.task.task_id, one.text) for one in found] == [("Own/1", same), ("Own/1", other), ("Own/2", same)]
    assert normalized("x = 1  # one\n") == normalized("x=1") != normalized("x = 2")


def test_the_unit_of_a_pass_rate_is_the_task():
    answers = [answer("a", sample=n, passed=n < 1) for n in range(4)]
    answers += [answer("a", sample=n, of=task("Own/2")) for n in range(2)]
    found = pass_rate(answers)
    assert found["value"] == pytest.approx((0.25 + 1) / 2) and found["tasks"] == 2
    assert found["by_task"] == {"Own/1": 0.25, "Own/2": 1.0}


LONG = "Return the number of pairs whose difference is at most the given limit, each counted once."


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ({"task_id": "Own/1"}, "the same name"),
        ({"prompt": 'def triple(x):\n    """Triple."""\n'}, None),
        ({"prompt": 'def double(x):\n\n    """Double."""\n'}, "the same prompt"),
        ({"prompt": f'def pairs(x):\n    """{LONG}"""\n'}, None),
    ],
)
def test_tasks_of_an_evaluation_are_refused_by_name(theirs, reason, tmp_path: Path):
    mine = {**HUMANEVAL, "task_id": "Own/1"}
    tasks, other = tmp_path / "tasks.jsonl", tmp_path / "other.jsonl"
    tasks.write_text(json.dumps(mine))
    other.write_text(json.dumps({**HUMANEVAL, "task_id": "Else/1", "prompt": "def e(x):\n", **theirs}))
    for places in ({"evaluated": [other], "benchmarks": []}, {"evaluated": [], "benchmarks": [other]}):
        if reason is None:
            check_overlap(tasks, None, gram_words=10, **places)
        else:
            with pytest.raises(UsageError, match=rf"1 of 1 tasks .*Own/1 \({reason}"):
                check_overlap(tasks, None, gram_words=10, **places)


def test_a_task_that_shares_a_sentence_with_an_evaluation_is_refused(tmp_path: Path):
    tasks, other = tmp_path / "tasks.jsonl", tmp_path / "other.jsonl"
    tasks.write_text(json.dumps({**HUMANEVAL, "prompt": f'def f(x):\n    """First. {LONG}"""\n'}))
    other.write_text(json.dumps({**HUMANEVAL, "task_id": "Else/1", "prompt": f'def g(y):\n    """{LONG}"""\n'}))
    with pytest.raises(UsageError, match="shares text"):
        check_overlap(tasks, None, evaluated=[other], benchmarks=[], gram_words=10)


def test_mbpps_training_part_may_be_trained_on_while_its_test_part_measures(tmp_path: Path):
    assert MBPP_SPLITS["train"] == overlap.MBPP_TRAIN and MBPP_SPLITS["test"] == overlap.MBPP_TEST
    file = tmp_path / "mbpp.jsonl"
    words = {11: "Add two numbers.", 601: "Find the longest chain."}
    records = [{**MBPP, "task_id": n, "text": text, "code": f"def double(x): return {n}"} for n, text in words.items()]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    check_overlap(file, None, evaluated=[file], benchmarks=[], gram_words=10)
    for split, places in (
        ("test", {"evaluated": [file], "benchmarks": []}),
        (None, {"evaluated": [], "benchmarks": [file]}),
    ):
        with pytest.raises(UsageError, match="the same name"):
            check_overlap(file, split, gram_words=10, **places)


def test_a_file_without_tasks_is_named(tmp_path: Path):
    file = tmp_path / "tasks.jsonl"
    file.write_text("{}")
    with pytest.raises(UsageError, match=r"tasks.jsonl, line 1 .*\(--tasks\)"):
        check_overlap(file, None, evaluated=[], benchmarks=[], gram_words=10)
