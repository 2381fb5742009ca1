"""Claims rows and writes them to a run directory, in one transaction. The trainer reads only this directory."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TextIO, TypeVar

from db.adapters import Adapter
from db.lease import Lease
from db.pool import Pool
from db.source import Claim, HeldOutRow, SourceRow, claim
from service.admission.admission import Admission
from service.admission.caps import Caps
from service.admission.split import Role, Splitter
from service.logs import event as log
from service.publish.folders import Beat
from service.settings.home import Home
from service.settings.load import Settings
from trainer.recipe import Recipe
from trainer.recipe_file import dump_recipe
from trainer.records import Row, json_line
from trainer.run_dir import (
    MANIFEST,
    RunDirectory,
    content_sha256,
    fsync_file,
    fsync_folder,
    sha256_file,
    write_manifest,
    write_text,
)

T = TypeVar("T")
CHARS_PER_TOKEN = 3
"""A low estimate for code, so that the earlier held-out rows fill the trainer's token budget."""


BATCH_ROWS, BATCH_CHARS = 200, 2_000_000
"""Limits of one admission batch: rows and characters. The lease is renewed between batches."""


class NothingToHoldOut(Exception):
    """The claim has no held-out row, so the run could not be judged."""


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """The result of a claim: a run that is ready for training, or none."""

    run_id: int | None
    """None: no row was found, and the database is unchanged."""
    trained: int = 0
    held_out: int = 0
    earlier_held_out: int = 0
    refused: int = 0
    put_off: int = 0
    """Rows that stay pending because their repository or author reached its limit."""
    secrets: int = 0
    """Number of secrets replaced in the texts."""


def log_claim(claimed: Claimed, parent: int | None) -> None:
    """Log what a run claimed. `parent`: the version that it trains on from."""
    log(
        "Claimed",
        run=claimed.run_id,
        rows=claimed.trained,
        held_out=claimed.held_out,
        earlier_held_out=claimed.earlier_held_out,
        refused=claimed.refused,
        put_off=claimed.put_off or None,
        secrets=claimed.secrets or None,
        parent=parent,
    )


def claim_run(
    pool: Pool,
    lease: Lease,
    home: Home,
    settings: Settings,
    recipe: Recipe,
    parent: Adapter | None,
    beat: Beat = lambda: None,
) -> Claimed:
    """Claim up to MAX_DATASET_SIZE rows and write their run directory. The recipe's base must be pinned.

    The directory is completed under a temporary name before the commit, and renamed after it. A crash between the two
    leaves a run without a directory; the next start returns its rows. Existing folders with the new run's number are
    renamed.

    Raises:
        NothingToHoldOut: the claim has no held-out row.
    """
    parent_version = parent.version if parent else None
    with claim(
        pool,
        lease,
        settings.source,
        settings.eligibility,
        limit=settings.max_dataset_size,
        parent_version=parent_version,
        seed=recipe.training.seed,
    ) as rows:
        final = home.run(rows.run_id)
        _set_aside(home, rows.run_id)
        with _temporary(final) as folder:
            admission = Admission(rows, recipe)
            claimed = _fill(rows, folder, recipe, admission, beat)
            if claimed.run_id is None:
                rows.cancel()
                shutil.rmtree(folder.root)
                return claimed
            _write_facts(folder, rows.run_id, recipe, home, parent, secrets=dict(admission.secrets))
    (folder.root).rename(final.root)
    fsync_folder(home.runs)
    return claimed


def _set_aside(home: Home, run_id: int) -> None:
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
def _temporary(final: RunDirectory) -> Iterator[RunDirectory]:
    """Yield the directory under its temporary name. Remove it if the block fails."""
    folder = RunDirectory(final.root.with_name(f".{final.root.name}.tmp"))
    shutil.rmtree(folder.root, ignore_errors=True)
    folder.root.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder.root, ignore_errors=True)
        raise


def _fill(rows: Claim, folder: RunDirectory, recipe: Recipe, admission: Admission, beat: Beat) -> Claimed:
    """Write the admitted rows to the row files."""
    splitter, caps = Splitter(recipe.data, rows.held_out_places()), Caps(recipe.hygiene)
    with ExitStack() as files:
        writing: dict[Role, TextIO] = {
            "train": files.enter_context(folder.rows.open("w", encoding="utf-8")),
            "held_out": files.enter_context(folder.held_out.open("w", encoding="utf-8")),
        }
        admission.catch_up(beat)
        for batch in _batches(_beating(rows.rows(caps.admit), beat)):
            for row, reason in admission.decide(batch):
                if reason is not None:
                    rows.reject(row, reason)
                    continue
                for decided in splitter.add(row):
                    _keep(rows, *decided, writing)
        max_chars = recipe.data.max_eval_tokens * CHARS_PER_TOKEN
        before = list(_beating(rows.earlier_held_out(recipe.training.seed, max_chars), beat))
        for decided in splitter.rest(len(before)):
            _keep(rows, *decided, writing)
        for old in before:
            writing["held_out"].write(_line(old, old.sha256, fresh=False))
    if splitter.trained and not splitter.held_out and not before:
        by_file = recipe.data.split == "file"
        advice = "more files" if by_file else "files of another repository, or set data.split: file in the recipe"
        raise NothingToHoldOut(
            f"none of the {splitter.trained} claimed rows falls into the held-out share (split: {recipe.data.split}). "
            f"Add {advice}"
        )
    return Claimed(
        run_id=rows.run_id if splitter.trained or splitter.held_out or rows.rejected else None,
        trained=splitter.trained,
        held_out=splitter.held_out,
        earlier_held_out=len(before),
        refused=rows.rejected,
        put_off=rows.put_off,
        secrets=admission.secrets.total(),
    )


def _beating(rows: Iterable[T], beat: Beat) -> Iterator[T]:
    """Yield the rows, with a heartbeat for each: the network may be slow."""
    for row in rows:
        beat()
        yield row


def _batches(rows: Iterator[SourceRow]) -> Iterator[list[SourceRow]]:
    batch: list[SourceRow] = []
    chars = 0
    for row in rows:
        batch.append(row)
        chars += len(row.content)
        if len(batch) == BATCH_ROWS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _keep(rows: Claim, row: SourceRow, role: Role, files: dict[Role, TextIO]) -> None:
    rows.keep(row, role)
    files[role].write(_line(row, content_sha256(row.content), fresh=True))


def _line(row: SourceRow | HeldOutRow, sha256: str, *, fresh: bool) -> str:
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


def _write_facts(
    folder: RunDirectory, run_id: int, recipe: Recipe, home: Home, parent: Adapter | None, *, secrets: dict[str, int]
) -> None:
    """Write recipe.yaml, the parent link and the manifest. All files are synced before the claim commits."""
    write_text(folder.recipe, dump_recipe(recipe))
    parent_manifest = None
    if parent is not None:
        parent_folder = home.adapter(parent.version)
        folder.parent.symlink_to(os.path.relpath(parent_folder, folder.root))
        parent_manifest = sha256_file(parent_folder / MANIFEST)
    for path in (folder.rows, folder.held_out):
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
