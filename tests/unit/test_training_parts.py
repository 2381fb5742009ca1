"""The parts of a training and a sweep: sources by phase, changes to a recipe, the smoke recipe, what is varied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from run_folder import RECIPES

from service.errors import UsageError
from service.settings.overrides import overridden
from service.sweep.space import Dimension, dimensions, grid, size
from service.training.smoke import MOST_RANK, smaller
from service.training.sources import Part, fingerprint, parts_of
from trainer.recipe import Phase, Recipe
from trainer.recipe_file import dump_recipe, load_recipe, parse_recipe

PHASES = (Phase(name="one", file="1.jsonl"), Phase(name="two", file="2.jsonl"))


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(RECIPES / "qwen-5090.yaml")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("{}\n", encoding="utf-8")


# --- sources --------------------------------------------------------------------------------------------------


def test_files_of_a_folder_belong_to_their_phases(recipe: Recipe, tmp_path: Path) -> None:
    touch(tmp_path, "1.jsonl", "2.jsonl", "notes.md")
    found = parts_of(replace(recipe, phases=PHASES), [str(tmp_path)])
    assert found == [
        Part(phase="one", sources=(str(tmp_path / "1.jsonl"),)),
        Part(phase="two", sources=(str(tmp_path / "2.jsonl"),)),
    ]


def test_files_of_phases_may_be_in_several_folders(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    touch(tmp_path / "a", "1.jsonl")
    touch(tmp_path / "b", "1.jsonl", "2.jsonl")
    found = parts_of(replace(recipe, phases=PHASES), [str(tmp_path / "a"), str(tmp_path / "b")])
    assert [(part.phase, len(part.sources)) for part in found] == [("one", 2), ("two", 1)]


def test_a_missing_file_of_a_phase_is_named(recipe: Recipe, tmp_path: Path) -> None:
    touch(tmp_path, "2.jsonl")
    with pytest.raises(UsageError, match=r"1\.jsonl \(phase one\) is missing"):
        parts_of(replace(recipe, phases=PHASES), [str(tmp_path)])


def test_other_files_name_their_phase_themselves(recipe: Recipe, tmp_path: Path) -> None:
    touch(tmp_path, "all.jsonl")
    expected = [Part(phase=None, sources=(str(tmp_path / "all.jsonl"),))]
    assert parts_of(replace(recipe, phases=PHASES), [str(tmp_path / "all.jsonl")]) == expected
    assert parts_of(recipe, [str(tmp_path / "all.jsonl")]) == expected


def test_the_fingerprint_tells_whether_a_file_changed(tmp_path: Path) -> None:
    (tmp_path / "inside" / ".git").mkdir(parents=True)
    touch(tmp_path / "inside", "a.py", "b.py")
    parts = [Part(phase=None, sources=(str(tmp_path / "inside"), str(tmp_path / "gone.py"), "hf://owner/name"))]
    before = fingerprint(parts)
    touch(tmp_path / "inside" / ".git", "index")
    assert fingerprint(parts) == before
    (tmp_path / "inside" / "b.py").write_text("x = 1\n", encoding="utf-8")
    assert fingerprint(parts) != before
    changed = fingerprint(parts)
    (tmp_path / "inside" / "a.py").unlink()
    assert fingerprint(parts) not in (before, changed)


# --- changes --------------------------------------------------------------------------------------------------


def test_a_key_may_leave_out_its_section(recipe: Recipe) -> None:
    changed = overridden(
        recipe, ["learning_rate=1e-4", "lora.rank=32", "builders={fim: 0.5, items: 1}", "max_steps=null"]
    )
    assert changed.training.learning_rate == 1e-4 and changed.lora.rank == 32
    assert changed.data.builders == {"fim": 0.5, "items": 1.0} and changed.training.max_steps is None
    assert overridden(recipe, []) == recipe


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("learning_rate", "is not KEY=VALUE"),
        ("speed=1", "a recipe has no value 'speed'"),
        ("batch_size=0", "training.batch_size: 0 is below the minimum"),
        (
            "held_out_fraction=0.1",
            "several sections have held_out_fraction. Use one of data.held_out_fraction, reward.",
        ),
        ("rank=none", "lora.rank: expected a whole number, not 'none'"),
        ("rank=[1", "is not a value"),
        ("rank=0", "lora.rank: 0 is below the minimum, 1"),
    ],
)
def test_changes_that_are_wrong(recipe: Recipe, pair: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        overridden(recipe, [pair])
    assert said in str(error.value)


# --- smoke ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_smoke_recipe_is_valid_and_keeps_kinds_and_names(path: Path) -> None:
    recipe = load_recipe(path)
    small = smaller(recipe, "/toy")
    assert parse_recipe(yaml.safe_load(dump_recipe(small)), where="smoke") == small
    assert small.lora.rank <= MOST_RANK and small.lora.alpha / small.lora.rank == recipe.lora.alpha / recipe.lora.rank
    assert (small.name, small.stream, small.lora.targets) == (recipe.name, recipe.stream, recipe.lora.targets)
    assert small.base.quantization == recipe.base.quantization
    assert small.data.builders == recipe.data.builders
    assert (small.training.optimizer, small.training.schedule) == (recipe.training.optimizer, recipe.training.schedule)
    assert small.phase_names == recipe.phase_names


# --- what a sweep varies --------------------------------------------------------------------------------------


def test_a_grid_has_every_combination(recipe: Recipe) -> None:
    found = dimensions(
        recipe, ["learning_rate=1e-4,2e-4", "weight_decay=0.01,0.1", "targets=[q_proj],[q_proj, v_proj]"]
    )
    assert size(found) == 8 and len(list(grid(found))) == 8
    first, last = next(iter(grid(found))), list(grid(found))[-1]
    keys = ("training.learning_rate", "training.weight_decay", "lora.targets")
    assert tuple(first) == keys
    assert tuple(first.values()) == (1e-4, 0.01, ["q_proj"])
    assert tuple(last.values()) == (2e-4, 0.1, ["q_proj", "v_proj"])


def test_a_range_is_whole_where_the_value_is(recipe: Recipe) -> None:
    found = dimensions(recipe, ["rank=4..64", "learning_rate=1e-5..1e-3"])
    assert found == [
        Dimension(key="lora.rank", low=4, high=64, is_whole=True),
        Dimension(key="training.learning_rate", low=1e-5, high=1e-3),
    ]
    assert size(found) == float("inf")
    assert recipe.training.max_steps is None
    assert dimensions(recipe, ["max_steps=2..5"])[0].is_whole
    assert not dimensions(recipe, ["data.held_out_fraction=0.1..0.2"])[0].is_whole


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "nothing to vary"),
        (["learning_rate"], "is not KEY=VALUE,VALUE"),
        (["learning_rate="], "is not KEY=VALUE,VALUE"),
        (["learning_rate=1e-4,0"], "training.learning_rate: 0 is below the minimum"),
        (["learning_rate=1e-4,1e-4"], "lists a value twice"),
        (["rank=4,8", "lora.rank=16"], "lora.rank is given more than once"),
        (["model=a,b"], "base.model cannot be varied"),
        (["phases=1..2"], "phases: expected a list"),
        (["rank=8..4"], "is not a range LOW..HIGH of numbers above 0"),
        (["rank=0..4"], "is not a range LOW..HIGH of numbers above 0"),
        (["rank=4..99999"], "lora.rank: 99999 is above the maximum"),
        (["schedule=cosine,step"], "training.schedule: 'step' is not one of"),
    ],
)
def test_what_cannot_be_varied(recipe: Recipe, pairs: list[str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        dimensions(recipe, pairs)
    assert said in str(error.value)
