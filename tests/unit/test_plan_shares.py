"""What the plan counts for one card of two is what one of two gloo processes holds, also where they share packs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from planning import make_wide, planned, recipe_for
from transformers import AutoModelForCausalLM, Qwen2Config

from trainer.plan.memory import Choice, kept_lines, norm_bytes, peak_bytes, working_lines
from trainer.plan.sharding import shard
from trainer.plan.static import static_lines
from trainer.ranks import rank_environment
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


TOKENS = 513


def activations(recipe, policy: str) -> tuple[int, int]:
    """Return the plan's bytes that a card keeps for the backward pass, and its peak."""
    model, sizes = planned(recipe)
    own = Choice(micro_batch_tokens=TOKENS, checkpointing=policy, offload=False).of_card(sizes)
    kept = kept_lines(model, own, sizes)
    peak = peak_bytes(kept + working_lines(model, recipe.base, own, sizes))
    counted = sum(line.bytes for line in kept if policy != "full" or line.name != "positions")
    return counted + norm_bytes(model, sizes) * own.micro_batch_tokens, peak


def make_one_key(folder: Path) -> Path:
    """Make a model whose key head is sent to both processes."""
    config = Qwen2Config(
        hidden_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, intermediate_size=512,
        vocab_size=4096, tie_word_embeddings=False,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_a_rank_that_shares_packs_keeps_what_the_plan_counts(tmp_path):
    base = make_one_key(tmp_path / "one-key")
    recipe = recipe_for(
        base, base__quantization="none", base__compute_dtype="float32", distributed__processes=2,
        distributed__sequence=2,
    )  # fmt: skip
    (tmp_path / "shared").write_text(dump_recipe(recipe))
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / "kept_bytes.py", tmp_path, str(TOKENS)],
            env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
            | rank_environment(rank, 2, tmp_path / "rendezvous"),
        )
        for rank in range(2)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    for rank in range(2):
        measured = json.loads((tmp_path / f"kept-{rank}.json").read_text())
        for policy, found in measured.items():
            assert activations(recipe, policy) == pytest.approx(found, rel=0.05), (policy, rank)
