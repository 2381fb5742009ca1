"""Watches a trainer or an examination to its end, while lease, books and board are kept up to date."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from db import runs
from db.errors import LeaseLost, Unavailable
from db.pool import Pool
from service import progress
from service.cycle.examiner import Examiner
from service.cycle.holding import Holding
from service.cycle.launch import TrainerProcess, watch_to_end
from service.cycle.leadership import Leadership
from service.cycle.upkeep import Upkeep
from service.cycle.watch import Watcher
from service.logs import event as log
from service.settings.load import Settings
from service.web.board import Board
from trainer.run_dir import RunDirectory

STEP_FAILED_CODES = (3, 4)
"""Exit codes of the trainer that a single row can cause."""
FINAL_CODES = (2, *STEP_FAILED_CODES)
"""Exit codes after which another start of the same run would end the same way."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one start of the trainer ended."""

    code: int | None
    """Its exit code. None: it was stopped, because the service stops or somebody asked for it."""
    failure: str | None
    """The failure that it reported."""


class Supervisor:
    """Starts the trainer and watches it."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        board: Board,
        leadership: Leadership,
        upkeep: Upkeep,
        holding: Holding,
        stop: threading.Event,
    ) -> None:
        self.settings, self.pool, self.board = settings, pool, board
        self.leadership, self.upkeep, self.holding, self.stop = leadership, upkeep, holding, stop
        self.examiner = Examiner(settings)

    def train(self, directory: RunDirectory, run_id: int, *, examines_early: bool) -> Ending:
        """Start the trainer on a run directory and return when it has ended.

        Args:
            examines_early: start the process of the examination shortly before. It needs memory of its own
        """
        watcher = Watcher(directory, run_id, self.board)
        watcher.skip_history()
        process = TrainerProcess(directory, self.settings.trainer_secrets)
        log("Training process", run=run_id, pid=process.pid)

        def each_moment() -> None:
            watcher.read()
            if examines_early and watcher.ends_soon:
                self.examiner.start_early(directory)
            self.board.beat()
            self.tick(run_id)

        try:
            code = watch_to_end(process, lambda: self.stop.is_set() or self.holding.stops_training_now(), each_moment)
        finally:
            watcher.close()
        if code is None:
            log("Training paused; the next start resumes it", run=run_id)
        return Ending(code=code, failure=watcher.failure)

    def examine(self, directory: RunDirectory, run_id: int) -> int | None:
        """Examine a finished run's adapter in a fresh process. Returns its exit code, or None at a stop."""
        process = self.examiner.process(directory)
        log("Examination", run=run_id, pid=process.pid)

        def each_moment() -> None:
            self.board.beat()
            self.tick(run_id)

        progress.report("examining the candidate")
        try:
            return watch_to_end(process, self.stop.is_set, each_moment)
        finally:
            progress.ended("examining the candidate")

    def tick(self, run_id: int) -> None:
        """Renew the lease, record a heartbeat, poll and sweep, each when it is due.

        An unreachable database does not stop training: it is only noted. A lease that expired meanwhile is taken
        again if no other service has taken it.
        """
        if not self.leadership.due():
            return
        try:
            try:
                self.leadership.renew()
            except LeaseLost:
                if not self.leadership.acquire():
                    raise
            lease = self.leadership.lease
            runs.heartbeat(self.pool, lease, run_id)
            if self.upkeep.poll_due():
                self.upkeep.poll(lease)
            self.upkeep.sweep(lease)
            self.board.clear("database")
        except Unavailable as error:
            self.leadership.put_off()
            self.upkeep.note_database_trouble(error)
