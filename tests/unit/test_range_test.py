"""The learning-rate range test: what a curve suggests."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from run_folder import RECIPES

from service.errors import UsageError
from service.sweep.range_test import range_recipe, smoothed, suggestion
from trainer.recipe_file import dump_recipe, load_recipe, parse_recipe


def curve(centre: float, end: float) -> tuple[list[float], list[float]]:
    """Return a loss that falls around `centre` and explodes after `end`."""
    rates = np.logspace(-6, 0, 120)
    losses = 4 - 2 / (1 + (centre / rates) ** 2) + (rates / end) ** 4
    return rates.tolist(), losses.tolist()


@pytest.mark.parametrize("centre", [1e-4, 1e-3])
def test_the_rate_at_which_the_loss_falls_fastest_is_found(centre: float) -> None:
    rates, losses = curve(centre, end=100 * centre)
    found = suggestion(rates, losses)
    assert centre / 2 < found.steepest < 6 * centre  # smoothing moves it to the right
    assert found.steepest < found.lowest < 200 * centre


def test_the_curve_ends_where_the_loss_has_risen() -> None:
    rates, losses = curve(1e-4, end=1e-2)
    found = suggestion(rates, losses, diverged=True)
    assert len(found.rates) == len(found.losses) < len(rates) and found.diverged
    assert max(found.losses) <= 4 * min(found.losses)


def test_smoothing_is_corrected_for_its_start() -> None:
    assert smoothed([3.0, 3.0, 3.0]).tolist() == pytest.approx([3.0, 3.0, 3.0])
    assert smoothed([1.0, 3.0])[1] == pytest.approx((0.9 * 1 + 3.0) / 1.9)


def test_the_recipe_of_a_test_is_valid() -> None:
    recipe = range_recipe(load_recipe(RECIPES / "qwen-5090.yaml"), low=1e-6, high=1e-1, steps=50)
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), where="x") == recipe
    assert (recipe.training.schedule, recipe.training.max_steps) == ("range_test", 50)


@pytest.mark.parametrize(
    ("low", "high", "steps", "said"), [(0, 1, 50, "--low 0"), (1, 0.1, 50, "--low 1"), (1e-3, 1e-1, 19, "--steps 19")]
)
def test_wrong_limits_are_refused(low: float, high: float, steps: int, said: str) -> None:
    with pytest.raises(UsageError) as error:
        range_recipe(load_recipe(RECIPES / "qwen-5090.yaml"), low=low, high=high, steps=steps)
    assert said in str(error.value)
