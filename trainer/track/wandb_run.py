"""How a run directory's run is named and kept at W&B. (no torch)"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.recipe import Recipe
from trainer.recipe_file import recipe_dict
from trainer.records import json_line, read_lines
from trainer.run_dir import RunDirectory, read_json, write_json, write_text
from trainer.track.prediction import Prediction

LONGEST_TAG = 64
"""W&B refuses longer tags, and longer groups than 128."""
COLUMNS = ("step", "file_id", "prompt", "expected", "answer")


def wandb_folder(directory: RunDirectory) -> Path:
    """The folder of all that W&B writes for a run."""
    return directory.root.absolute() / "wandb"


def run_name(recipe: Recipe, number: int) -> str:
    """Return what people read as the run's name."""
    return f"{recipe.stream}-{number:06d}"


def run_id(directory: RunDirectory, recipe: Recipe) -> str:
    """Return the run's id at W&B. It is drawn once, so two services whose runs have the same number do not mix them."""
    path = wandb_folder(directory) / "id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_text(path, f"{recipe.stream}-{directory.root.name}-{secrets.token_hex(3)}\n")
    return path.read_text(encoding="utf-8").strip()


def has_run(directory: RunDirectory) -> bool:
    """Whether a training was sent to W&B, or was to be."""
    return (wandb_folder(directory) / "id").exists()


def init_arguments(
    recipe: Recipe, directory: RunDirectory, *, run_name: str, mode: str, facts: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the arguments of wandb.init: one run for each cycle, grouped by stream.

    Args:
        facts: what was decided beside the recipe. None: the run goes on with the config that it has
    """
    kept = wandb_folder(directory) / "config.json"
    if facts is not None or not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        write_json(kept, {**recipe_dict(recipe), "run": facts or {}})
    base = recipe.base.model.rstrip("/").rpartition("/")[2]
    return {
        "project": recipe.tracking.wandb_project,
        "name": run_name,
        "id": run_id(directory, recipe),
        "resume": "allow",
        "group": recipe.stream[:128],
        "job_type": "cycle",
        "tags": list(dict.fromkeys(tag[:LONGEST_TAG] for tag in (recipe.name, base) if tag)),
        "dir": str(directory.root.absolute()),
        "config": read_json(kept),
        "mode": mode,
    }


def table_rows(directory: RunDirectory, new: list[Prediction]) -> list[list[Any]]:
    """Add answers to the run's table, and return all its rows, those of earlier starts first.

    A resumed start that answers again for the same weights replaces its earlier answers.
    """
    path = wandb_folder(directory) / "predictions.jsonl"
    rows = {(row["step"], row["file_id"]): row for row in read_lines(path)}
    rows |= {(record.step, record.file_id): vars(record) for record in new}
    write_text(path, "".join(json_line(dict(row)) for row in rows.values()))
    return [[row[name] for name in COLUMNS] for row in rows.values()]
