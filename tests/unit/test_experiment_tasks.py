"""Tasks of an experiment: the three forms, MBPP's as functions with a docstring, and the overlap with the test."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from service.errors import PreconditionError, UsageError
from service.experiment.overlap import overlap
from service.experiment.tasks import check_tests, read_tasks
from tests.unit.sandboxed import DATA

HUMANEVAL = {
    "task_id": "Own/1", "prompt": 'def double(x):\n    """Double."""\n', "entry_point": "double",
    "canonical_solution": "    return 2 * x\n", "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}  # fmt: skip
MBPP = {
    "task_id": 601, "text": "Write a function to add one.", "code": "def add_one(x):\r\n\treturn x + 1",
    "test_list": ["assert add_one(1) == 2"], "test_setup_code": "",
}  # fmt: skip
RECORD = {"prompt": "def f(a):\n", "completion": "    return sorted(a)\n", "metadata": {"timeComplexity": "O(n)"}}


def write(path: Path, *records: object) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path, split: str | None = None):
    return read_tasks(path, "--train", split=split, default_split="train")


def test_a_task_of_humaneval_is_a_prompt_with_its_completion(tmp_path: Path):
    (task,) = read(write(tmp_path / "own.jsonl.gz", HUMANEVAL))
    assert task.record("own") == {
        "prompt": HUMANEVAL["prompt"], "completion": HUMANEVAL["canonical_solution"], "repository": "own",
        "path": "Own/1", "language": "python",
        "metadata": {
            "functionName": "double", "algorithmType": "direct", "timeComplexity": "O(1)", "spaceComplexity": "O(1)",
        },
    }  # fmt: skip


def test_a_task_of_mbpp_becomes_a_function_with_a_docstring(tmp_path: Path):
    (task,) = read(write(tmp_path / "mbpp.jsonl", MBPP))
    asked = '\t"""Write a function to add one.\n\tassert add_one(1) == 2\n\t"""\n'
    assert (task.prompt, task.completion) == (f"def add_one(x):\n{asked}", "\treturn x + 1\n")
    assert task.task_id == "MBPP/601" and task.metadata["functionName"] == "add_one"


@pytest.mark.parametrize(
    ("code", "text", "start"),
    [
        ("def add_one(x): return x + 1", "Add one.", '"""\nAdd one.\nassert add_one(1) == 2\n"""\n'),
        ("add_one = lambda x: x + 1", "Add one.", '"""\nAdd one.'),
        ("import os\ndef add_one(x):\n  return x", '\\d and """.', "import os\ndef add_one(x):\n  r\"\"\"\\d and '''."),
        ("def add_one(x):\n  @dec\n  def g(): pass\n  return x", "Add.", 'def add_one(x):\n  """Add.'),
    ],
)  # fmt: skip
def test_mbpp_s_code_stays_whole(tmp_path: Path, code: str, text: str, start: str):
    (task,) = read(write(tmp_path / "mbpp.jsonl", {**MBPP, "code": code, "text": text}))
    assert task.prompt.startswith(start)
    compile(task.prompt + task.completion, "task", "exec")
    told = [line for line in code.split("\n") if line not in f"{task.prompt}{task.completion}"]
    assert told == []


def test_metadata_that_are_there_win(tmp_path: Path):
    (task,) = read(write(tmp_path / "own.jsonl", RECORD))
    assert task.metadata["timeComplexity"] == "O(n)" and task.metadata["algorithmType"] == "sorting"


def test_mbpp_s_training_part_is_the_default(tmp_path: Path):
    path = write(tmp_path / "mbpp.jsonl", *({**MBPP, "task_id": number} for number in (11, 511, 601, 974, 975)))
    assert [task.number for task in read(path)] == [601, 974]
    assert [task.number for task in read(path, "validation")] == [511]
    assert len(read(path, "all")) == 5


@pytest.mark.parametrize(
    ("records", "split", "said"),
    [
        ([], None, "has no task. Name a JSONL file"),
        ([{**MBPP, "task_id": 11}], None, "has no task of MBPP's split train (601 to 974)"),
        ([HUMANEVAL], "train", "has no splits, because it is not MBPP"),
        ([HUMANEVAL, HUMANEVAL], None, "the task Own/1 twice"),
        ([{"prompt": "x"}], None, "line 1 has neither HumanEval's form"),
        ([[1]], None, "line 1 has neither HumanEval's form"),
        ([{**RECORD, "completion": " "}], None, "line 1 has neither"),
        ([{**MBPP, "test_list": [1]}], None, "each of test_list must be texts"),
    ],
)
def test_what_is_no_task_is_refused(tmp_path: Path, records: list[object], split: str | None, said: str):
    with pytest.raises(UsageError, match=re.escape(said)):
        read(write(tmp_path / "own.jsonl", *records), split)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "own.jsonl.gz").write_text("not gzipped")
    (tmp_path / "own.jsonl").write_text("{")
    for name, said in (("own.jsonl.gz", "cannot be read"), ("own.jsonl", "line 1 is not JSON"), ("none", "No such")):
        with pytest.raises(UsageError, match=said):
            read(tmp_path / name)


def test_a_test_task_needs_tests(tmp_path: Path):
    path = write(tmp_path / "own.jsonl", HUMANEVAL, {**HUMANEVAL, "task_id": "Own/2", "test": None})
    with pytest.raises(UsageError, match=r"1 of 2 tasks of .* have no tests, such as Own/2"):
        check_tests(read(path), path)


# --- overlap --------------------------------------------------------------------------------------------------


def compared(tmp_path: Path, training: list[object], test: list[object]):
    first, second = write(tmp_path / "train.jsonl", *training), write(tmp_path / "test.jsonl", *test)
    return overlap(read(first, None), read(second, None), second, gram_words=10)


def test_the_same_file_is_said_first(tmp_path: Path):
    found = compared(tmp_path, [HUMANEVAL], [HUMANEVAL])
    assert found.is_test_trained and found.sentence().startswith("all 1 training tasks are test tasks. THE PASS RATES")


def test_a_task_is_known_by_its_prompt_too(tmp_path: Path):
    other = {**HUMANEVAL, "task_id": "Else/9", "canonical_solution": "    return x + x\n"}
    prompt = "def triple(x):\n"
    found = compared(tmp_path, [other, {**HUMANEVAL, "task_id": "Else/10", "prompt": prompt}], [HUMANEVAL])
    assert found.same == ("Else/9",) and not found.is_test_trained
    assert "1 of 2 training tasks have the id or the prompt of a test task: Else/9" in found.sentence()


def test_words_of_a_test_task_are_found(tmp_path: Path):
    words = "the quick brown fox jumps over a lazy dog and then sleeps until noon"
    test = {**HUMANEVAL, "task_id": "Test/1", "prompt": f'def fox(x):\n    """{words}"""\n', "entry_point": "fox"}
    leak = {**HUMANEVAL, "prompt": f'def other(x):\n    """Say: {words}."""\n'}
    found = compared(tmp_path, [leak, {**HUMANEVAL, "task_id": "Own/2"}], [test])
    assert (found.same, found.leaking) == ((), ("Own/1",)) and "10 consecutive words" in found.sentence()
    assert compared(tmp_path, [HUMANEVAL], [test]).sentence().startswith("none of 1 training tasks")


def test_a_test_file_of_another_form_is_refused(tmp_path: Path):
    with pytest.raises(PreconditionError, match="neither HumanEval's format"):
        compared(tmp_path, [HUMANEVAL], [RECORD])


def test_the_usual_tasks_do_not_overlap_and_all_have_metadata():
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    training, test = read(DATA / "mbpp.jsonl.gz"), read(DATA / "HumanEval.jsonl.gz")
    assert (len(training), len(test)) == (374, 164)
    for task in (*training, *test):
        compile(task.prompt + task.completion, task.task_id, "exec")
        assert len(task.metadata) == 4, task.task_id
    first = overlap(training[:164], test, DATA / "HumanEval.jsonl.gz", gram_words=10)
    assert (first.same, first.leaking) == ((), ())
    whole = overlap(training, test, DATA / "HumanEval.jsonl.gz", gram_words=10)
    assert whole.same == () and len(whole.leaking) == 4, "usual loops"
