"""Learns one stream in a process of its own, and keeps its records."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from learner import Learner
from sources import read_stream
from strategies import STRATEGIES

from trainer.model.base import resolve
from trainer.recipe import Recipe, pinned
from trainer.recipe_file import load_recipe, parse_recipe, recipe_dict

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench" / "continual"
CHANGES = {
    "data": {"largest_unparsed_share": 1.0},  # an excerpt may begin inside a function
    "training": {"gradient_accumulation_steps": 1},  # as many steps a run as with four times the files
}


def benchmark_recipe() -> Recipe:
    """Return the embedded recipe with the benchmark's changes."""
    recipe = load_recipe(ROOT / "recipes" / "embedded.yaml")
    model, revision = resolve(recipe.base)
    values = recipe_dict(pinned(recipe, model=model, revision=revision))
    for section, changes in CHANGES.items():
        values[section] |= changes
    return parse_recipe(values, where="the benchmark's recipe")


def learn(name: str, seed: int) -> Path:
    """Learn one stream, and write its records. Runs in a process of its own, on one core."""
    torch.set_num_threads(1)
    done = records_of(name, seed)
    part = done.with_suffix(".part")
    batches, unseen = read_stream(WORK)
    with part.open("w") as file:
        for record in Learner(STRATEGIES[name], seed, benchmark_recipe(), batches, unseen, WORK).records():
            file.write(json.dumps({"strategy": name, "seed": seed, **record}) + "\n")
            file.flush()
    part.rename(done)
    return done


def records_of(name: str, seed: int) -> Path:
    """Return the file of a complete stream."""
    return WORK / "streams" / f"{name}-{seed}.jsonl"
