"""Who decides whether a row was lost or trained twice, without a look at the ledger.

The producer logs the ids whose COMMIT returned. The trainer logs, in each run's rows_outcome.jsonl, which rows it
consumed. The lineage is what hangs on the pointer: the folder it names says which version it was trained from, and
that one's says the same. The two logs are compared as multisets.
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
    """The promise was not kept."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """What the two logs say of each other."""

    lost: list[int] = field(default_factory=list)
    """Committed, and neither consumed nor held out nor refused by the published lineage."""
    twice: list[int] = field(default_factory=list)
    """In more than one class, or more than once in one."""
    phantom: list[int] = field(default_factory=list)
    """Consumed, and never committed."""

    @property
    def settled(self) -> bool:
        return not (self.lost or self.twice or self.phantom)

    def __str__(self) -> str:
        return ", ".join(f"{len(ids)} {name} {ids[:10]}" for name, ids in vars(self).items() if ids) or "0 / 0 / 0"


class ProducerLog:
    """The ids of committed rows, one a line; written after the COMMIT returned."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, ids: Iterable[int]) -> None:
        """Log ids; one write, so that several producers may share the file."""
        with self._path.open("a") as file:
            file.write("".join(f"{number}\n" for number in ids))

    def ids(self) -> Counter[int]:
        """How often each id was logged."""
        return Counter(int(line) for line in self._path.read_text().split()) if self._path.exists() else Counter()


def lineage(pointer: Path, runs: Path) -> Iterator[RunDirectory]:
    """The runs behind the adapter that a pointer names, newest first."""
    version = _version(pointer.readlink()) if pointer.is_symlink() else None
    while version is not None:
        run = RunDirectory(runs / f"{version:06d}")
        yield run
        version = read_json(run.manifest)["parent_version"]


def count(produced: Counter[int], pointer: Path, runs: Path, refused: Iterable[int] = ()) -> Count:
    """Compare.

    Args:
        refused: ids that intake refused without a run, as the producer knows beforehand
    """
    consumed: Counter[int] = Counter(refused)
    held_out: set[int] = set()
    for run in lineage(pointer, runs):
        for outcome in read_outcomes(run.rows_outcome):
            if outcome.outcome in ("trained", "rejected"):
                consumed[outcome.file_id] += 1
            elif outcome.outcome == "held_out":
                held_out.add(outcome.file_id)  # measured in every run since
    consumed.update(held_out)
    return Count(
        lost=sorted((produced - consumed).elements()),
        twice=sorted(file_id for file_id, times in consumed.items() if times > 1),
        phantom=sorted(consumed.keys() - produced.keys()),
    )


def check_pointer(pointer: Path) -> None:
    """What the pointer names is there, whole, and says itself which version it is; no pointer is fine too.

    Raises:
        Broken
    """
    if not pointer.is_symlink():
        if pointer.exists():
            raise Broken(f"{pointer} is no symlink")
        return
    try:
        folder = pointer.resolve(strict=True)  # once, as whoever loads it has to: it may be swapped at any moment
        manifest = verify_manifest(folder)
        lineage_file = json.loads((folder / "lineage.json").read_text())
    except Exception as error:
        raise Broken(f"what {pointer} names cannot be loaded: {error}") from error
    if not manifest["version"] == lineage_file["version"] == _version(folder):
        raise Broken(f"{folder} says that it is version {manifest['version']}")


def _version(folder: Path) -> int:
    return int(folder.name.removeprefix("v"))
