"""`codelupe train`: from files to an adapter, once. It is the service's own path, without the service.

    sources → rows of an embedded database → one run for each phase → verdict → the next phase continues from the last

The database, the runs and the adapters are in a folder of their own. The same command resumes an interrupted training.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from db import runs
from db.files import count_by_phase
from db.pool import Pool
from service import logs
from service.admission.contamination import Benchmarks
from service.cycle.daemon import Daemon
from service.cycle.stop_signals import stop_signals
from service.cycle.watchdog import watched
from service.database import get_ready, open_pool
from service.errors import ServiceError, UsageError
from service.intake.drop import Summary, drop_paths
from service.intake.records import Given
from service.logs import PrintProgress
from service.settings.home import Home, only_service
from service.settings.load import Settings
from service.start import bind_stream, database_url, first_snapshot, prepared_recipe, stage
from service.training.folder import TrainingFolder
from service.training.sources import Part, fingerprint
from service.web.board import Board
from trainer.recipe import Recipe
from trainer.run_dir import read_json

MOST_ROWS = 10_000_000
"""All rows of a phase are in one run."""
LONGEST_TEXT_CHARS = 1_000_000
"""Longer texts are passed over, unless MAX_CONTENT_CHARS or the recipe allows more."""
SCORE = 100.0
"""Whoever names a file wants to train on it, so its quality is not judged."""
LOWEST_SCORE = -1e30
"""Records may have scores of their own, on any scale."""
ENDED = ("published", "inconclusive", "refused")


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """What became of one phase."""

    phase: str | None
    """None: the recipe has no phases."""
    run_id: int
    decision: str
    """promote, inconclusive or refuse."""
    reasons: tuple[str, ...]
    evaluation: dict[str, Any]
    """Scores of anchor, current and candidate."""
    adapter: Path
    """The folder of its adapter."""
    report: Path
    rejected: dict[str, int]
    """Rows that gave no sample, by reason."""


class Interrupted(ServiceError):
    """The training was asked to stop. It can be resumed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped. The same command resumes it (in {folder})")


@dataclass(frozen=True, kw_only=True)
class Open:
    """A training's folder with its database running and all rows in it."""

    folder: TrainingFolder
    pool: Pool
    recipe: Recipe
    """With its base pinned."""
    board: Board
    stop: threading.Event

    @property
    def home(self) -> Home:
        return self.folder.home

    def check_stop(self) -> None:
        """Raises Interrupted if a signal asked to stop."""
        if self.stop.is_set():
            raise Interrupted(self.folder.root)


def one_off(settings: Settings, folder: TrainingFolder, *, rows: int = MOST_ROWS) -> Settings:
    """Return the settings of a training: an embedded database in its folder, and no minimum of files or quality."""
    limits = replace(
        settings.eligibility,
        quality_threshold=LOWEST_SCORE,
        min_chars=1,
        max_chars=max(settings.eligibility.max_chars, LONGEST_TEXT_CHARS),
    )
    return replace(
        settings, home=folder.root, database_url=None, eligibility=limits, min_new_files=1, max_dataset_size=rows,
        check_interval_seconds=1.0, keep_candidates=True,
    )  # fmt: skip


def train(
    settings: Settings, folder: TrainingFolder, parts: Sequence[Part], *, show: PrintProgress
) -> list[PhaseResult]:
    """Train all phases that have not ended, and return the results of all.

    A refused candidate ends a training: the phases after it would build on a model that became worse.

    Args:
        settings: those of `one_off`

    Raises:
        UsageError: the sources give no row, or none for a phase, or the recipe does not fit its base model.
        PreconditionError: the folder, a benchmark or the base model is not available.
        ServiceError: a run gave no verdict.
        Interrupted: a signal asked it to stop.
    """
    with opened(settings, folder, parts, show=show) as here:
        with watched(here.board):
            for phase in here.recipe.phase_names or (None,):
                run = ended_run(here.pool, here.recipe, phase) or _train_phase(here, settings, phase)
                here.check_stop()
                if run is None or run.state == "refused":
                    break
        return results(here)


@contextmanager
def opened(settings: Settings, folder: TrainingFolder, parts: Sequence[Part], *, show: PrintProgress) -> Iterator[Open]:
    """Start the folder's database, insert the rows, and resolve the base model.

    Raises:
        UsageError, PreconditionError, Interrupted: as `train`
    """
    hygiene = settings.recipe.hygiene
    Benchmarks(hygiene.benchmarks, hygiene.benchmark_gram_words)  # fails now for an unreadable file
    home, stop = folder.home, threading.Event()
    with ExitStack() as stack:
        stack.enter_context(stop_signals(stop))
        home.prepare()
        stack.enter_context(only_service(home))
        stack.enter_context(unfit_rows_noted(folder))
        logs.set_up(settings.log_format, home.log_file)
        board = Board(first_snapshot(settings))
        url = database_url(settings, home, stack, show)
        pool = open_pool(settings, url)
        stack.callback(pool.close)
        get_ready(pool, settings)
        read_parts(pool, settings, folder, parts, show)
        recipe = prepared_recipe(settings, show, stop, board)
        if recipe is None:
            raise Interrupted(folder.root)
        bind_stream(pool, settings, recipe)
        folder.write_recipe(recipe)
        yield Open(folder=folder, pool=pool, recipe=recipe, board=board, stop=stop)


@contextmanager
def unfit_rows_noted(folder: TrainingFolder) -> Iterator[None]:
    """Make the next start read the sources anew, if an error says that they give nothing to train on."""
    try:
        yield
    except UsageError:
        folder.note_unfit()
        raise


def read_parts(
    pool: Pool, settings: Settings, folder: TrainingFolder, parts: Sequence[Part], show: PrintProgress
) -> None:
    """Insert the rows of all sources, unless an earlier start did.

    Raises:
        UsageError: there is no row, or none of a phase.
    """
    now = fingerprint(parts)
    if folder.read not in (None, now):
        show(
            "sources",
            "changed since they were read. The training keeps its rows. For the new ones, choose another --to",
        )
    if folder.read is None:
        with stage(show, "sources") as note:
            summary = Summary()
            for part in parts:
                given = Given(score=SCORE, phase=part.phase)
                token = settings.trainer_secrets.get("HF_TOKEN")
                drop_paths(pool, part.sources, given, summary, token=token)
            if summary.barren:
                raise UsageError(f"--from: {'; '.join(summary.barren)}")
            skipped = ", ".join(f"{count} × {reason}" for reason, count in summary.skipped.most_common(5))
            note(f"{summary.inserted:,} rows{f'; passed over: {skipped}' if skipped else ''}", rows=summary.inserted)
        folder.note_read(now)
    _check_phases(count_by_phase(pool), settings.recipe)


def _check_phases(counts: dict[str | None, int], recipe: Recipe) -> None:
    if not counts:
        raise UsageError("--from: there is no row to train on. Name files, folders or records")
    if lacking := [name for name in recipe.phase_names if not counts.get(name)]:
        there = ", ".join(f"{name or 'none'} ({count})" for name, count in counts.items())
        files = ", ".join(phase.file for phase in recipe.phases if phase.file)
        raise UsageError(
            f"--from: no row has the phase {' or '.join(lacking)}. The rows have: {there}. Name a folder with "
            f"{files or 'one file for each phase'}, or give each record its `phase`"
        )


def ended_run(pool: Pool, recipe: Recipe, phase: str | None) -> runs.Run | None:
    """Return the run of a phase that has a verdict, or None."""
    history = runs.history(pool, recipe.stream, limit=1000)
    return next((run for run in history if run.phase == phase and run.state in ENDED and run.report), None)


def _train_phase(here: Open, settings: Settings, phase: str | None) -> runs.Run | None:
    """Train on the rows of one phase. Returns its run, or None if it was asked to stop.

    Raises:
        ServiceError: there is no verdict.
    """
    limits = replace(settings.eligibility, phases=() if phase is None else (phase,))
    limited = replace(settings, eligibility=limits)
    daemon = Daemon(limited, here.recipe, here.home, here.pool, here.board, here.stop, once=True, waits=False)
    daemon.run()
    if here.stop.is_set():
        return None
    if daemon.verdict is None:
        rejected = runs.totals(here.pool, here.recipe.stream).rejected
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(rejected.items()))
        where = f" in phase {phase}" if phase else ""
        if not daemon.has_paused:
            here.folder.note_unfit()
        raise ServiceError(
            f"no verdict{where}: {daemon.problem}{f'; rejected: {why}' if why else ''}. See {here.home.log_file}"
        )
    return ended_run(here.pool, here.recipe, phase)


def results(here: Open) -> list[PhaseResult]:
    """Return the result of each phase that has a verdict, in order."""
    found = (ended_run(here.pool, here.recipe, phase) for phase in here.recipe.phase_names or (None,))
    return [_result(here.home, run) for run in found if run is not None]


def _result(home: Home, run: runs.Run) -> PhaseResult:
    report = run.report or {}
    verdict = report.get("verdict") or {}
    published = home.adapter(run.run_id)
    return PhaseResult(
        phase=run.phase,
        run_id=run.run_id,
        decision=str(verdict.get("decision")),
        reasons=tuple(verdict.get("reasons") or ()),
        evaluation=report.get("evaluation") or {},
        adapter=published if run.state == "published" else home.run(run.run_id).adapter,
        report=home.run(run.run_id).report,
        rejected=read_json(home.run(run.run_id).dataset_stats)["rows"]["rejected"],
    )
