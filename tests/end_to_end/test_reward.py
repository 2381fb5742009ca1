"""`codelupe reward` as a user runs it: the tiny base learns to solve toy tasks from the verdicts of the sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from driver import ROOT, Codelupe

from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.bubblewrap import check_available

pytestmark = pytest.mark.timeout(300)

TOY = ROOT / "benchmarks" / "reward"


@pytest.fixture
def home(tmp_path: Path) -> Codelupe:
    return Codelupe(tmp_path / "home", CODELUPE_RECIPE=str(TOY / "recipe.yaml"), OMP_WAIT_POLICY="PASSIVE")


@pytest.mark.long
def test_the_pass_rate_of_the_training_tasks_rises(home: Codelupe, tmp_path: Path):
    try:
        check_available()
    except UnusableInput as error:
        pytest.skip(str(error))
    other = tmp_path / "other.jsonl"
    task = json.loads((TOY / "tasks.jsonl").read_text().splitlines()[0])
    tests = "def check(candidate):\n    assert candidate([]) == []\n"
    other.write_text(
        json.dumps(
            {
                **task, "task_id": "Else/1", "prompt": "def keep(a):\n    b = a\n    return", "entry_point": "keep",
                "canonical_solution": " b\n", "test": tests,
            }
        )
    )  # fmt: skip
    arguments = ["reward", "--tasks", str(TOY / "tasks.jsonl"), "--method", "grpo", "--rounds", "2", "--execute"]
    done = home.run(*arguments, "--samples-per-task", "12", "--evaluate", str(other), "--json", timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    before, after = found["rates"][0]["training"], found["rates"][-1]["training"]
    assert after["value"] > before["value"] + 0.2
    assert before["low"] <= before["value"] <= before["high"] and after["tasks"] == 6
    assert found["evaluation"]["tasks"] == 1
    assert (Path(found["adapter"]) / "adapter_model.safetensors").is_file()
    again = home.run(*arguments, "--samples-per-task", "12", "--evaluate", str(other), timeout=200)
    assert again.returncode == 0, again.stderr
    assert "after each round" in again.stdout and f"{after['value']:.3f}" in again.stdout, "the same, as a table"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Add --execute"),
        (["--execute", "--method", "ppo"], "--method 'ppo' is not one of rejection, grpo"),
        (["--execute", "--evaluate", str(TOY / "tasks.jsonl")], "8 of 8 tasks are in a benchmark"),
        (["--execute", "--evaluate", "/nowhere"], "there is no file /nowhere"),
        (["--execute", "--set", "reward.kl=-1"], "reward.kl"),
    ],
)
def test_what_cannot_work_is_refused_at_once(home: Codelupe, arguments: list[str], message: str):
    done = home.run("reward", "--tasks", str(TOY / "tasks.jsonl"), *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (home.home / "rewards").exists()
