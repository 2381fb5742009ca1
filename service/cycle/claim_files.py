"""The files that a claim writes: rows as lines, the frozen recipe, the manifest, and the folder around them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime

from db.adapters import Adapter
from db.source import HeldOutRow, SourceRow
from service.logs import event as log
from service.settings.home import Home
from trainer.recipe import Recipe
from trainer.recipe_file import dump_recipe
from trainer.records import Row, json_line
from trainer.run_dir import MANIFEST, RunDirectory, fsync_file, fsync_folder, sha256_file, write_manifest, write_text


def set_aside(home: Home, run_id: int) -> None:
    """Rename existing folders with the new run's number.

    They belong to another database, or to runs that are newer than the backup this database was restored from.
    """
    for folder in (home.run(run_id).root, home.adapter(run_id)):
        if folder.exists():
            aside = folder.with_name(f"set-aside-{folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
            folder.rename(aside)
            fsync_folder(folder.parent)
            log(
                "Renamed a folder of a run unknown to this database. Delete it if nobody needs it",
                level=logging.WARNING,
                run=run_id,
                folder=str(aside),
            )


@contextmanager
def temporary_folder(final: RunDirectory) -> Iterator[RunDirectory]:
    """Yield the directory under its temporary name. Remove it if the block fails."""
    folder = RunDirectory(final.root.with_name(f".{final.root.name}.tmp"))
    shutil.rmtree(folder.root, ignore_errors=True)
    folder.root.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder.root, ignore_errors=True)
        raise


def row_line(row: SourceRow | HeldOutRow, sha256: str, *, fresh: bool) -> str:
    return json_line(
        asdict(
            Row(
                file_id=row.file_id,
                repository=row.repository,
                path=row.path,
                language=row.language,
                content=row.content,
                sha256=sha256,
                fresh=fresh,
                metadata=row.metadata,
            )
        )
    )


def write_facts(
    folder: RunDirectory, run_id: int, recipe: Recipe, home: Home, parent: Adapter | None, *, secrets: dict[str, int]
) -> None:
    """Write recipe.yaml, the parent link and the manifest. All files are synced before the claim commits."""
    write_text(folder.recipe, dump_recipe(recipe))
    parent_manifest = None
    if parent is not None:
        parent_folder = home.adapter(parent.version)
        folder.parent.symlink_to(os.path.relpath(parent_folder, folder.root))
        parent_manifest = sha256_file(parent_folder / MANIFEST)
    for path in (folder.rows, folder.held_out, folder.replay):
        if path.exists():
            fsync_file(path)
    write_manifest(
        folder.root,
        run_id=run_id,
        stream=recipe.stream,
        seed=recipe.training.seed,
        parent_version=parent.version if parent else None,
        parent_manifest_sha256=parent_manifest,
        base={"model": recipe.base.model, "revision": recipe.base.revision},
        secrets_replaced=secrets,
    )
    fsync_folder(folder.root)
