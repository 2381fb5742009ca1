"""Finds what is known about a run: in the database, in its run directory, and in the adapter's folder."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from db import history, runs
from db.errors import DatabaseError
from db.runs import Run
from service.database import database
from service.errors import PreconditionError, UsageError
from service.publish.trained import Tally, TrainedOn, as_records, kept
from service.settings.environment import TRAINING, TRAINING_RECIPE
from service.settings.home import Home
from service.settings.load import Settings
from service.web.curves import RunCurves
from trainer.recipe_file import load_recipe
from trainer.records import Row, SampleEvaluation, read_evaluation, read_rows
from trainer.run_dir import RunDirectory, RunDirectoryError, read_json

T = TypeVar("T")
POINTS = 300
MOST_READS = 10_000


@dataclass(kw_only=True)
class Known:
    """What is known about a run. None and empty: nothing is."""

    run_id: int | None
    run: Run | None = None
    """As the database has it."""
    manifest: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    """With the verdict, if the database has it."""
    stats: dict[str, Any] = field(default_factory=dict)
    """dataset_stats.json"""
    answers: list[dict[str, Any]] = field(default_factory=list)
    evaluation: list[SampleEvaluation] = field(default_factory=list)
    lineage: dict[str, Any] = field(default_factory=dict)
    """lineage.json of the published adapter, or what the run's own rows say."""
    curves: dict[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Files by role and outcome."""
    held_out: list[Row] = field(default_factory=list)
    """Rows with their texts, if they were asked for."""
    missing: list[str] = field(default_factory=list)
    """What could not be read, and why."""

    def read(self, name: str, path: Path, read: Callable[[Path], T]) -> T | None:
        """Read a file. Notes if it does not exist, or cannot be read."""
        if not path.exists():
            self.missing.append(f"{name}: there is no {path.name}")
            return None
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, RunDirectoryError) as error:
            self.missing.append(f"{name}: {path.name} cannot be read ({type(error).__name__}: {error})")
            return None


def gather(settings: Settings, run: str, *, texts: int = 0) -> Known:
    """Find what is known about a run.

    Args:
        run: its number, its run directory, or the folder of a training, which stands for its last run
        texts: how many held-out rows to read with their texts

    Raises:
        UsageError: there is no such run.
        PreconditionError: neither the database nor the run directory can be read.
    """
    settings, run_id, directory = _place(settings, run)
    known = Known(run_id=run_id)
    if run_id is not None:
        _from_database(known, settings, run_id, directory.root.is_dir())
    if directory.root.is_dir():
        _from_directory(known, directory, texts=texts)
    else:
        known.missing.append(f"curves, slices and answers: the run directory {directory.root} is gone")
    version = (known.run.published_in if known.run else None) or known.run_id
    _lineage(known, Home(settings.home), version, directory)
    return known


def _place(settings: Settings, run: str) -> tuple[Settings, int | None, RunDirectory]:
    """Return where a run is. Without a number, only its directory is known."""
    if run.isdecimal() and len(run) < 19:
        return settings, int(run), Home(settings.home).run(int(run))
    folder = Path(run).absolute()
    if not folder.is_dir():
        raise UsageError(f"{run!r} is neither a run's number nor a folder")
    if (folder / TRAINING).is_file():
        numbers = [int(one.name) for one in (folder / "runs").glob("[0-9]*") if one.name.isdecimal()]
        if not numbers:
            raise UsageError(f"the training in {folder} has no run yet")
        return _of_training(settings, folder), max(numbers), Home(folder).run(max(numbers))
    if not (folder / "MANIFEST.json").is_file():
        raise UsageError(f"{folder} is neither a run directory (with MANIFEST.json) nor the folder of a training")
    home = folder.parent.parent
    number = int(folder.name) if folder.name.isdecimal() and folder.parent.name == "runs" else None
    if number is not None and (home / TRAINING).is_file():
        return _of_training(settings, home), number, RunDirectory(folder)
    is_ours = home == Path(settings.home).absolute()
    return settings, number if is_ours else None, RunDirectory(folder)


def _of_training(settings: Settings, folder: Path) -> Settings:
    path = folder / TRAINING_RECIPE
    recipe = load_recipe(path) if path.is_file() else settings.recipe
    return replace(settings, home=folder, database_url=None, recipe=recipe)


def _from_database(known: Known, settings: Settings, run_id: int, has_directory: bool) -> None:
    try:
        with database(settings) as pool:
            found = runs.get(pool, run_id)
            if found is not None and found.stream == settings.recipe.stream:
                known.run, known.report = found, dict(found.report or {})
                known.files = history.file_counts(pool, run_id)
            elif not has_directory:
                raise UsageError(f"the stream {settings.recipe.stream} has no run {run_id}; `codelupe runs` lists them")
            else:
                known.missing.append(f"verdict: the stream {settings.recipe.stream} has no run {run_id}")
    except (DatabaseError, PreconditionError) as error:
        if not has_directory:
            raise
        known.missing.append(f"verdict and state: the database cannot be read ({error})")


def _from_directory(known: Known, directory: RunDirectory, *, texts: int) -> None:
    known.manifest = known.read("facts of the claim", directory.manifest, read_json) or {}
    known.run_id = known.run_id or known.manifest.get("run_id")
    ended = known.run is None or known.run.ended_at is not None
    if not known.report and (directory.report.exists() or ended):
        known.report = known.read("result", directory.report, read_json) or {}
    if "verdict" not in known.report and directory.verdict.exists():
        known.report["verdict"] = known.read("verdict", directory.verdict, read_json)
    known.stats = known.read("samples by kind", directory.dataset_stats, read_json) or {}
    if directory.answers.exists():
        known.answers = list((known.read("answers", directory.answers, read_json) or {}).get("prompts") or [])
    if known.report.get("evaluation"):
        known.evaluation = known.read("slices", directory.evaluation, lambda path: list(read_evaluation(path))) or []
    if directory.events.exists():
        known.curves = _curves(directory)
    else:
        known.missing.append("curves: there is no events.jsonl")
    if texts:
        path = kept(directory.held_out)
        known.held_out = known.read("texts", path, lambda path: _first_rows(path, texts)) or []


def _curves(directory: RunDirectory) -> dict[str, Any]:
    curves = RunCurves(directory.events)
    for _ in range(MOST_READS):
        curves.advance()
        if curves.is_complete:
            break
    return curves.as_record(POINTS)


def _first_rows(path: Path, count: int) -> list[Row]:
    return [row for row, _ in zip(read_rows(path), range(count), strict=False)]


def _lineage(known: Known, home: Home, version: int | None, directory: RunDirectory) -> None:
    path = home.adapter(version) / "lineage.json" if version is not None else None
    published = known.run is not None and (known.run.state == "published" or known.run.published_in is not None)
    if path is not None and published:
        found = known.read("lineage", path, read_json)
        if found:
            known.lineage = found
            return
    if not directory.rows_outcome.exists():
        return
    tally = Tally()
    try:
        tally.add(directory)
    except RunDirectoryError as error:
        known.missing.append(f"rows by language and licence: {error}")
        return
    known.lineage = {"trained": as_records(tally.trained()), "replayed": tally.replayed}


def trained_rows(known: Known, name: str) -> list[TrainedOn]:
    """Return a list of the lineage: `trained` or `trained_in_all`. What cannot be read is left out."""
    found = []
    for record in known.lineage.get(name) or []:
        try:
            found.append(TrainedOn(**record))
        except TypeError:
            known.missing.append(f"lineage: an entry of {name} has other fields")
    return found
