"""`python -m trainer reward`: rounds in folders, interrupted and resumed, and what is refused before any load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_folder import embedded, write_text
from test_evaluate_command import sandbox_or_skip

from db.files import NewFile
from service.intake.drop import read_sources
from service.intake.records import Given
from trainer.__main__ import main
from trainer.errors import Stopped
from trainer.recipe_file import dump_recipe
from trainer.records import read_lines, read_rows
from trainer.reward import command
from trainer.reward.grpo import Grpo
from trainer.run_dir import read_json

TASKS = Path(__file__).parents[2] / "benchmarks" / "reward" / "tasks.jsonl"
TOY = {json.loads(line)["entry_point"]: json.loads(line) for line in TASKS.read_text().splitlines()}
HELD_OUT = {"Toy/strip"}


def toy(path: Path, **changes: Any) -> Path:
    """Write the toy's recipe."""
    small = {
        "lora__dropout": 0.0, "data__max_length": 128, "training__learning_rate": 5e-3, "tracking__tensorboard": False,
        "reward__style": "completion", "reward__max_tokens": 4, "reward__batch_size": 64,
        "reward__held_out_fraction": 0.22, "base__compute_dtype": "float32",
    }  # fmt: skip
    write_text(path, dump_recipe(embedded(**(small | changes))))
    return path


def train(to: Path, *arguments: object, recipe: Path | None = None, tasks: Path | None = None) -> int:
    recipe = recipe or toy(to.with_name("toy.yaml"))
    if tasks is None:
        tasks = to.with_name("tasks.jsonl")
        tasks.write_text("".join(json.dumps(TOY[name]) + "\n" for name in ("strip", "upper", "sort")))
    return main(["reward", str(recipe), str(to), "--tasks", str(tasks), *map(str, arguments)])


@pytest.mark.long
def test_rejection_trains_run_directories_one_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sandbox_or_skip()
    to = tmp_path / "out"
    learn = command.METHODS["rejection"].learn  # type: ignore[attr-defined]

    def stopped(self: Any, number: int, answers: Any) -> dict[str, Any]:
        if number == 2:
            raise Stopped("as Ctrl-C does")
        found: dict[str, Any] = learn(self, number, answers)
        return found

    monkeypatch.setattr(command.METHODS["rejection"], "learn", stopped)
    assert train(to, "--rounds", 2) == Stopped.exit_code
    assert not (to / "reward.json").exists() and not (to / "rounds/0002/report.json").exists()
    monkeypatch.setattr(command.METHODS["rejection"], "learn", learn)
    generations = (to / "rounds/0002/answers/generations.jsonl").read_bytes()
    assert train(to, "--rounds", 2) == 0
    assert (to / "rounds/0002/answers/generations.jsonl").read_bytes() == generations, "kept, not drawn again"

    found = read_json(to / "reward.json")
    assert [rates["after_round"] for rates in found["rates"]] == [0, 1, 2]
    assert found["tasks"] == {"training": 2, "held_out": 1}
    first, second = (to / "rounds" / f"000{n}" / "run" for n in (1, 2))
    assert not (first / "parent").exists()
    assert (second / "parent").resolve() == (first / "adapter").resolve()
    assert (to / "adapter").resolve() == (second / "adapter").resolve()
    rows = [row for run in (first, second) for row in read_rows(run / "rows.jsonl")]
    assert rows and not {row.metadata["task"] for row in rows} & HELD_OUT
    assert {row.metadata["task"] for row in read_rows(first / "held_out.jsonl")} == HELD_OUT
    assert all(row.metadata["messages"][0]["content"].endswith("    return") for row in rows)
    assert all(row.metadata["messages"][1]["content"].startswith(" ") for row in rows), "as it was drawn"

    records = list(read_lines(to / "samples.jsonl"))
    assert len(records) == len(rows) == sum(report["kept"] for report in found["rounds"])
    assert {record["metadata"]["round"] for record in records} == {1, 2}
    assert all(record["metadata"]["task"] not in HELD_OUT for record in records)


@pytest.mark.long
def test_grpo_repeats_a_killed_round_and_gets_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sandbox_or_skip()
    arguments = ("--method", "grpo", "--samples-per-task", 6)
    assert train(tmp_path / "whole", "--rounds", 2, *arguments) == 0
    write = command.write_round

    def killed(job: Any, number: int, *rest: Any, **more: Any) -> None:
        if number == 2:
            raise Stopped("killed after the step, before the report")
        write(job, number, *rest, **more)

    monkeypatch.setattr(command, "write_round", killed)
    assert train(tmp_path / "parts", "--rounds", 2, *arguments) == Stopped.exit_code
    monkeypatch.setattr(command, "write_round", write)
    assert train(tmp_path / "parts", "--rounds", 2, *arguments) == 0
    whole, parts = (read_json(tmp_path / name / "reward.json") for name in ("whole", "parts"))
    assert parts["rates"] == whole["rates"]
    assert whole["rates"][0]["training"] != whole["rates"][-1]["training"], "something was learned"
    weights = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    assert [path.parent.name for path in (tmp_path / "parts").glob("rounds/*/state")] == ["0002"], "the newest only"

    assert train(tmp_path / "parts", "--rounds", 1, *arguments) == 2, "its weights are gone"
    assert "has 2 rounds already" in capsys.readouterr().err

    report = whole["rounds"][0]
    shares = report["training"]["by_task"].values()
    assert report["groups"] == 2 and report["groups_without_signal"] == sum(share in (0, 1) for share in shares)
    assert report["trained_answers"] == 6 * (2 - report["groups_without_signal"])


@pytest.mark.long
def test_partial_rewards_and_distance_reach_the_advantages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sandbox_or_skip()
    seen: list[list[float]] = []
    found = Grpo._rewards

    def rewards(self: Grpo, answers: Any) -> list[float]:
        seen.append(found(self, answers))
        return seen[-1]

    monkeypatch.setattr(Grpo, "_rewards", rewards)
    tests = "def check(candidate):\n    assert candidate(' a ') == 'a'\n    assert candidate('b') == 'never'\n"
    half = {**TOY["strip"], "test": tests}
    prompt = half["prompt"].replace("strip(line)", "other(line)")
    other = {**half, "task_id": "Toy/other", "prompt": prompt, "entry_point": "other"}
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(one) + "\n" for one in (half, other)))
    recipe = toy(tmp_path / "partial.yaml", reward__partial=True, reward__kl=0.1)
    arguments = ("--method", "grpo", "--samples-per-task", 12, "--rounds", 2)
    assert train(tmp_path / "out", *arguments, recipe=recipe, tasks=tasks) == 0
    assert {reward for rewards in seen for reward in rewards} == {0.0, 0.5}, "one of two assertions holds"
    first, second = read_json(tmp_path / "out" / "reward.json")["rounds"]
    assert first["training"]["value"] == 0, "nothing passes whole"
    assert first["kl_to_start"] == pytest.approx(0, abs=1e-4) and second["kl_to_start"] > 0.01


@pytest.mark.long
def test_an_adapter_is_the_start_and_settings_stay_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sandbox_or_skip()
    assert train(tmp_path / "first", "--rounds", 1, "--smoke", "--samples-per-task", 2) == 0
    adapter = tmp_path / "first" / "adapter"
    chat = toy(tmp_path / "chat.yaml", reward__style="chat", data__max_length=384)
    assert (
        train(tmp_path / "second", "--rounds", 1, "--smoke", "--adapter", adapter, "--samples-per-task", 2, recipe=chat)
        == 0
    )
    run = tmp_path / "second/rounds/0001/run"
    assert (run / "parent").resolve() == adapter.resolve()
    (row, *_) = read_rows(run / "rows.jsonl")
    assert [turn["role"] for turn in row.metadata["messages"]] == ["system", "user", "assistant"]
    (found, *_) = read_sources([str(tmp_path / "second/samples.jsonl")], Given())
    assert isinstance(found, NewFile), found
    assert [turn["role"] for turn in found.metadata["messages"]] == ["user", "assistant"], "drop reads a conversation"
    assert train(tmp_path / "first", "--rounds", 1, "--smoke", "--samples-per-task", 3) == 2
    assert "samples_per_task differ" in capsys.readouterr().err
    assert train(tmp_path, "--rounds", 1) == 2
    assert "and no training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (("--method", "grpo"), {"reward__temperature": 0.7}, "needs reward.temperature 1, not 0.7"),
        (("--method", "grpo", "--samples-per-task", 1), {}, "--samples-per-task 2 or more"),
        (("--rounds", 0), {}, "must be 1 or more"),
        (("--split", "train"), {}, "no task of MBPP's split train"),
        (("--adapter", "/"), {}, "has no MANIFEST.json"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    arguments, changes, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(command, "load_tokenizer", None)
    assert train(tmp_path / "out", *arguments, recipe=toy(tmp_path / "r.yaml", **changes)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_launcher_that_has_no_effect_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = toy(tmp_path / "r.yaml", distributed__launcher="torchrun", distributed__processes=2)
    assert train(tmp_path / "out", "--rounds", 0, recipe=recipe) == 2
    assert "distributed.launcher: torchrun has no effect. reward uses one process" in capsys.readouterr().err


def test_nothing_that_passes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sandbox_or_skip()
    records = [TOY["fill"], TOY["upper"]]
    tasks = tmp_path / "hard.jsonl"
    never = "def check(candidate):\n    assert candidate is None\n"
    tasks.write_text("".join(json.dumps({**record, "test": never}) + "\n" for record in records))
    assert train(tmp_path / "out", "--rounds", 1, "--samples-per-task", 2, tasks=tasks) == 2
    assert "no answer passed in 1 rounds" in capsys.readouterr().err
