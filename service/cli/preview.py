"""Collects the rows for `codelupe samples` from files, folders or a run directory."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from service.admission.secrets import metadata_without_secrets, without_secrets
from service.cycle.trainer_commands import with_absolute_folder
from service.errors import PreconditionError, UsageError
from service.intake.drop import read_sources
from service.intake.formats import PassedOver
from service.intake.records import Given
from service.publish.folders import copy_unpacked
from service.settings.home import Home
from service.settings.load import Settings
from trainer.recipe import Hygiene
from trainer.recipe_file import dump_recipe
from trainer.records import Row, json_line
from trainer.run_dir import RunDirectory, content_sha256


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Input of `python -m trainer samples`."""

    recipe_file: Path
    rows_file: Path
    seed: int | None
    """The seed of the run. None: the recipe's seed."""
    skipped: list[str]
    """Files and records that give no row, with the reason."""


@contextmanager
def preview(settings: Settings, paths: list[Path], *, recipe_given: bool) -> Iterator[Preview]:
    """Prepare the rows of files and folders, or of one run directory with its own recipe and seed.

    Without a path, use the last run.

    Raises:
        UsageError: a path does not exist, the paths hold no row, or there is no run yet.
        PreconditionError: the rows of the run cannot be read.
    """
    if missing := [str(path) for path in paths if not path.exists() and not path.is_symlink()]:
        raise UsageError(f"no such file or folder: {', '.join(missing)}")
    run = RunDirectory(paths[0]) if len(paths) == 1 else _last_run(settings) if not paths else None
    with TemporaryDirectory() as folder:
        recipe_file = Path(folder) / f"{settings.recipe.name}.yaml"
        recipe_file.write_text(dump_recipe(with_absolute_folder(settings.recipe)), encoding="utf-8")
        rows_file = Path(folder) / "rows.jsonl"
        if run is not None and _has_rows(run):
            _copy_rows(run, rows_file)
            frozen = run.recipe.is_file() and not recipe_given
            yield Preview(
                recipe_file=run.recipe.absolute() if frozen else recipe_file,
                rows_file=rows_file,
                seed=_seed(run),
                skipped=[],
            )
            return
        skipped = write_rows(rows_file, paths, settings.recipe.hygiene)
        yield Preview(recipe_file=recipe_file, rows_file=rows_file, seed=None, skipped=skipped)


def write_rows(rows_file: Path, paths: list[Path], hygiene: Hygiene) -> list[str]:
    """Write the rows that `drop` would insert, with their secrets replaced. Returns what `drop` would skip.

    Rows that a claim would refuse are included.

    Raises:
        UsageError: the paths give no row.
    """
    skipped: list[str] = []
    file_id = 0
    with rows_file.open("w", encoding="utf-8") as file:
        for path in paths:
            for found in read_sources([str(path)], Given()):
                if isinstance(found, PassedOver):
                    skipped.append(f"{found.name}: {found.reason}")
                    continue
                file_id += 1
                content, metadata = found.content, dict(found.metadata)
                if hygiene.secrets == "replace":
                    content = without_secrets(content, Counter())
                    metadata = metadata_without_secrets(metadata, Counter())
                row = Row(
                    file_id=file_id,
                    repository=found.repository,
                    path=found.path,
                    language=found.language or "text",
                    content=content,
                    sha256=content_sha256(content),
                    metadata=metadata,
                )
                file.write(json_line(asdict(row)))
    if not file_id:
        raise UsageError(f"nothing to show: {'; '.join(skipped) or 'the folder holds no files'}")
    return skipped


def _has_rows(run: RunDirectory) -> bool:
    return run.rows.exists() or run.rows.with_name(f"{run.rows.name}.gz").exists()


def _copy_rows(run: RunDirectory, rows_file: Path) -> None:
    """Copy the rows, because a service may compress them at any time."""
    try:
        copy_unpacked(run.rows, rows_file)
    except (OSError, EOFError, zlib.error) as error:
        raise PreconditionError(f"the rows of {run.root} cannot be read: {error}") from error


def _last_run(settings: Settings) -> RunDirectory:
    runs = [RunDirectory(path) for path in sorted(Home(settings.home).runs.glob("[0-9]*"))]
    if not (with_rows := [run for run in runs if _has_rows(run)]):
        raise UsageError(f"there is no run below {Home(settings.home).runs} yet. Name files or a run directory")
    return with_rows[-1]


def _seed(run: RunDirectory) -> int | None:
    try:
        seed = json.loads(run.manifest.read_text(encoding="utf-8"))["seed"]
    except (OSError, ValueError, KeyError, TypeError):  # the rows can be shown without a manifest
        return None
    return seed if type(seed) is int else None
