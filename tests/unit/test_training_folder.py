"""The folder of a training: what it was started with, and who may use it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from run_folder import RECIPES

from service.errors import UsageError
from service.training.folder import NAME, open_folder
from service.training.sources import Part
from trainer.recipe import Recipe
from trainer.recipe_file import load_recipe
from trainer.run_dir import read_json, write_json

PARTS = [Part(phase=None, sources=("/project",))]


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(RECIPES / "qwen-5090.yaml")


def begin_run(root: Path) -> None:
    (root / "runs" / "000001").mkdir(parents=True)


def test_a_sweep_and_a_training_do_not_share_a_folder(tmp_path: Path, recipe: Recipe) -> None:
    root = tmp_path / "one"
    open_folder(root, recipe, PARTS, kind="sweep")
    begin_run(root)
    open_folder(root, recipe, PARTS, kind="sweep")
    with pytest.raises(UsageError, match="holds a sweep, not a training"):
        open_folder(root, recipe, PARTS)


def test_another_recipe_needs_another_folder_once_a_run_has_begun(tmp_path: Path, recipe: Recipe) -> None:
    root, other = tmp_path / "one", replace(recipe, name="other")
    open_folder(root, recipe, PARTS)
    assert open_folder(root, other, PARTS).facts["recipe"] == "other"
    begin_run(root)
    with pytest.raises(UsageError, match="holds another training"):
        open_folder(root, recipe, PARTS)


def test_the_folder_of_an_earlier_release_is_opened(tmp_path: Path, recipe: Recipe) -> None:
    root = tmp_path / "one"
    open_folder(root, recipe, PARTS).note_read("digest")
    begin_run(root)
    write_json(root / NAME, {name: value for name, value in read_json(root / NAME).items() if name != "kind"})
    assert open_folder(root, recipe, PARTS, kind="sweep").read


def test_unfit_sources_are_read_again_unless_a_run_has_begun(tmp_path: Path, recipe: Recipe) -> None:
    root = tmp_path / "one"
    folder = open_folder(root, recipe, PARTS)
    folder.note_read("digest")
    folder.note_unfit()
    folder = open_folder(root, recipe, PARTS)
    assert not folder.read
    folder.note_read("digest")
    begin_run(root)
    folder.note_unfit()
    assert open_folder(root, recipe, PARTS).read
