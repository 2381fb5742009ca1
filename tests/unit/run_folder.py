"""Makes run directories as the service does, from short programs or from the standard library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.model.base import resolve
from trainer.model.tiny_corpus import is_pretraining_file, library_files
from trainer.recipe import Recipe, dump_recipe, load_recipe, pinned, with_overrides
from trainer.run_dir import Row, RunDirectory, json_line, sha256_file, write_json, write_text

RECIPES = Path(__file__).parents[2] / "recipes"


def make_row(file_id: int, content: str, *, path: str | None = None, fresh: bool = True) -> Row:
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return Row(
        file_id=file_id,
        repository="demo",
        path=path or f"file_{file_id}.py",
        language="python",
        content=content,
        sha256=digest,
        fresh=fresh,
    )


def demo_rows(count: int, *, skip: int = 0) -> list[Row]:
    """Files of the standard library that the tiny base has not seen, of the length that the service takes."""
    texts = [
        (path, text) for path, text in library_files() if not is_pretraining_file(path) and 50 <= len(text) <= 8000
    ]
    chosen = texts[skip : skip + count]
    return [make_row(skip + index, text, path=path) for index, (path, text) in enumerate(chosen, 1)]


def embedded(**overrides: Any) -> Recipe:
    """recipes/embedded.yaml, pinned; keys like `training__batch_size` override it."""
    recipe = load_recipe(RECIPES / "embedded.yaml")
    model, revision = resolve(recipe.base)
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return with_overrides(pinned(recipe, model=model, revision=revision), dotted)


def make_run(
    root: Path,
    recipe: Recipe,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    *,
    replay: Sequence[Row] = (),
    parent: Path | None = None,
    run_id: int = 1,
    seed: int = 42,
    manifest: Mapping[str, Any] | None = None,
) -> RunDirectory:
    directory = RunDirectory(root)
    root.mkdir(parents=True)
    write_text(directory.recipe, dump_recipe(recipe))
    inputs = {"rows.jsonl": rows, "held_out.jsonl": held_out} | ({"replay.jsonl": replay} if replay else {})
    for name, records in inputs.items():
        write_text(root / name, "".join(json_line(asdict(row)) for row in records))
    if parent is not None:
        directory.parent.symlink_to(os.path.relpath(parent, root))
    facts: dict[str, Any] = {
        "files": {name: sha256_file(root / name) for name in ("recipe.yaml", *inputs)},
        "run_id": run_id,
        "stream": recipe.stream,
        "seed": seed,
        "parent_version": None if parent is None else run_id - 1,
        "parent_manifest_sha256": None if parent is None else sha256_file(parent / "MANIFEST.json"),
        "base": {"model": recipe.base.model, "revision": recipe.base.revision},
    }
    write_json(directory.manifest, facts | dict(manifest or {}))
    return directory
