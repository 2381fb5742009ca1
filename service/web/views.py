"""What /api/v1 reads. A page that asks too much, or a database that does not answer, never holds up /health.

At most two requests read at a time. What many pages ask for is read once for all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from db import adapters, history, runs
from db.adapters import Adapter
from db.errors import Unavailable
from db.history import GREATEST_ID, LedgerRow, RowText, RunFile, RunSummary
from db.pool import Pool
from db.runs import Run
from service.settings.home import Home
from service.settings.load import Settings
from service.web.answers import Answer, compared_answers
from service.web.board import Board
from service.web.curves import Curves
from service.web.log_tail import log_tail
from service.web.quality import Quality

READERS, QUEUE = 2, 3
"""Requests that read database or files at a time, and that wait for their turn. The other threads answer probes."""
WAIT_SECONDS = 2.0
FRESH_SECONDS = 1.0
"""How long an answer is given to others who ask the same."""
CURVES_FRESH_SECONDS = 3.0
"""The same for curves, which cost more than all others."""
MOST_KEPT = 200
"""Answers that are kept."""


class NotFound(Exception):
    """There is no such run or row."""


class Busy(Exception):
    """Too many requests read at once."""


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """Some runs, newest first."""

    runs: list[RunSummary]
    next_before: int | None
    """`before` of the next page. None: this is the last one."""


@dataclass(frozen=True, kw_only=True)
class RunDetail:
    """A run with its report, and its files by role and outcome."""

    run: Run
    files: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class FilePage:
    """Some files of a run by id."""

    files: list[RunFile]
    next_after: int | None
    """`after` of the next page. None: this is the last one."""


@dataclass(frozen=True, kw_only=True)
class RunCurvesPage:
    """A run's curves. Each point is [step, mean, least, most] of neighbouring values."""

    run_id: int
    complete: bool
    """False: more is being read. Ask again."""
    curves: Mapping[str, list[list[float]]]
    lines: Mapping[str, float]
    experts: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class QualityPoint:
    """What a run measured, or the mean of a few neighbouring runs."""

    run: int
    state: str
    ended_at: Any
    values: Mapping[str, float]
    runs: int = 1
    """How many runs this point stands for."""


@dataclass(frozen=True, kw_only=True)
class QualitySeries:
    """The measurements of judged runs, oldest first."""

    complete: bool
    """False: older runs are being read. Ask again."""
    runs: int
    points: list[QualityPoint]


@dataclass(frozen=True, kw_only=True)
class AdapterPage:
    """Published adapters, newest first."""

    adapters: list[Adapter]


@dataclass(frozen=True, kw_only=True)
class RowPage:
    """Some rows of a disposition, the highest ids first."""

    rows: list[LedgerRow]
    next_before: int | None


@dataclass(frozen=True, kw_only=True)
class RowDetail:
    """Where a row stands, and its text for who presents the token."""

    file_id: int
    row: LedgerRow | None
    """None: no run has claimed it."""
    text: RowText | None
    """None: without the token, or if the source has no such row."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The recipe's own prompts."""

    current_version: int | None
    previous_version: int | None
    answers: list[Answer]


@dataclass(frozen=True, kw_only=True)
class LogTail:
    """The last lines of the log, oldest first."""

    lines: list[str]


class Views:
    """Reads history for /api/v1."""

    def __init__(self, pool: Pool, board: Board, settings: Settings) -> None:
        self._pool, self._board, self._settings = pool, board, settings
        self._home = Home(settings.home)
        self._stream = settings.recipe.stream
        self._readers = threading.BoundedSemaphore(READERS)
        self._queue = threading.BoundedSemaphore(READERS + QUEUE)
        self._kept: dict[tuple[Any, ...], tuple[float, Any]] = {}
        self._known: set[int] = set()
        """Runs of this stream, as far as somebody has asked for their curves."""
        self._is_open = threading.Event()
        self._curves = Curves(self._home)
        self._quality = Quality(self._judged)

    def open(self) -> None:
        """The database has its tables now."""
        self._is_open.set()

    def runs(self, before: int | None, limit: int) -> RunPage:
        found: list[RunSummary] = self._read(
            ("runs", before, limit), lambda: history.runs(self._pool, self._stream, before=before, limit=limit)
        )
        return RunPage(runs=found, next_before=found[-1].run_id if len(found) == limit else None)

    def run(self, run_id: int) -> RunDetail:
        def read() -> RunDetail:
            run = runs.get(self._pool, run_id)
            if run is None or run.stream != self._stream:
                raise NotFound(f"the stream {self._stream} has no run {run_id}")
            return RunDetail(run=run, files=history.file_counts(self._pool, run_id))

        found: RunDetail = self._read(("run", run_id), read)
        return found

    def files(self, run_id: int, after: int, limit: int) -> FilePage:
        self.run(run_id)  # of this stream
        found: list[RunFile] = self._read(
            ("files", run_id, after, limit),
            lambda: history.files(self._pool, self._stream, run_id, after=after, limit=limit),
        )
        return FilePage(files=found, next_after=found[-1].file_id if len(found) == limit else None)

    def curves(self, run_id: int, points: int) -> RunCurvesPage:
        progress = self._board.read().progress
        if run_id not in self._known and (progress is None or progress.run_id != run_id):
            self.run(run_id)
            self._known.add(run_id)
        found: RunCurvesPage = self._read_file(
            ("curves", run_id, points),
            lambda: RunCurvesPage(run_id=run_id, **self._curves.of(run_id, points=points)),
            kept=lambda found: CURVES_FRESH_SECONDS if found.complete else 0.0,
        )
        return found

    def quality(self, points: int) -> QualitySeries:
        found = self._read(("quality", points), lambda: self._quality.series(points))
        made = [QualityPoint(**point) for point in found["points"]]
        return QualitySeries(complete=found["complete"], runs=found["runs"], points=made)

    def adapters(self, limit: int) -> AdapterPage:
        found: list[Adapter] = self._read(
            ("adapters", limit), lambda: adapters.history(self._pool, self._stream, limit=limit)
        )
        return AdapterPage(adapters=found)

    def rows(self, disposition: str, reason: str | None, before: int | None, limit: int) -> RowPage:
        start = GREATEST_ID if before is None else before
        found: list[LedgerRow] = self._read(
            ("rows", disposition, reason, start, limit),
            lambda: history.rows(self._pool, self._stream, disposition, reason=reason, before=start, limit=limit),
        )
        return RowPage(rows=found, next_before=found[-1].file_id if len(found) == limit else None)

    def row(self, file_id: int, *, with_text: bool) -> RowDetail:
        def read() -> RowDetail:
            text = history.text(self._pool, self._settings.source, file_id) if with_text else None
            row = history.row(self._pool, self._stream, file_id)
            if row is None and text is None:
                raise NotFound(f"no run of the stream {self._stream} has claimed a row {file_id}")
            return RowDetail(file_id=file_id, row=row, text=text)

        found: RowDetail = self._read(("row", file_id, with_text), read)
        return found

    def answers(self) -> Answers:
        version = self._board.read().current_version
        previous = None
        if version is not None:
            newest = self._read(("among", version), lambda: adapters.history(self._pool, self._stream, among=[version]))
            previous = newest[0].parent_version if newest else None
        found = self._read_file(
            ("answers", version, previous), lambda: compared_answers(self._home, current=version, previous=previous)
        )
        return Answers(current_version=version, previous_version=previous, answers=found)

    def log(self, lines: int) -> LogTail:
        return LogTail(lines=self._read_file(("log", lines), lambda: log_tail(self._home.log_file, lines)))

    def _judged(self, after: int, before: int, limit: int) -> list[history.JudgedRun]:
        return history.judged(self._pool, self._stream, after=after, before=before, limit=limit)

    def _read(self, key: tuple[Any, ...], read: Callable[[], Any]) -> Any:
        """Return a fresh answer that is kept, or read one from the database.

        Raises:
            Unavailable: the database does not answer, or is not ready.
            Busy: too many requests read at once.
        """
        if (kept := self._fresh(key)) is not None:
            return kept
        if not self._is_open.is_set():
            raise Unavailable("the service is starting, and its database is not ready yet")
        if (trouble := self._board.read().troubles.get("database")) is not None:
            raise Unavailable(trouble)
        return self._read_file(key, read)

    def _read_file(
        self, key: tuple[Any, ...], read: Callable[[], Any], kept: Callable[[Any], float] = lambda _: FRESH_SECONDS
    ) -> Any:
        """Return a fresh answer that is kept, or read one. Raises Busy.

        Args:
            kept: how many seconds an answer stays fresh
        """
        if (answer := self._fresh(key)) is not None:
            return answer
        with self._turn():
            if (answer := self._fresh(key)) is not None:  # another request has just read it
                return answer
            found = read()
        if len(self._kept) >= MOST_KEPT:
            self._kept = {}
        self._kept[key] = (time.monotonic() + kept(found), found)
        return found

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for a turn to read."""
        busy = Busy("too many requests read at once. Ask again in a moment")
        if not self._queue.acquire(blocking=False):
            raise busy
        try:
            if not self._readers.acquire(timeout=WAIT_SECONDS):
                raise busy
            try:
                yield
            finally:
                self._readers.release()
        finally:
            self._queue.release()

    def _fresh(self, key: tuple[Any, ...]) -> Any | None:
        until, value = self._kept.get(key, (0.0, None))
        return value if time.monotonic() < until else None
