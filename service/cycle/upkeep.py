"""Maintenance between the daemon's states: pointer, leftovers, counts on the board, disk space."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from db import adapters, chunks, embedded, runs, trunk
from db.errors import DatabaseError, Unavailable
from db.lease import Lease
from db.pool import Pool
from db.trunk import Trunk
from db.void import void
from service.admission.reasons import digests
from service.cycle.claim_files import Start
from service.logs import event as log
from service.publish.folders import Beat, retire, sync_pointer, tidy_run, verify_adapter
from service.settings.home import Home
from service.settings.load import Settings
from service.web.board import Board
from trainer.recipe import Recipe
from trainer.run_dir import RunDirectoryError, verify_manifest

CONFIRM_SECONDS = 60.0
"""Counts older than this are renewed before they start a run."""
RUNS_TIDIED = 20
"""How many of the newest runs are looked at for files that are no longer needed."""


class Pause(Exception):
    """The daemon cannot continue now. The reason tells a person what to do."""

    def __init__(self, cause: str, reason: str) -> None:
        self.cause = cause
        super().__init__(reason)


class Upkeep:
    """Maintains one stream's folder and its counts."""

    def __init__(self, settings: Settings, home: Home, pool: Pool, board: Board) -> None:
        self.settings, self.home, self.pool, self.board = settings, home, pool, board
        self.stream = settings.recipe.stream
        self._polled = 0.0

    def poll_due(self) -> bool:
        """Whether CHECK_INTERVAL has passed since the last poll."""
        return time.monotonic() - self._polled > self.settings.check_interval_seconds

    def derive_pointer(self) -> None:
        """Point the symlink to the database's current adapter. The service is degraded while they differ."""
        current = adapters.current(self.pool, self.stream)
        try:
            if sync_pointer(self.home, self.stream, current):
                log("Pointer", stream=self.stream, version=current.version if current else None)
        except OSError as error:
            if "pointer" not in self.board.read().troubles:
                log("Pointer cannot be updated", level=logging.WARNING, stream=self.stream, reason=str(error))
            self.board.trouble("pointer", f"{self.home.pointer(self.stream)} cannot be updated: {error}")
        else:
            self.board.clear("pointer")
        self.board.update(
            current_version=current.version if current else None,
            current_published_at=current.published_at if current else None,
            current_known=True,
        )

    def check_current(self) -> None:
        """Verify the current adapter before a claim. If it is damaged, every run would fail.

        Raises:
            Pause: the adapter's folder is missing or damaged.
        """
        current = adapters.current(self.pool, self.stream)
        if current is not None:
            try:
                verify_adapter(self.home, current, self.board.beat)
            except RunDirectoryError as error:
                raise Pause(
                    "adapter",
                    f"the current adapter cannot be trained on: {error}. Restore its folder from a backup, or "
                    "run `codelupe rollback` to an intact version",
                ) from error
        self.board.clear("adapter")

    def start(self, lease: Lease) -> Start:
        """Return what the next run trains on from. An open candidate that cannot be used any more is given up."""
        current, found = adapters.current(self.pool, self.stream), trunk.trunk(self.pool, self.stream)
        if found is None:
            return Start(current=current)
        problem = self._unusable(found, current.version if current else None)
        if problem is None:
            return Start(current=current, trunk=found)
        rows = trunk.give_up(self.pool, lease)
        log("Open candidate given up", level=logging.WARNING, run=found.head, rows=rows, reason=problem)
        return Start(current=current)

    def _unusable(self, found: Trunk, version: int | None) -> str | None:
        """Return why the next run cannot train on the open candidate, or None. `version` is the current one."""
        if found.parent_version != version:
            return f"it began from version {found.parent_version}, and {version} is current now"
        try:
            verify_manifest(self.home.run(found.head).adapter, self.board.beat)
        except RunDirectoryError as error:
            return str(error)
        return None

    def clean_up(self) -> None:
        """Clean up after a service that was killed between a verdict and its cleanup."""
        self.tidy_runs()
        self.retire()
        for run in runs.history(self.pool, self.stream, limit=RUNS_TIDIED):
            if verdict := (run.report or {}).get("verdict"):
                self.board.update(last_verdict=verdict)
                break

    def void(self, lease: Lease, recipe: Recipe, beat: Beat) -> None:
        """Return rows that were rejected with other settings than the present ones."""
        for reason, rows in void(self.pool, lease, digests(recipe), beat).items():
            log("Rejected rows are decided again", reason=reason, rows=rows)

    def tidy_runs(self) -> None:
        """Compress ended runs and remove their candidates, except the one that the next run trains on."""
        open_now = trunk.trunk(self.pool, self.stream)
        head = open_now.head if open_now else None
        for run in runs.history(self.pool, self.stream, limit=RUNS_TIDIED):
            directory = self.home.run(run.run_id)
            keep = self.settings.keep_candidates or run.run_id == head
            left = directory.rows.exists() or (directory.adapter.exists() and not keep)
            if run.ended_at and left:
                tidy_run(directory, keep_adapter=keep, keep_checkpoints=self.settings.keep_candidates)

    def retire(self) -> None:
        """Remove the folders of adapters beyond KEEP_ADAPTERS."""
        here = adapters.history(self.pool, self.stream, among=self.home.adapter_versions())
        retire(self.home, here, self.settings.keep_adapters)

    def refresh(self) -> None:
        """Show the stream's counts on the board, without a live run."""
        runs.fold_totals(self.pool, self.stream)
        self.board.update(
            totals=runs.totals(self.pool, self.stream),
            rows_in_run=0,
            database_ready=True,
            migrations_ready=True,
            **self._disk(),
            progress=None,
        )

    def poll(self, lease: Lease) -> chunks.Pending:
        """Count the newest rows. Returns all pending rows known so far."""
        found = chunks.poll(self.pool, lease, self.settings.source, self.settings.eligibility)
        self._polled = time.monotonic()
        self._show(found)
        return found

    def sweep(self, lease: Lease, *, urgent: bool = False, confirm: datetime | None = None) -> chunks.Pending | None:
        """Count the next due range of older rows (see db.chunks). Returns None if no range is due."""
        found = chunks.sweep(
            self.pool,
            lease,
            self.settings.source,
            self.settings.eligibility,
            interval_seconds=self.settings.sweep_interval_seconds,
            urgent=urgent,
            confirm=confirm,
        )
        if found is not None:
            self._show(found)
        return found

    def _show(self, found: chunks.Pending) -> None:
        self.board.update(pending=found, disk_free_bytes=self.home.free_bytes())
        if found.changed:
            log("Settled rows have another text", rows=found.changed)

    def count_pending(self, lease: Lease, stop: threading.Event, beat: Callable[[], None]) -> chunks.Pending:
        """Count the newest rows and every range that was never counted. If that is enough for a run, renew old counts.
        Stops early at as many rows as a run can have."""
        found = self.poll(lease)
        most = max(self.settings.max_dataset_size, self.settings.min_new_files)
        counted_before = found.at - timedelta(seconds=CONFIRM_SECONDS)
        while found.rows < most and not stop.is_set():
            enough = found.rows >= self.settings.min_new_files
            swept = self.sweep(lease, urgent=True, confirm=counted_before if enough else None)
            if swept is None:
                break
            found = swept
            beat()
        return found

    def check_disk(self) -> None:
        """Check that the disk has twice the space of a run before a claim.

        Raises:
            Pause: it has less.
        """
        disk = self._disk()
        self.board.update(**disk)
        free, needed = disk["disk_free_bytes"], disk["disk_needed_bytes"]
        if free < needed:
            raise Pause(
                "disk",
                f"{free / 1e9:.1f} GB are free for {self.home.runs} and {self.home.models}, "
                f"but a run requires {needed / 1e9:.1f} GB. Free some space, and the service continues. Or stop it, "
                "lower KEEP_ADAPTERS and run `codelupe gc`",
            )
        self.board.clear("disk")

    def _disk(self) -> dict[str, int]:
        return {"disk_free_bytes": self.home.free_bytes(), "disk_needed_bytes": 2 * self.home.run_bytes()}

    def note_database_trouble(self, error: Unavailable) -> None:
        """Show on the board that the database does not answer. Log it the first time."""
        if "database" not in self.board.read().troubles:
            log("Database unavailable", level=logging.WARNING, reason=str(error))
        self.board.trouble("database", f"the database does not answer ({error}); trying again")

    def restart_database(self) -> None:
        """Start the embedded Postgres again if it has died. Any other database has its own operator."""
        if self.settings.database_url is None:
            try:
                embedded.start(self.home.postgres)
            except DatabaseError as error:
                log("Embedded database does not start", level=logging.ERROR, reason=str(error))
