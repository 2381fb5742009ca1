"""What the plan counts for one card of two is what one of two gloo processes holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from planning import make_wide, planned, recipe_for

from trainer.plan.sharding import shard
from trainer.plan.static import static_lines
from trainer.recipe_file import dump_recipe

HERE = Path(__file__).parent


def counted(recipe) -> dict[str, int]:
    """Return the plan's bytes of one card, by what a rank reports."""
    model, sizes = planned(recipe)
    lines = {line.name: line.bytes for line in shard(static_lines(model, recipe, sizes), model, recipe)}

    def total(*beginnings: str) -> int:
        return sum(size for name, size in lines.items() if name.startswith(beginnings))

    return {
        "weights": total("weights", "embeddings", "output head", "norms") - model.buffer_bytes,
        "constants": total("quantization"), "adapter": total("adapter"), "gradients": total("gradients ("),
        "optimizer": total("optimizer"),
    }  # fmt: skip


def test_a_rank_holds_what_the_plan_counts(tmp_path):
    wide = str(make_wide(tmp_path / "wide"))
    recipes = {}
    for strategy in ("ddp", "fsdp2"):
        recipe = recipe_for(
            wide, base__compute_dtype="bfloat16", training__optimizer="adamw", distributed__processes=2,
            distributed__strategy=strategy,
        )  # fmt: skip
        (tmp_path / strategy).write_text(dump_recipe(recipe))
        recipes[strategy] = recipe
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", HERE / "share_bytes.py",
        tmp_path, *(tmp_path / strategy for strategy in recipes),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for strategy, recipe in recipes.items():
        for name, size in counted(recipe).items():
            most = max(rank[strategy][name] for rank in ranks)
            assert most == pytest.approx(size, rel=0.01), (strategy, name, ranks)
