"""An experiment's plan, its arms, pass@k with differences, and what the report says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from run_folder import RECIPES
from typer.testing import CliRunner

from service.cli.main import app
from service.errors import PreconditionError, UsageError
from service.experiment.arms import Trained, check_alike, check_trained_alike
from service.experiment.overlap import Overlap
from service.experiment.plan import Plan, arm_recipe, check_facts, chosen_arms, chosen_stage, open_plan
from service.experiment.report import Measured, write_report
from service.experiment.scores import differences, pass_at_k, rates, read_verdicts
from service.experiment.tasks import Task
from service.gate.interval import Interval
from service.gate.power import detectable
from trainer.errors import RecipeError
from trainer.evaluate.passk import pass_at_k as trainer_pass_at_k
from trainer.recipe import Phase, Recipe
from trainer.recipe_file import dump_recipe, load_recipe, parse_recipe, recipe_dict
from trainer.records import json_line
from trainer.run_dir import RunDirectory, read_json, write_manifest

TASK = Task(
    task_id="T/1", name="T/1", prompt="def f(x):\n", completion="    return x\n", statement="def f(x):\n",
    metadata={"functionName": "f"}, has_tests=True,
)  # fmt: skip
NONE = Overlap(training=1, same=(), leaking=(), gram_words=10)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(RECIPES / "llama3-humaneval.yaml")


@pytest.fixture
def plan(recipe: Recipe, tmp_path: Path) -> Plan:
    test = tmp_path / "test.jsonl"
    test.write_text("{}\n")
    return Plan(
        root=tmp_path / "experiment", recipe=recipe, stage=recipe.experiment.stages[1], training=(TASK,), test=(TASK,),
        test_file=test, overlap=NONE, smoke=False,
    )  # fmt: skip


# --- recipe ---------------------------------------------------------------------------------------------------


def test_the_recipe_has_the_described_stages_and_arms(recipe: Recipe):
    chosen = recipe.experiment
    assert [(arm.name, arm.metadata) for arm in chosen.arms] == [("control", False), ("experiment", True)]
    assert [(s.name, s.tasks, s.num_epochs, s.gradient_accumulation_steps) for s in chosen.stages] == [
        ("stage1", 5, 1, 1), ("stage4", 164, 3, 4),
    ]  # fmt: skip
    assert (chosen.samples_per_task, chosen.temperature, chosen.k) == (200, 0.8, (1, 10, 100))
    assert recipe.data.turns == "plain" and recipe.experiment == Recipe(name="x", stream="x").experiment


def test_a_recipe_with_an_experiment_survives_writing(recipe: Recipe):
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), where="it") == recipe


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"k": [1, "x"]}, "experiment.k: expected a list of whole numbers"),
        ({"k": []}, "experiment.k: expected a list of whole numbers"),
        ({"k": [0, 1]}, "experiment.k: 0 is below the minimum, 1"),
        ({"k": [1, 1]}, "experiment.k: a number occurs more than once"),
        ({"arms": []}, "experiment.arms: the list is empty"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "experiment.arms: the name a occurs more than once"),
        ({"arms": [{"name": "../a"}]}, "is part of file names"),
        ({"arms": [{"name": "base"}]}, "'base' stands for the base"),
        ({"stages": [{"name": "s", "tasks": 0}]}, "experiment.stages[0].tasks: 0 is below the minimum"),
        ({"temperature": 0}, "at temperature 0 are all the same"),
    ],
)
def test_a_mistaken_section_is_refused(recipe: Recipe, values: dict[str, object], said: str):
    data = recipe_dict(recipe)
    data["experiment"] |= values
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data, where="it")
    assert said in str(caught.value)


# --- plan -----------------------------------------------------------------------------------------------------


def test_arms_differ_in_their_metadata_only(plan: Plan):
    first, second = (recipe_dict(arm_recipe(plan, arm)) for arm in plan.recipe.experiment.arms)
    assert first["training"]["num_epochs"] == 3 and first["training"]["gradient_accumulation_steps"] == 4
    assert (first["data"].pop("metadata"), second["data"].pop("metadata")) == (False, True)
    for record in (first, second):
        assert record.pop("name").startswith("llama3-humaneval-") and record.pop("stream")
    assert first == second
    parse_recipe(recipe_dict(arm_recipe(plan, plan.recipe.experiment.arms[0])), where="it")


def test_a_stage_trains_its_tasks_and_holds_others_out(plan: Plan):
    data = arm_recipe(plan, plan.recipe.experiment.arms[0]).data
    assert (plan.held_out, data.min_held_out, data.held_out_fraction, data.split) == (8, 8, 0.0, "file")
    assert replace(plan, stage=plan.recipe.experiment.stages[0]).held_out == 5


def test_no_arm_ends_early_and_the_last_weights_count(plan: Plan):
    made = arm_recipe(plan, plan.recipe.experiment.arms[0])
    assert not made.training.load_best and not made.training.packing and made.evaluation.patience == 10_000


def test_rows_that_are_test_tasks_are_not_rejected_as_a_leak(plan: Plan):
    listed = replace(plan, recipe=replace(plan.recipe, hygiene=replace(plan.recipe.hygiene, benchmarks=("h.jsonl",))))
    control = plan.recipe.experiment.arms[0]
    assert arm_recipe(listed, control).hygiene.benchmarks == ("h.jsonl",)
    same = replace(listed, overlap=replace(NONE, same=("T/1",)))
    assert arm_recipe(same, control).hygiene.benchmarks == ()


def test_what_does_not_exist_is_named(recipe: Recipe):
    with pytest.raises(UsageError, match=r"--stage stage9: .* stage1, stage4"):
        chosen_stage(recipe, "stage9")
    with pytest.raises(UsageError, match=r"--arm other: .* control, experiment"):
        chosen_arms(recipe, "other")
    assert [arm.name for arm in chosen_arms(recipe, "control")] == ["control"]


def test_an_arm_with_metadata_needs_a_fact_in_each_row(recipe: Recipe):
    bare = replace(TASK, task_id="T/2", metadata={"author": "me"})
    with pytest.raises(UsageError, match="1 of 2 tasks have no fact for the arm experiment: T/2"):
        check_facts(recipe.experiment.arms, [TASK, bare])
    check_facts(recipe.experiment.arms[:1], [bare])


def test_phases_cannot_be_compared(plan: Plan):
    phased = replace(plan, recipe=replace(plan.recipe, phases=(Phase(name="one"),)))
    with pytest.raises(UsageError, match="has phases"):
        arm_recipe(phased, plan.recipe.experiment.arms[0])


def test_a_folder_belongs_to_one_experiment(plan: Plan):
    open_plan(plan, "train")
    open_plan(plan, "train")
    other = replace(plan, training=(replace(TASK, completion="    return 2\n"),))
    open_plan(other, "train")  # nothing was trained yet
    (plan.arm("control") / "runs" / "000001").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds another experiment: rows_sha256 differ"):
        open_plan(plan, "train")
    with pytest.raises(UsageError, match="stage differ"):
        open_plan(replace(other, stage=replace(plan.stage, name="stage1")), "train")


def test_a_folder_of_something_else_is_refused(plan: Plan):
    plan.root.mkdir()
    (plan.root / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not empty, and holds no experiment"):
        open_plan(plan, "train")


# --- arms -----------------------------------------------------------------------------------------------------


def claimed(plan: Plan, name: str, *, rows: str = "row\n", seed: int = 1, **values: object) -> None:
    arm = next(arm for arm in plan.recipe.experiment.arms if arm.name == name)
    made = arm_recipe(plan, arm)
    made = replace(made, **{"base": replace(made.base, revision="1" * 40), **values})
    folder = plan.arm(name) / "runs" / "000001"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(made))
    (folder / "rows.jsonl").write_text(rows)
    write_manifest(folder, seed=seed)


def test_arms_with_the_same_rows_are_alike(plan: Plan):
    claimed(plan, "control")
    check_alike(plan, plan.recipe.experiment.arms)
    claimed(plan, "experiment")
    check_alike(plan, plan.recipe.experiment.arms)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": "other\n"}, "the rows in rows.jsonl"),
        ({"seed": 2}, "seed 1 and 2"),
        ({"base": None}, "base.revision '1111"),
    ],
)
def test_arms_that_differ_in_more_are_refused(plan: Plan, changes: dict[str, object], said: str):
    claimed(plan, "control")
    if "base" in changes:
        changes = {"base": replace(plan.recipe.base, revision="2" * 40)}
    claimed(plan, "experiment", **changes)
    with pytest.raises(PreconditionError, match="control and experiment differ in more than their metadata") as caught:
        check_alike(plan, plan.recipe.experiment.arms)
    assert said in str(caught.value)


def trained(plan: Plan, name: str, **changes: object) -> Trained:
    arm = next(arm for arm in plan.recipe.experiment.arms if arm.name == name)
    found = Trained(
        arm=arm, adapter=plan.arm(name), run=RunDirectory(plan.arm(name) / "runs" / "000001"), decision="promote",
        before={"loss": 2.5}, after={"loss": 1.5}, gain=Interval(difference=-1.0, low=-1.5, high=-0.5, files=8),
        steps=123, trained_tasks=164, held_out_tasks=8, rejected={},
    )  # fmt: skip
    return replace(found, **changes)


def test_an_arm_that_learned_from_other_tasks_is_refused(plan: Plan):
    check_trained_alike([trained(plan, "control"), trained(plan, "experiment")])
    fewer = trained(plan, "experiment", trained_tasks=163, rejected={"too_long_turns": 1})
    with pytest.raises(PreconditionError, match=r"took 123 steps on 163 tasks and rejected .*raise data.max_length"):
        check_trained_alike([trained(plan, "control"), fewer])


# --- scores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answers", "passed", "k"), [(200, 0, 1), (200, 3, 100), (200, 150, 99), (5, 5, 1), (7, 2, 3)])
def test_pass_at_k_is_the_trainer_s(answers: int, passed: int, k: int):
    assert pass_at_k(answers, passed, k) == pytest.approx(trainer_pass_at_k(samples=answers, passed=passed, k=k))


def test_a_k_above_the_answers_is_left_out():
    verdicts = {"a": (10, 5), "b": (10, 0)}
    assert [rate.k for rate in rates(verdicts, (100, 10, 1))] == [1, 10]
    assert rates(verdicts, (1,))[0].value == 0.25
    assert rates({"a": (2, 0), "b": (2, 0)}, (1,))[0].high > 0.5, "Wilson's interval does not collapse at 0"


def test_a_difference_is_paired_over_tasks():
    control = {f"t{n}": (10, n % 10) for n in range(40)}
    better = {name: (10, min(10, passed + 1)) for name, (_, passed) in control.items()}
    better["t0"] = (10, 0)
    (found,) = differences("experiment", better, "control", control, (1,))
    assert found.difference == pytest.approx(39 / 400) and found.is_certain
    assert found.low < found.difference < found.high and found.tasks == 40
    assert found.detectable == pytest.approx(detectable(found.deviation, 40, power=0.8, alpha=0.05))
    assert "It is certain: experiment is better than control" in found.sentence()
    (other,) = differences("control", control, "experiment", better, (1,))
    assert "control is worse than experiment" in other.sentence() and other.low == pytest.approx(-found.high)


def test_noise_is_not_certain():
    one = {f"t{n}": (2, n % 3 and 1) for n in range(12)}
    other = {f"t{n}": (2, (n + 1) % 3 and 1) for n in range(12)}
    (found,) = differences("experiment", one, "control", other, (1,))
    assert not found.is_certain and "there may be no difference" in found.sentence()


@pytest.mark.parametrize("passed", [0, 1])
def test_tasks_that_all_differ_alike_show_nothing(passed: int):
    (found,) = differences("a", {"x": (1, passed), "y": (1, passed)}, "b", {"x": (1, 0), "y": (1, 0)}, (1,))
    assert not found.is_certain and found.detectable is None and "so nothing tells" in found.sentence()


def test_detectable_is_what_the_power_needs():
    from statsmodels.stats.power import TTestPower

    found = detectable(0.2, 164, power=0.8, alpha=0.05)
    assert found is not None and 0.04 < found < 0.05
    assert float(TTestPower().power(found / 0.2, 164, 0.05)) == pytest.approx(0.8, abs=1e-4)
    assert detectable(0.2, 1, power=0.8, alpha=0.05) is None


def test_verdicts_beyond_those_asked_for_do_not_count(tmp_path: Path):
    lines = [{"task_id": task, "sample": n, "passed": n == 2} for task in ("a", "b") for n in range(3)]
    (tmp_path / "outcomes.jsonl").write_text("".join(map(json_line, lines)))
    assert read_verdicts(tmp_path, ["a"], 2) == {"a": (2, 0)}
    assert read_verdicts(tmp_path, ["a", "b"], 3) == {"a": (3, 1), "b": (3, 1)}
    with pytest.raises(PreconditionError, match="lacks verdicts on 1 tasks, such as c"):
        read_verdicts(tmp_path, ["a", "c"], 3)


# --- command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "stage9"], "--stage stage9: the recipe llama3-humaneval has the stages stage1, stage4"),
        (["--arm", "other"], "--arm other: the recipe llama3-humaneval has the arms control, experiment"),
        (["--train", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--train", "bare.jsonl"], "2 of 2 tasks have no fact for the arm experiment"),
        (["--test", "bare.jsonl"], "2 of 2 tasks of bare.jsonl have no tests"),
        (["--split", "dev"], "--split dev: MBPP has the splits few_shot, test, validation, train, or all"),
        (["--split", "train"], "has no splits, because it is not MBPP"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    own = {
        "task_id": "Own/1", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 2\n",
    }  # fmt: skip
    (tmp_path / "own.jsonl").write_text(json_line(own))
    bare = [{"prompt": f"Say {number}.", "completion": "So be it!"} for number in range(2)]
    (tmp_path / "bare.jsonl").write_text("".join(map(json_line, bare)))
    usual = {"--stage": "stage1", "--train": "own.jsonl", "--test": "own.jsonl"} | dict([arguments])
    given = [part for pair in usual.items() for part in pair]
    done = CliRunner().invoke(
        app, ["experiment", "--recipe", "llama3-humaneval", "--to", str(tmp_path / "to"), *given],
        env={"CODELUPE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert isinstance(done.exception, UsageError) and said in str(done.exception), done.exception
    assert not (tmp_path / "to").exists()


# --- report ---------------------------------------------------------------------------------------------------


def measured(**changes: object) -> Measured:
    control = {f"t{n}": (2, n % 2) for n in range(40)}
    verdicts = {"base": control, "control": control, "experiment": {**dict.fromkeys(control, (2, 1)), "t0": (2, 0)}}
    found = Measured(tasks=40, samples_per_task=2, temperature=0.8, top_p=0.95, executed=True, verdicts=verdicts)
    return replace(found, **changes)


def reported(plan: Plan, found: Measured | None, names: tuple[str, ...] = ("control", "experiment")) -> str:
    plan.root.mkdir(exist_ok=True)
    for name in names:
        if not plan.arm(name).exists():
            claimed(plan, name)
    write_report(plan, [trained(plan, name) for name in names], found)
    return (plan.root / "experiment.md").read_text()


def test_the_report_gives_losses_rates_differences_and_words(plan: Plan):
    text = reported(plan, measured())
    assert "| control | no | 164 | 8 | 123 | 2.5000 | 1.5000 | -1.0000 (-1.5000 to -0.5000) |" in text
    assert "| base | 25.0 %" in text and "| experiment | 48.8 %" in text
    lines = [line for line in text.splitlines() if line.startswith("- pass@1")]
    assert lines[0].startswith("- pass@1: experiment − control = +23.8 points") and "It is certain" in lines[0]
    assert [line.split(" = ")[0] for line in lines[1:]] == ["- pass@1: control − base", "- pass@1: experiment − base"]
    record = read_json(plan.root / "experiment.json")
    assert record["pass"]["control"][0]["value"] == 0.25 and record["differences"][0]["certain"]
    assert record["arms"]["control"]["loss_before"] == 2.5 and record["test"]["samples_per_task"] == 2


def test_the_report_says_first_if_the_test_was_trained_on(plan: Plan):
    text = reported(replace(plan, overlap=replace(NONE, same=("T/1",))), measured())
    assert "THE PASS RATES ARE THOSE OF TRAINING TASKS" in text.split("##")[0]


def test_without_execution_there_are_no_rates(plan: Plan):
    text = reported(plan, measured(executed=False, verdicts={}))
    assert "Nothing was executed" in text and "| control | no | 164" in text and "| base |" not in text


def test_an_arm_alone_is_reported_without_a_test(plan: Plan):
    assert "not all arms are trained" in reported(plan, None, ("control",))
