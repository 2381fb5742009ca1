"""The files that a claim writes: rows as lines, the frozen recipe, the manifest, and the folder around them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from db.adapters import Adapter
from db.source import HeldOutRow, SourceRow
from db.trunk import Trunk
from service.logs import event as log
from service.publish.folders import Beat
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


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run is trained on from, and what its candidate is compared with."""

    current: Adapter | None = None
    """The published adapter."""
    trunk: Trunk | None = None
    """The open candidate that training continues from. None: training continues from `current`."""

    @property
    def version(self) -> int | None:
        """Version of the published adapter."""
        return self.current.version if self.current else None


def row_line(row: SourceRow | HeldOutRow, sha256: str, *, run_id: int | None = None) -> str:
    """Return the line of a row. `run_id` is the earlier run that claimed it, if it is not a row of this run."""
    return json_line(
        asdict(
            Row(
                file_id=row.file_id,
                repository=row.repository,
                path=row.path,
                language=row.language,
                content=row.content,
                sha256=sha256,
                fresh=run_id is None,
                run_id=run_id,
                license=row.license if isinstance(row, SourceRow) else None,
                metadata=row.metadata,
            )
        )
    )


def write_facts(
    folder: RunDirectory,
    run_id: int,
    recipe: Recipe,
    home: Home,
    start: Start,
    beat: Beat = lambda: None,
    *,
    secrets: dict[str, int],
    phase: str | None = None,
) -> None:
    """Write recipe.yaml, the adapters' links and the manifest. All files are synced before the claim commits."""
    write_text(folder.recipe, dump_recipe(recipe))
    published = home.adapter(start.current.version) if start.current else None
    parent = home.run(start.trunk.head).adapter if start.trunk else published
    parent_manifest = _linked(folder.parent, parent)
    current_manifest = _linked(folder.current, published if start.trunk else None)
    for path in (folder.rows, folder.held_out, folder.replay):
        if path.exists():
            fsync_file(path)
            beat()
    write_manifest(
        folder.root,
        beat,
        run_id=run_id,
        stream=recipe.stream,
        seed=recipe.training.seed,
        parent_version=start.version,
        trunk=list(start.trunk.run_ids) if start.trunk else [],
        parent_manifest_sha256=parent_manifest,
        current_manifest_sha256=current_manifest,
        base={"model": recipe.base.model, "revision": recipe.base.revision},
        secrets_replaced=secrets,
        phase=phase,
    )
    fsync_folder(folder.root)


def _linked(link: Path, target: Path | None) -> str | None:
    """Link to an adapter folder, and return the sha256 of its manifest."""
    if target is None:
        return None
    link.symlink_to(os.path.relpath(target, link.parent))
    return sha256_file(target / MANIFEST)
