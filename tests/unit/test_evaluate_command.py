"""`python -m trainer evaluate`, from its arguments to evaluation.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from openai_stand_in import KEY, StandIn, stand_in
from run_folder import demo_rows, embedded, run, short_rows, short_run, write_text
from test_suites import HUMANEVAL, MBPP

from trainer.__main__ import main
from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.bubblewrap import check_available
from trainer.recipe_file import dump_recipe
from trainer.records import json_line, read_evaluation
from trainer.run_dir import read_json

RIGHT, WRONG = "```python\n    return 2 * x\n```", "```python\n    return 3 * x\n```"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "embedded.yaml"
    write_text(path, dump_recipe(embedded()))
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A model that fails task Own/1, and every second sample of the others."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)

    def answer(body: dict[str, Any]) -> str:
        hard = "Own 1" in body["messages"][1]["content"]
        return WRONG if hard or body["seed"] % 2 else RIGHT

    with stand_in(answer) as found:
        yield found


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Four tasks in HumanEval's form."""
    tasks = [
        {**HUMANEVAL, "task_id": f"Own/{n}", "prompt": f'def double(x):\n    """Double. Own {n}"""\n'} for n in range(4)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return path


def evaluate(recipe: Path, to: Path, suite: str, file: Path, *arguments: object) -> int:
    return main(["evaluate", str(recipe), str(to), "--suite", suite, "--file", str(file), *map(str, arguments)])


def sandbox_or_skip() -> None:
    try:
        check_available()
    except UnusableInput as error:
        pytest.skip(str(error))


def by_server(server: StandIn) -> list[str]:
    return ["--engine", "openai", "--url", server.url, "--served-name", "m"]


@pytest.mark.long
def test_verdicts_of_the_sandbox_become_pass_at_k(recipe, suite, server, tmp_path):
    sandbox_or_skip()
    sampled = ["--samples-per-task", 10, "--temperature", 0.8, "--execute", *by_server(server)]
    assert evaluate(recipe, tmp_path / "a", "own", suite, *sampled) == 0
    found = read_json(tmp_path / "a" / "evaluation.json")
    measures = found["split"]["all"]
    assert (found["tasks"], found["samples"], measures["pass@10"]["tasks"]) == (4, 40, 4)
    assert "pass@100" not in measures, "there are ten samples"
    assert measures["pass@10"]["value"] == pytest.approx(0.75, abs=0.02), "all tasks but Own/1"
    passed = found["reasons"]["passed"]
    assert measures["pass@1"]["value"] == pytest.approx(passed / 40)
    assert found["reasons"] == {"passed": passed, "AssertionError": 40 - passed} and 5 < passed < 27
    assert found["settings"]["style"] == "chat" and found["settings"]["served_name"] == "m"

    calls = len(server.calls)
    again = ["--samples-per-task", 11, *sampled[2:]]
    assert evaluate(recipe, tmp_path / "a", "own", suite, *again) == 0
    assert len(server.calls) == calls + 4, "only what was missing"
    assert evaluate(recipe, tmp_path / "a", "own", suite, *again, "--top-p", 0.5) == 2, "other settings"


@pytest.mark.long
def test_two_evaluations_are_compared(recipe, suite, server, tmp_path, capsys):
    sandbox_or_skip()
    sampled = ["--samples-per-task", 3, "--temperature", 0.8, "--execute", *by_server(server)]
    assert evaluate(recipe, tmp_path / "a", "own", suite, *sampled) == 0
    server.answer = lambda body: RIGHT
    better = [*sampled[:-1], "better", "--against", tmp_path / "a"]
    assert evaluate(recipe, tmp_path / "b", "own", suite, *better) == 0
    compared = read_json(tmp_path / "b" / "evaluation.json")["against"]["passed"]
    assert compared["tasks"] == 4 and compared["difference"] >= 0.25 and compared["second_only"] == 0
    assert compared["low"] <= compared["difference"] <= compared["high"]
    assert evaluate(recipe, tmp_path / "c", "own", suite, *better, "--seed", 3) == 2
    assert "cannot be compared, because it has other settings: seed 42 instead of 3" in capsys.readouterr().err
    assert evaluate(recipe, tmp_path / "d", "own", suite, *[a for a in better if a != "--execute"]) == 2
    assert "Add --execute" in capsys.readouterr().err


def test_nothing_is_executed_unless_asked_for(recipe, suite, server, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.evaluate.execute.run_task", None)
    assert evaluate(recipe, tmp_path / "a", "own", suite, "--max-samples", 2, *by_server(server)) == 0
    found = read_json(tmp_path / "a" / "evaluation.json")
    assert (found["executed"], found["tasks"]) == (False, 2) and "split" not in found
    assert not (tmp_path / "a" / "outcomes.jsonl").exists()


def test_a_machine_without_a_sandbox_is_refused_before_generation(recipe, suite, server, tmp_path, monkeypatch, capsys):
    def missing() -> None:
        raise UnusableInput("the sandbox does not start: user namespaces are forbidden")

    monkeypatch.setattr("trainer.evaluate.execute.check_available", missing)
    assert evaluate(recipe, tmp_path / "a", "own", suite, "--execute", *by_server(server)) == 2
    assert "namespaces are forbidden" in capsys.readouterr().err and not server.calls


def test_mbpps_test_split_is_the_default(recipe, server, tmp_path, capsys):
    file = tmp_path / "mbpp.jsonl"
    file.write_text("".join(json.dumps({**MBPP, "task_id": number}) + "\n" for number in (2, 11, 510, 601)))
    plain = ["--style", "chat", *by_server(server)]
    server.answer = lambda body: "```python\ndef double(x):\n    return 2 * x\n```"
    assert evaluate(recipe, tmp_path / "a", "mbpp", file, *plain) == 0
    assert read_json(tmp_path / "a" / "evaluation.json")["tasks"] == 2
    assert evaluate(recipe, tmp_path / "b", "mbpp", file, *plain, "--split", "validation") == 2
    assert "Its splits are few_shot, test, train" in capsys.readouterr().err
    sandbox_or_skip()
    assert evaluate(recipe, tmp_path / "c", "mbpp", file, *plain, "--split", "all", "--execute") == 0
    found = read_json(tmp_path / "c" / "evaluation.json")["split"]
    assert {name: measures["pass@1"]["value"] for name, measures in found.items()} == {
        "few_shot": 1.0, "test": 1.0, "train": 1.0,
    }, "kept apart"  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--samples-per-task", 2], "needs --temperature above 0"),
        (["--temperature", -1], "from 0 to 100"),
        (["--top-p", 0], "above 0"),
        (["--engine", "openai"], "--url"),
        (["--adapter", "/"], "not an adapter folder"),
    ],
)
def test_contradictions_are_refused(recipe, suite, tmp_path, capsys, arguments, problem):
    assert evaluate(recipe, tmp_path / "a", "own", suite, *arguments) == 2
    assert problem in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps: its recipe, held-out rows, adapter and evaluation."""
    directory = short_run(tmp_path_factory.mktemp("runs") / "1")
    assert run(directory) == 0
    return directory.root


def test_held_out_losses_are_those_that_the_run_measured(trained, tmp_path):
    arguments = ["--adapter", trained / "adapter"]
    assert evaluate(trained / "recipe.yaml", tmp_path / "a", "held-out", trained / "held_out.jsonl", *arguments) == 0
    there = {sample.file_ids: sample for sample in read_evaluation(tmp_path / "a" / "evaluation.jsonl")}
    then = list(read_evaluation(trained / "evaluation.jsonl"))
    assert then and len(there) == 4
    for sample in then:
        found = there[sample.file_ids]
        for model in ("anchor", "candidate"):
            assert found.loss[model] == pytest.approx(sample.loss[model], rel=1e-4)
        assert found.loss["current"] == found.loss["anchor"] != found.loss["candidate"]
    arguments = ["--current", trained / "adapter"]
    assert evaluate(trained / "recipe.yaml", tmp_path / "b", "held-out", trained / "held_out.jsonl", *arguments) == 0
    models = read_json(tmp_path / "b" / "evaluation.json")["models"]
    assert models["candidate"] == models["anchor"] != models["current"]
    assert models["current"]["loss"] == pytest.approx(
        read_json(tmp_path / "a" / "evaluation.json")["models"]["candidate"]["loss"], rel=1e-4
    )


def test_two_adapters_are_measured_side_by_side(trained, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in (trained / "adapter").iterdir():
        if path.name != "MANIFEST.json":
            (other / path.name).write_bytes(path.read_bytes())
    arguments = ["--adapter", trained / "adapter", "--current", other]
    assert evaluate(trained / "recipe.yaml", tmp_path / "a", "held-out", trained / "held_out.jsonl", *arguments) == 0
    models = read_json(tmp_path / "a" / "evaluation.json")["models"]
    assert models["current"] == pytest.approx(models["candidate"]) and models["anchor"] != models["current"]


def test_infilling_of_held_out_files(trained, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json_line(asdict(row)) for row in [*short_rows(6, start=101), *demo_rows(2)]))
    arguments = ["--max-tokens", 24, "--adapter", trained / "adapter"]
    assert evaluate(trained / "recipe.yaml", tmp_path / "a", "fim", rows, *arguments) == 0
    found = read_json(tmp_path / "a" / "evaluation.json")
    assert found["tasks"] == found["all"]["all"]["tasks"] > 0 and found["left_out"] > 0
    assert 0 < found["all"]["all"]["edit_similarity"]["value"] < 1
    again = [*arguments[:2], "--against", tmp_path / "a"]
    assert evaluate(trained / "recipe.yaml", tmp_path / "b", "fim", rows, *again) == 0
    compared = read_json(tmp_path / "b" / "evaluation.json")["against"]
    assert compared["passed"]["tasks"] == found["tasks"] and "p_value" not in compared["edit_similarity"]


def test_a_damaged_adapter_is_refused(trained, suite, tmp_path, capsys):
    copy = tmp_path / "adapter"
    copy.mkdir()
    for path in (trained / "adapter").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "adapter_config.json").write_text("{}")
    assert evaluate(trained / "recipe.yaml", tmp_path / "a", "own", suite, "--adapter", copy) == 2
    assert "adapter_config.json has changed" in capsys.readouterr().err
    (copy / "MANIFEST.json").unlink()
    assert evaluate(trained / "recipe.yaml", tmp_path / "b", "own", suite, "--adapter", copy) == 2
    assert "not a LoRA adapter" in capsys.readouterr().err
