"""What a model is asked, and the code that is taken from its answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.sandboxed import DATA
from tests.unit.test_suites import HUMANEVAL, MBPP, written
from trainer.evaluate.prompts import completion_of, cut, question_for
from trainer.evaluate.suites import Task, read_suite


def humaneval(folder: Path, **changes: object) -> Task:
    (task,) = read_suite(written(folder, {**HUMANEVAL, **changes}))
    return task


def mbpp(folder: Path) -> Task:
    (task,) = read_suite(written(folder, MBPP))
    return task


def runs(task: Task, completion: str) -> int:
    """The result of the entry point for 2."""
    namespace: dict[str, object] = {}
    exec(task.program(completion), namespace)
    return namespace[task.entry_point](2)  # type: ignore[operator, no-any-return]


def test_a_base_model_continues_the_prompt_up_to_the_next_statement(tmp_path):
    task = humaneval(tmp_path)
    question = question_for(task, "completion")
    assert question.text == HUMANEVAL["prompt"] and not question.messages
    answer = "    return 2 * x\n\ndef triple(x):\n    return 3 * x\nprint(double(1))"
    assert completion_of(task, answer, "completion") == "    return 2 * x\n"
    assert cut("a\n#b\nclass C", question.stops) == "a"


@pytest.mark.parametrize(
    "answer",
    [
        "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.",
        "```python\n    return 2 * x\n```",
        "    return 2 * x\n",
        "```\nimport math\n```\n\n```python\ndef double(x):\n    return 2 * x\n```",
        "````python\ndef double(x):\n    '''```'''\n    return 2 * x\n````",
        "```python\ndef double(x):\n    return 2 * x\n",
        "```python\nimport os\ndef double(x):\n    return 2 * x\ndef cut(",
    ],
    ids=["whole function", "the rest", "no fence", "the block that defines it", "long fence", "no end", "cut"],
)
def test_a_chat_answers_with_the_rest_or_with_the_whole_function(tmp_path, answer):
    task = humaneval(tmp_path)
    completion = completion_of(task, answer, "chat")
    if answer.endswith("cut("):
        assert completion.startswith("\nimport os\ndef double")
    else:
        assert runs(task, completion) == 4


def test_a_whole_function_follows_a_prompt_without_a_body(tmp_path):
    task = humaneval(tmp_path, prompt="def half(x):\n    return x / 2\n\ndef double(x):\n")
    assert runs(task, completion_of(task, "```python\ndef double(x):\n    return 2 * x\n```", "chat")) == 4
    assert runs(task, completion_of(task, "```python\n    return 2 * x\n```", "chat")) == 4


def test_mbpp_is_asked_with_its_tests(tmp_path):
    task = mbpp(tmp_path)
    chat = question_for(task, "chat").messages
    assert [role for role, _ in chat] == ["system", "user"]
    for text in (chat[1][1], question_for(task, "completion").text or ""):
        assert "Double a number." in text and "assert double(3) == 6" in text
    code = "def double(x):\n    return 2 * x\n"
    assert completion_of(task, f"Sure!\n```python\n{code}```", "chat") == code
    assert completion_of(task, f"{code}\nassert double(2) == 4", "completion") == code


def test_every_published_solution_survives_extraction():
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    for task in read_suite(DATA / "HumanEval.jsonl.gz"):
        whole = f"```python\n{task.prompt}{task.solution}\n```"
        compile(task.program(completion_of(task, whole, "chat")), "whole", "exec")
        assert completion_of(task, f"```python\n{task.solution}```", "chat").strip() == task.solution.strip()
        # one solution's comments at the left margin count as stops, as in the original
        assert cut(task.solution, question_for(task, "completion").stops).strip(), task.task_id
    json.dumps([question_for(task, "chat").messages for task in read_suite(DATA / "mbpp.jsonl.gz")])
