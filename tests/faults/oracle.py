"""The oracle: finds lost rows and rows trained twice without reading the ledger.

The producer logs an id after its COMMIT has returned. The trainer logs the rows that it consumed in each run's
rows_outcome.jsonl. The lineage starts at the pointer: the folder it names records its parent version, and so on. The
oracle compares the two logs as multisets.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.records import read_outcomes
from trainer.run_dir import RunDirectory, read_json, verify_manifest


class Broken(AssertionError):
    """A guarantee of the program does not hold."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """The differences between the two logs."""

    lost: list[int] = field(default_factory=list)
    """Committed, but not consumed, held out or refused by the published lineage."""
    twice: list[int] = field(default_factory=list)
    """In more than one class, or more than once in one class."""
    phantom: list[int] = field(default_factory=list)
    """Consumed, but never committed."""

    @property
    def settled(self) -> bool:
        return not (self.lost or self.twice or self.phantom)

    def __str__(self) -> str:
        return ", ".join(f"{len(ids)} {name} {ids[:10]}" for name, ids in vars(self).items() if ids) or "0 / 0 / 0"


class ProducerLog:
    """The ids of committed rows, one per line. They are written after the COMMIT has returned."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, ids: Iterable[int]) -> None:
        """Log ids in a single write, so that several producers can share the file."""
        with self._path.open("a") as file:
            file.write("".join(f"{number}\n" for number in ids))

    def ids(self) -> Counter[int]:
        """Return how often each id was logged."""
        return Counter(int(line) for line in self._path.read_text().split()) if self._path.exists() else Counter()


def lineage(pointer: Path, runs: Path) -> Iterator[RunDirectory]:
    """Yield the runs that led to the adapter behind a pointer, newest first."""
    version = _version(pointer.readlink()) if pointer.is_symlink() else None
    while version is not None:
        run = RunDirectory(runs / f"{version:06d}")
        yield run
        version = read_json(run.manifest)["parent_version"]


def count(produced: Counter[int], pointer: Path, runs: Path, refused: Iterable[int] = ()) -> Count:
    """Compare the two logs.

    Args:
        refused: ids that were refused without training
    """
    consumed: Counter[int] = Counter(refused)
    held_out: set[int] = set()
    for run in lineage(pointer, runs):
        for outcome in read_outcomes(run.rows_outcome):
            if outcome.outcome in ("trained", "rejected"):
                consumed[outcome.file_id] += 1
            elif outcome.outcome == "held_out":
                held_out.add(outcome.file_id)  # later runs evaluate it again
    consumed.update(held_out)
    return Count(
        lost=sorted((produced - consumed).elements()),
        twice=sorted(file_id for file_id, times in consumed.items() if times > 1),
        phantom=sorted(consumed.keys() - produced.keys()),
    )


def check_pointer(pointer: Path) -> None:
    """Check that the pointer names an intact folder with the right version, or that there is no pointer.

    Raises:
        Broken: the pointer or its folder is not valid.
    """
    if not pointer.is_symlink():
        if pointer.exists():
            raise Broken(f"{pointer} is not a symlink")
        return
    try:
        folder = pointer.resolve(strict=True)  # only once, because it may be swapped at any moment
        manifest = verify_manifest(folder)
        lineage_file = json.loads((folder / "lineage.json").read_text())
    except Exception as error:
        raise Broken(f"the adapter behind {pointer} cannot be loaded: {error}") from error
    if not manifest["version"] == lineage_file["version"] == _version(folder):
        raise Broken(f"the manifest of {folder} names version {manifest['version']}")


def _version(folder: Path) -> int:
    return int(folder.name.removeprefix("v"))
