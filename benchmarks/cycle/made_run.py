"""The run directory that the benchmarks of this folder train, and the machine's name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.model.base import resolve
from trainer.model.tiny_corpus import is_pretraining_file, library_files
from trainer.recipe import pinned
from trainer.recipe_file import dump_recipe, load_recipe, with_overrides
from trainer.records import Row, json_line
from trainer.run_dir import RunDirectory, write_manifest, write_text

ROOT = Path(__file__).resolve().parents[2]
ROWS, HELD_OUT = 114, 6


def make_run(root: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Write the run directory that a claim would write. The tiny base has not seen its rows.

    Args:
        changes: overrides of the recipe, by keys with dots
    """
    recipe = load_recipe(ROOT / "recipes" / "embedded.yaml")
    model, revision = resolve(recipe.base)
    recipe = with_overrides(pinned(recipe, model=model, revision=revision), changes or {})
    texts = [item for item in library_files() if not is_pretraining_file(item[0]) and 50 <= len(item[1]) <= 4000]
    rows = [_row(number, path, text) for number, (path, text) in enumerate(texts[: ROWS + HELD_OUT], 1)]
    directory = RunDirectory(root)
    root.mkdir()
    write_text(directory.recipe, dump_recipe(recipe))
    write_text(directory.rows, "".join(json_line(asdict(row)) for row in rows[:ROWS]))
    write_text(directory.held_out, "".join(json_line(asdict(row)) for row in rows[ROWS:]))
    base = {"model": model, "revision": revision}
    write_manifest(root, run_id=1, stream=recipe.stream, seed=42, parent_version=None, base=base)


def _row(number: int, path: str, text: str) -> Row:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Row(file_id=number, repository="stdlib", path=path, language="python", content=text, sha256=digest)


def processor() -> str:
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{names[0] if names else 'unknown processor'}, {len(names)} cores"
