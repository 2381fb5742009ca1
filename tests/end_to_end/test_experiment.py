"""`codelupe experiment`: two arms on the same tasks, with and without metadata, and their test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Codelupe

from trainer.recipe_file import load_recipe
from trainer.run_dir import read_json, verify_manifest

pytestmark = pytest.mark.timeout(300)

NAMES = ("double", "triple", "half", "square", "negate", "same", "next", "last", "first", "root", "unread")


def task(family: str, number: int, name: str) -> dict[str, str]:
    return {
        "task_id": f"{family}/{number}", "entry_point": name,
        "prompt": f'def {name}(x):\n    """The {family} of {name} number {number}."""\n',
        "canonical_solution": f"    return [{number} + one for one in x]\n" if family == "Train" else "    return x\n",
        "test": "def check(candidate):\n    assert candidate([]) == []\n",
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Codelupe]:
    """Yield a folder with training tasks, and other tasks for the test."""
    place = Codelupe(tmp_path_factory.mktemp("experiment"))
    for family in ("Train", "Test"):
        lines = [json.dumps(task(family, number, name)) for number, name in enumerate(NAMES)]
        (place.home / f"{family}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    yield place


COMMAND = (
    "experiment", "--recipe", "llama3-humaneval", "--stage", "stage1", "--train", "Train.jsonl",
    "--test", "Test.jsonl", "--smoke", "--max-samples", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(place: Codelupe) -> Path:
    """Train the control alone. Return the folder of the experiment."""
    done = place.run(*COMMAND, "--arm", "control", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Not yet: not all arms are trained" in done.stdout
    folder = place.home / "experiments" / "llama3-humaneval-stage1-smoke"
    assert not (folder / "experiment").exists() and not (folder / "evaluations").exists()
    return folder


@pytest.fixture(scope="module")
def whole(place: Codelupe, alone: Path) -> dict[str, object]:
    """Train the other arm, and run the test. Return the report."""
    before = (alone / "control" / "runs" / "000001" / "report.json").stat().st_mtime_ns
    done = place.run(*COMMAND, "--execute", "--json", timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (alone / "control" / "runs" / "000001" / "report.json").stat().st_mtime_ns == before
    return json.loads(done.stdout)


def test_the_arms_have_the_same_rows_and_differ_in_the_metadata(alone: Path, whole: dict[str, object]):
    runs = [alone / name / "runs" / "000001" for name in ("control", "experiment")]
    for name in ("rows.jsonl", "held_out.jsonl"):
        assert len({read_json(run / "MANIFEST.json")["files"][name] for run in runs}) == 1
    recipes = [load_recipe(run / "recipe.yaml") for run in runs]
    assert [recipe.data.metadata for recipe in recipes] == [False, True]
    assert len({(recipe.base, recipe.training) for recipe in recipes}) == 1
    for arm in whole["arms"].values():
        verify_manifest(Path(arm["adapter"]))
        assert (arm["trained_tasks"], arm["held_out_tasks"], arm["rejected"]) == (5, 5, {})
        assert arm["loss_after"] < arm["loss_before"]


def test_the_metadata_are_read_before_the_question(alone: Path, whole: dict[str, object]):
    tokens = [
        read_json(alone / name / "runs" / "000001" / "report.json")["train"] for name in ("control", "experiment")
    ]
    assert tokens[0]["samples"] == tokens[1]["samples"] == 5
    assert tokens[1]["tokens_seen"] > tokens[0]["tokens_seen"] + 50


def test_base_and_arms_are_tested_alike(alone: Path, whole: dict[str, object]):
    assert list(whole["pass"]) == ["base", "control", "experiment"]
    assert all([rate["k"] for rate in of] == [1] for of in whole["pass"].values())
    assert [(one["name"], one["other"]) for one in whole["differences"]] == [
        ("experiment", "control"), ("control", "base"), ("experiment", "base"),
    ]  # fmt: skip
    settings = [read_json(alone / "evaluations" / name / "settings.json") for name in whole["pass"]]
    assert len({json.dumps({**one, "adapter": None}) for one in settings}) == 1
    assert settings[0]["style"] == "completion" and settings[0]["temperature"] == 0.8
    assert settings[0]["adapter"] is None and settings[1]["adapter"] != settings[2]["adapter"]
    assert whole["overlap"]["same"] == [] and "none of 10 training tasks" in (alone / "experiment.md").read_text()
