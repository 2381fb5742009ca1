"""The folder of one evaluation. It can be continued at any point. (no torch)

    settings.json      what decides the texts; written first, and compared when the evaluation goes on
    generations.jsonl  one line for each answer, appended
    outcomes.jsonl     one line for each verdict, appended
    evaluation.json    the summary, written last

A crash can leave half a line at the end of an appended file. It is cut off at the next start, and done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainer.errors import UnusableInput
from trainer.evaluate.engines import Generation
from trainer.records import json_line, read_lines
from trainer.run_dir import RunDirectoryError, fsync_folder, held_lock, read_json, write_json

T = TypeVar("T")
Key = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict on one answer: a line of outcomes.jsonl."""

    task_id: str
    sample: int
    passed: bool
    """Whether the tests passed. For infilling: whether the text is exactly the original one."""
    reason: str
    """Why not. Empty if it passed."""
    seconds: float = 0.0
    similarity: float | None = None
    """For infilling: edit similarity to the original text, from 0 to 1."""


class Results:
    """The files of one evaluation."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    @property
    def generations(self) -> Path:
        return self.root / "generations.jsonl"

    @property
    def outcomes(self) -> Path:
        return self.root / "outcomes.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.jsonl"

    @property
    def summary(self) -> Path:
        return self.root / "evaluation.json"

    def read_generations(self) -> dict[Key, Generation]:
        """Return the answers so far."""
        return {(found.task_id, found.sample): found for found in _read(self.generations, Generation)}

    def read_outcomes(self) -> dict[Key, Judgement]:
        """Return the verdicts so far."""
        return {(found.task_id, found.sample): found for found in _read(self.outcomes, Judgement)}

    def append(self, path: Path, records: Iterable[Generation | Judgement]) -> None:
        """Append lines, and hand them to the system: they survive when this process is killed."""
        with path.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json_line(asdict(record)))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write evaluation.json, after making sure of what it stands on."""
        for path in (self.generations, self.outcomes):
            if path.exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        write_json(self.summary, summary)


@contextmanager
def open_results(root: Path, settings: Mapping[str, Any]) -> Iterator[Results]:
    """Open a new folder, or one with the same settings to go on. No other process writes to it meanwhile.

    Raises:
        UnusableInput: it has other settings, holds something else, or another process has it.
    """
    results = Results(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with held_lock(root / "lock", wait_seconds=0):
            _check_settings(results, json.loads(json.dumps(settings)))
            results.summary.unlink(missing_ok=True)  # it is written last
            for path in (results.generations, results.outcomes):
                _drop_torn_line(path)
            yield results
    except RunDirectoryError as error:
        raise UnusableInput(f"{error}. Wait for the other evaluation, or name another folder with --to") from error
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UnusableInput(f"the folder {root} cannot be used ({error}). Name another one with --to") from error


def read_results(root: Path) -> Results:
    """Return the results of a finished evaluation.

    Raises:
        UnusableInput: it is not finished, or the folder is something else.
    """
    results = Results(root)
    if not results.settings.is_file():
        raise UnusableInput(f"{root} is not the folder of an evaluation: it has no {results.settings.name}")
    if not results.summary.is_file():
        raise UnusableInput(f"the evaluation {root} is not finished: it has no {results.summary.name}. Run it again")
    return results


def _check_settings(results: Results, settings: Mapping[str, Any]) -> None:
    if not results.settings.exists():
        if others := [path.name for path in results.root.iterdir() if path.name != "lock"]:
            raise UnusableInput(
                f"{results.root} holds {', '.join(sorted(others)[:5])} and no evaluation. Name another folder with --to"
            )
        write_json(results.settings, settings)
        fsync_folder(results.root)
        return
    try:
        before = dict(read_json(results.settings))
    except (OSError, ValueError, TypeError) as error:
        raise UnusableInput(f"{results.settings} cannot be read ({error}). Name another folder with --to") from error
    names = sorted({*before, *settings})
    if changed := [name for name in names if before.get(name) != settings.get(name)]:
        differences = "; ".join(f"{name} {before.get(name)!r}, now {settings.get(name)!r}" for name in changed)
        raise UnusableInput(
            f"{results.root} holds an evaluation with other settings: {differences}. Use the same settings to go on "
            "with it, or name another folder with --to"
        )


def _drop_torn_line(path: Path) -> None:
    """Cut off what follows the last line end."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)


def _read(path: Path, kind: type[T]) -> Iterator[T]:
    try:
        for record in read_lines(path):
            yield kind(**record)
    except (RunDirectoryError, TypeError) as error:
        raise UnusableInput(f"{path} cannot be read ({error}). Name another folder with --to") from error
