"""Claims rows and writes them to a run directory, in one transaction. The trainer reads only this directory."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TextIO, TypeVar

from db.lease import Lease
from db.pool import Pool
from db.source import Claim, SourceRow, claim
from service.admission.admission import Admission
from service.admission.caps import Caps
from service.admission.reasons import digests, wrong_setting
from service.admission.split import Role, Splitter
from service.cycle.claim_files import Start, row_line, set_aside, temporary_folder, write_facts
from service.cycle.claim_replay import write_replay
from service.logs import event as log
from service.publish.folders import Beat
from service.settings.home import Home
from service.settings.load import Settings
from trainer.recipe import Data, Recipe, in_phase
from trainer.run_dir import (
    RunDirectory,
    content_sha256,
    fsync_folder,
)

T = TypeVar("T")
CHARS_PER_TOKEN = 3
"""A low estimate for code, so that the earlier held-out rows fill the trainer's token budget."""


BATCH_ROWS, BATCH_CHARS = 200, 2_000_000
"""Limits of one admission batch: rows and characters. The lease is renewed between batches."""


class Undone(Exception):
    """The claim is undone, because a run with its rows would be of no use. The service pauses for the cause."""

    cause: str


class WrongSetting(Undone):
    """Nearly all rows of the claim would be rejected because of one setting."""

    cause = "settings"


class NothingToHoldOut(Undone):
    """The claim has no held-out row, so the run could not be judged."""

    cause = "held_out"


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """The result of a claim: a run that is ready for training, or none."""

    run_id: int | None
    """None: no row was found, and the database is unchanged."""
    trained: int = 0
    held_out: int = 0
    earlier_held_out: int = 0
    replayed: int = 0
    """Rows of earlier runs that the run trains on again."""
    refused: int = 0
    put_off: int = 0
    """Rows that stay pending because their repository or author reached its limit."""
    secrets: int = 0
    """Number of secrets replaced in the texts."""
    phase: str | None = None
    """The phase of a curriculum that the rows belong to."""


def log_claim(claimed: Claimed, start: Start) -> None:
    """Log what a run claimed."""
    log(
        "Claimed",
        run=claimed.run_id,
        phase=claimed.phase,
        rows=claimed.trained,
        held_out=claimed.held_out,
        earlier_held_out=claimed.earlier_held_out,
        replayed=claimed.replayed or None,
        refused=claimed.refused,
        put_off=claimed.put_off or None,
        secrets=claimed.secrets or None,
        parent=start.version,
        trunk=start.trunk.head if start.trunk else None,
    )


def claim_run(
    pool: Pool,
    lease: Lease,
    home: Home,
    settings: Settings,
    recipe: Recipe,
    start: Start,
    beat: Beat = lambda: None,
    *,
    reject_all: bool = False,
) -> Claimed:
    """Claim up to MAX_DATASET_SIZE rows and write their run directory. The recipe's base must be pinned.

    The directory is completed under a temporary name before the commit, and renamed after it. A crash between the two
    leaves a run without a directory; the next start returns its rows. Existing folders with the new run's number are
    renamed.

    Args:
        reject_all: reject nearly all rows because of one setting, if it comes to that

    Raises:
        NothingToHoldOut: the claim has no held-out row.
        WrongSetting: nearly all rows would be rejected because of one setting.
    """
    with claim(
        pool,
        lease,
        settings.source,
        settings.eligibility,
        limit=settings.max_dataset_size,
        parent_version=start.version,
        trunk_run_id=start.trunk.head if start.trunk else None,
        seed=recipe.training.seed,
    ) as rows:
        phase = _enter_phase(rows, recipe, settings.min_new_files)
        recipe = in_phase(recipe, phase)
        final = home.run(rows.run_id)
        set_aside(home, rows.run_id)

        def beat_and_keep_alive() -> None:
            beat()
            rows.keep_alive()

        with temporary_folder(final) as folder:
            admission = Admission(rows, recipe)
            claimed = _fill(rows, folder, recipe, admission, start, beat_and_keep_alive, reject_all)
            if claimed.run_id is None:
                rows.cancel()
                shutil.rmtree(folder.root)
                return claimed
            secrets = dict(admission.secrets)
            write_facts(folder, rows.run_id, recipe, home, start, beat_and_keep_alive, secrets=secrets, phase=phase)
    (folder.root).rename(final.root)
    fsync_folder(home.runs)
    return replace(claimed, phase=phase)


def _enter_phase(rows: Claim, recipe: Recipe, least_rows: int) -> str | None:
    """Choose the phase of a curriculum to train: the first that has enough rows, else the one with the most.

    Returns:
        None if the recipe has no phases, or if no row waits.
    """
    waiting = rows.waiting_by_phase() if recipe.phases else Counter[str]()
    if not waiting:
        return None
    enough = (name for name in recipe.phase_names if waiting[name] >= least_rows)
    phase = next(enough, max(recipe.phase_names, key=lambda name: waiting[name]))
    rows.enter_phase(phase)
    return phase


def _fill(
    rows: Claim,
    folder: RunDirectory,
    recipe: Recipe,
    admission: Admission,
    start: Start,
    beat: Beat,
    reject_all: bool,
) -> Claimed:
    """Write the admitted rows to the row files."""
    splitter, caps = Splitter(recipe.data, rows.held_out_places()), Caps(recipe.hygiene)
    rejected: Counter[str] = Counter()
    new_chars = 0
    with ExitStack() as files:
        writing: dict[Role, TextIO] = {
            "train": files.enter_context(folder.rows.open("w", encoding="utf-8")),
            "held_out": files.enter_context(folder.held_out.open("w", encoding="utf-8")),
        }
        admission.catch_up(beat)
        settings = digests(recipe)
        for batch in _batches(_beating(rows.rows(caps.admit), beat)):
            for row, reason in admission.decide(batch):
                if reason is not None:
                    rows.reject(row, reason, settings=settings.get(reason))
                    rejected[reason] += 1
                    continue
                for decided in splitter.add(row):
                    new_chars += _keep(rows, *decided, writing)
        for decided in splitter.rest():
            new_chars += _keep(rows, *decided, writing)
        decided_rows = splitter.trained + splitter.held_out + rows.rejected
        is_full = decided_rows >= rows.limit
        if not reject_all and (problem := wrong_setting(rejected, decided_rows, recipe, is_full=is_full)):
            raise WrongSetting(problem)
        before = 0
        trunk = start.trunk.run_ids if start.trunk else ()
        for old in _beating(rows.earlier_held_out(recipe.training.seed, _earlier_chars(recipe.data), trunk), beat):
            writing["held_out"].write(row_line(old, old.sha256, run_id=old.run_id))
            before += 1
    if splitter.trained and not splitter.held_out and not before:
        by_file = recipe.data.split == "file"
        advice = "more files" if by_file else "files of another repository, or set data.split: file in the recipe"
        others = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
        raise NothingToHoldOut(
            f"none of the {splitter.trained} claimed rows falls into the held-out share (split: {recipe.data.split}"
            f"{f'; others would be rejected: {others}' if others else ''}). Add {advice}"
        )
    replayed = write_replay(rows, folder, recipe, admission, splitter, new_chars, beat)
    return Claimed(
        run_id=rows.run_id if splitter.trained or splitter.held_out or rows.rejected else None,
        trained=splitter.trained,
        held_out=splitter.held_out,
        earlier_held_out=before,
        replayed=replayed,
        refused=rows.rejected,
        put_off=rows.put_off,
        secrets=admission.secrets.total(),
    )


def _earlier_chars(data: Data) -> int:
    """Characters of earlier held-out rows that surely fill both parts of an evaluation.

    The trainer takes only a share of a long file, so it needs more text than the tokens of the parts.
    """
    return (data.max_eval_tokens + data.max_stopping_tokens) * CHARS_PER_TOKEN * 2


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


def _keep(rows: Claim, row: SourceRow, role: Role, files: dict[Role, TextIO]) -> int:
    """Claim and write a decided row. Returns its characters to train on."""
    rows.keep(row, role)
    files[role].write(row_line(row, content_sha256(row.content)))
    return len(row.content) if role == "train" else 0
