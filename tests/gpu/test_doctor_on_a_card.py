"""The doctor on a machine with a GPU: it runs the kernels, and compares the memory with the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer import doctor
from trainer.recipe_file import load_recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_working_card_passes_the_checks() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "embedded.yaml")
    found = {finding.check: finding for finding in doctor.findings(recipe, {})}
    assert [found[name].state for name in ("driver", "architecture", "kernel", "memory")] == ["ok"] * 4, found
