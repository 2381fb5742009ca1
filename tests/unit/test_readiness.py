"""What a whole training takes of a machine, before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from run_folder import RECIPES

from trainer.model.shapes import architecture
from trainer.plan.cards import GIB
from trainer.plan.model import Model, read_model
from trainer.readiness import available_bytes, cards_finding, disk_finding, host_finding, readiness_findings
from trainer.recipe import Recipe
from trainer.recipe_file import load_recipe, parse_recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPES / "phased-kat-dev.yaml")


@pytest.fixture(scope="module")
def model(recipe: Recipe) -> Model:
    return read_model(architecture(recipe.base)[0], recipe.lora)


def test_a_base_that_does_not_fit_into_memory_fails(recipe: Recipe, model: Model) -> None:
    small, large = host_finding(recipe, model, 20 * GIB), host_finding(recipe, model, 400 * GIB)
    assert (small.state, large.state) == ("failed", "ok")
    assert "20.0 GiB of host memory" in small.said and "--smoke" in (small.mend or "")


def test_the_disk_has_to_hold_all_phases(
    recipe: Recipe, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(recipe, phases=recipe.phases[:1])
    free = [0]
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free[0]}))
    adapter = 4 * recipe.lora.rank * sum(m.inputs + m.outputs for m in model.matrices if m.adapted)
    needed = 3 * (adapter + 2 * adapter) + 2 * adapter  # AdamW has two moments, and some counters
    for planned, phases in ((one, 1), (recipe, 3)):
        free[0] = int(0.999 * phases * needed)
        failed = disk_finding(planned, model, tmp_path / "not" / "there")
        assert failed.state == "failed" and str(tmp_path) in failed.said
        free[0] = int(1.001 * phases * needed)
        assert disk_finding(planned, model, tmp_path).state == "ok"


def test_fewer_cards_than_the_recipe_has_are_a_note(recipe: Recipe) -> None:
    assert cards_finding(recipe, 8).state == "ok"
    found = cards_finding(recipe, 0)
    assert found.state == "note" and "0 of 8 cards" in found.said and "8 times as many" in found.said
    assert cards_finding(load_recipe(RECIPES / "embedded.yaml"), 0).state == "ok"


@pytest.mark.parametrize(
    ("distributed", "cards", "state", "said"),
    [
        ({}, 4, "note", "one of 4 cards trains. distributed.launcher: torchrun uses all"),
        ({"launcher": "torchrun"}, 4, "ok", "4 cards; processes that train: 4"),
        ({"launcher": "torchrun"}, 5, "note", "processes that train: 4. A step of 16 samples cannot be shared"),
        ({"launcher": "torchrun", "processes": 1}, 4, "note", "train: 1. distributed.processes: 1 leaves the others"),
    ],
)
def test_cards_without_work_are_a_note(distributed, cards, state, said) -> None:
    recipe = parse_recipe({"name": "a", "stream": "a", "distributed": distributed}, where="the recipe")
    found = cards_finding(recipe, cards)
    assert found.state == state and said in found.said, found.said


def test_all_checks_of_a_recipe_that_fits(tmp_path: Path) -> None:
    found = list(readiness_findings(load_recipe(RECIPES / "embedded.yaml"), tmp_path))
    assert [(one.check, one.state) for one in found][:1] == [("cards", "ok")]
    assert {one.check for one in found} >= {"cards", "space"} and all(one.state != "failed" for one in found)
    assert available_bytes() > 100 * 2**20
