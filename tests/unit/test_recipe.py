"""Recipes have strict keys, report every problem at once, and survive a round trip to their frozen form."""

from __future__ import annotations

import pytest
import yaml
from run_folder import RECIPES

from trainer.errors import RecipeError
from trainer.recipe import in_phase, pinned
from trainer.recipe_file import dump_recipe, load_recipe, parse_recipe, recipe_dict, with_overrides

LEAST = {"name": "a", "stream": "b"}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_read_and_frozen(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), where="frozen") == recipe


def test_the_default_recipe_matches_the_design():
    recipe = load_recipe(RECIPES / "qwen-5090.yaml")
    assert recipe.base.model == "Qwen/Qwen2.5-Coder-14B-Instruct" and recipe.base.quantization == "nf4"
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (256, 512, 0.05)
    training = recipe.training
    assert (training.batch_size, training.gradient_accumulation_steps) == (4, 4)
    assert (training.learning_rate, training.schedule, training.optimizer) == (2e-5, "linear", "adamw_8bit")
    assert (recipe.evaluation.patience, recipe.evaluation.threshold) == (3, 0.01)


def test_every_problem_is_listed_at_once():
    bad = {
        "name": "a",
        "lora": {"rank": 0, "ranks": 3, "targets": []},
        "training": {"batch_size": "four", "schedule": "step", "tf32": 1},
        "evaluation": None,
    }
    with pytest.raises(RecipeError) as error:
        parse_recipe(bad, where="r.yaml")
    text = str(error.value)
    for key in (
        "stream: required, but missing",
        "lora.rank: 0 is below",
        "lora.ranks: unknown key",
        "lora.targets",
        "training.batch_size: expected a whole number",
        "training.schedule: 'step' is not one of linear, constant, cosine, cosine_with_restarts, range_test",
        "training.tf32: expected true or false",
        "evaluation: expected a mapping",
    ):
        assert key in text, key
    assert len(error.value.problems) == 8


@pytest.mark.parametrize(
    ("section", "word"),
    [
        ({"data": {"context_fraction_low": 0.5, "context_fraction_high": 0.4}}, "context_fraction_low"),
        ({"lora": {"targets": ["q_proj", "q_proj"]}}, "duplicate name"),
        ({"stream": "a/b"}, "is a file name"),
        ({"training": {"checkpointing": "none", "offload_checkpoints": "always"}}, "no checkpoints to offload"),
        ({"stream": "adapters"}, "is reserved"),
        ({"data": {"held_out_fraction": 0, "min_held_out": 0}}, "no row would be held out"),
        ({"training": {"min_learning_rate": 3e-5}}, "3e-05 is greater than training.learning_rate"),
        ({"training": {"schedule": "constant", "min_learning_rate": 1e-6}}, "no effect with schedule: constant"),
        ({"training": {"schedule": "range_test"}}, "must be above 0"),
        ({"training": {"schedule": "range_test", "min_learning_rate": 2e-5}}, "must be above 0 and below"),
        ({"training": {"schedule": "cosine", "restarts": 2}}, "or use cosine_with_restarts"),
        ({"training": {"optimizer": "adafactor", "beta1": 0.5}}, "beta1: has no effect with optimizer: adafactor"),
        ({"training": {"optimizer": "sgd", "epsilon": 1e-6}}, "epsilon: has no effect with optimizer: sgd"),
        ({"training": {"optimizer": "adamw_fused", "adapter_dtype": "bfloat16"}}, "rounds stochastically"),
        ({"corpus": {"samples": 10, "tokens": 9}}, "less than corpus.samples"),
        ({"corpus": {"tokens": 9}}, "no effect without corpus.samples"),
        ({"distributed": {"strategy": "zero3"}}, "zero3 shares nothing, because one process trains with .*torchrun"),
        ({"distributed": {"strategy": "fsdp2", "processes": 1}}, "fsdp2 shares nothing, because distributed.processes"),
        (
            {"distributed": {"strategy": "zero2", "processes": 2}, "training": {"optimizer": "adafactor"}},
            "sums over rows and columns, which zero2 divides",
        ),
        (
            {"distributed": {"strategy": "zero2", "processes": 2}, "training": {"adapter_dtype": "bfloat16"}},
            "DeepSpeed keeps a float32 copy",
        ),
        ({"distributed": {"processes": "all"}}, "expected a whole number or auto, not 'all'"),
        ({"distributed": {"launcher": "slurm"}}, "'slurm' is not one of process, torchrun, ray"),
        ({"distributed": {"processes": 4097}}, "above the maximum, 4096"),
        ({"training": {"max_steps": 0}}, "max_steps: 0 is below"),
    ],
)
def test_values_that_contradict_each_other(section, word):
    with pytest.raises(RecipeError, match=word):
        parse_recipe(LEAST | section, where="r.yaml")


def test_an_old_key_is_reported_with_its_replacement():
    with pytest.raises(RecipeError, match=r"training\.activation_checkpointing: unknown key. .*checkpointing, offload"):
        parse_recipe(LEAST | {"training": {"activation_checkpointing": True}}, where="r.yaml")


def test_numbers_as_yaml_writes_them():
    recipe = parse_recipe(yaml.safe_load("{name: a, stream: b, training: {learning_rate: 2e-5}}"), where="r")
    assert recipe.training.learning_rate == 2e-5


def test_overrides_and_pins():
    recipe = parse_recipe(LEAST, where="r")
    changed = with_overrides(recipe, {"training.batch_size": 7, "name": "c"})
    assert (changed.training.batch_size, changed.name, recipe.training.batch_size) == (7, "c", 4)
    with pytest.raises(RecipeError, match=r"training\.batch_size"):
        with_overrides(recipe, {"training.batch_size": 0})
    assert pinned(recipe, model="m", revision="r").base.revision == "r"
    assert recipe_dict(recipe)["lora"]["targets"][0] == "q_proj"


def test_a_file_that_is_not_a_recipe(tmp_path):
    for text, word in [("[", "expected"), ("- a", "expected a mapping"), ("", "expected a mapping")]:
        path = tmp_path / "r.yaml"
        path.write_text(text)
        with pytest.raises(RecipeError, match=word):
            load_recipe(path)
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "missing.yaml")


def test_a_list_may_be_empty_where_that_has_a_meaning():
    recipe = parse_recipe(LEAST | {"hygiene": {"licenses": ["MIT", "ISC"]}}, where="r")
    assert recipe.hygiene.licenses == ("MIT", "ISC")
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), where="frozen") == recipe
    assert parse_recipe(LEAST | {"hygiene": {"licenses": []}}, where="r").hygiene.licenses == ()
    with pytest.raises(RecipeError, match=r"hygiene\.licenses: expected a list of names"):
        parse_recipe(LEAST | {"hygiene": {"licenses": [""]}}, where="r")


def test_phases_are_a_list_of_mappings():
    phases = [{"name": "foundation", "file": "1.jsonl", "num_epochs": 3}, {"name": "pr", "learning_rate": 1e-5}]
    recipe = parse_recipe({**LEAST, "phases": phases}, where="x")
    assert recipe.phase_names == ("foundation", "pr")
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), where="frozen") == recipe
    first, second, other = (in_phase(recipe, name).training for name in ("foundation", "pr", None))
    assert (first.num_epochs, first.learning_rate) == (3, 2e-5)
    assert (second.num_epochs, second.learning_rate) == (1, 1e-5)
    assert other == recipe.training


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ({"name": "a"}, ["phases: expected a list, not {'name': 'a'}"]),
        ([{"name": "a"}, {"name": "a"}], ["phases: the name a occurs more than once"]),
        ([{"name": "a", "file": "f"}, {"name": "b", "file": "f"}], ["phases: the file f occurs more than once"]),
        ([{"name": "a/b"}], ["phases[0].name: 'a/b' is part of file names"]),
        ([{"name": "a"}, {"num_epochs": 0}], ["phases[1].num_epochs: 0 is below", "phases[1].name: required"]),
        (["a"], ["phases[0]: expected a mapping, not 'a'"]),
    ],
)
def test_phases_that_are_wrong(phases, words):
    with pytest.raises(RecipeError) as error:
        parse_recipe({**LEAST, "phases": phases}, where="x")
    assert all(word in str(error.value) for word in words)
