"""Which files a training reads, and for a curriculum which of them belong to which phase."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.errors import UsageError
from service.intake.hub import SCHEME
from trainer.recipe import Phase, Recipe

UNREAD = frozenset({".git", "__pycache__", "node_modules"})
"""Folders that change without a change of the sources."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Sources whose rows have one phase."""

    phase: str | None
    """None: the rows name their own phase, or the recipe has no phases."""
    sources: tuple[str, ...]


def parts_of(recipe: Recipe, paths: Sequence[str]) -> list[Part]:
    """Assign the named files and folders to the phases of the recipe.

    A folder that holds files of the recipe's phases must hold those of all phases. Any other file or folder is read as
    `codelupe drop` reads it, and its rows name their phase themselves.

    Raises:
        UsageError: a path does not exist, or the file of a phase is missing.
    """
    missing = [path for path in paths if not path.startswith(SCHEME) and not os.path.lexists(path)]
    if missing:
        raise UsageError(f"no such file or folder: {', '.join(missing)}")
    absolute = [path if path.startswith(SCHEME) else str(Path(path).absolute()) for path in paths]
    with_file = [phase for phase in recipe.phases if phase.file is not None]
    found: dict[str, list[str]] = {phase.name: [] for phase in with_file}
    others = []
    for path in absolute:
        of_path = list(_phase_files(path, with_file))
        for phase, file in of_path:
            found[phase.name].append(str(file))
        if not of_path:
            others.append(path)
    if any(found.values()) and (lacking := [phase for phase in with_file if not found[phase.name]]):
        named = ", ".join(f"{phase.file} (phase {phase.name})" for phase in lacking)
        raise UsageError(
            f"--from: {named} is missing. Put it beside the files of the other phases, or name it with --from. "
            "Each line is a record with the text in `training_content`"
        )
    parts = [Part(phase=name, sources=tuple(files)) for name, files in found.items() if files]
    return [*parts, *([Part(phase=None, sources=tuple(others))] if others else [])]


def _phase_files(path: str, phases: Sequence[Phase]) -> list[tuple[Phase, Path]]:
    """Return the phases' files that a path is or holds."""
    if path.startswith(SCHEME):
        return []
    place = Path(path)
    if place.is_dir():
        return [(phase, place / phase.file) for phase in phases if phase.file and (place / phase.file).is_file()]
    return [(phase, place) for phase in phases if phase.file == place.name]


def fingerprint(parts: Sequence[Part]) -> str:
    """Return a digest of the names, sizes and times of all files of the sources. Datasets of the Hub are left out."""
    digest = hashlib.sha256()
    for source in (source for part in parts for source in part.sources if not source.startswith(SCHEME)):
        for path in _files(Path(source)):
            try:
                found = path.lstat()
            except OSError:  # it is gone already
                continue
            digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _files(source: Path) -> Iterator[Path]:
    if not source.is_dir():
        yield source
        return
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if name not in UNREAD)
        yield from (Path(folder) / name for name in sorted(files))
