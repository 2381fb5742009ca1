"""poll → claim → train → judge → publish, as a table of states."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from db import chunks, runs, streams
from db.errors import DatabaseError, LeaseLost, Unavailable
from db.lease import Lease
from db.pool import Pool
from db.table import CHANNEL
from service.admission.reasons import digests
from service.cycle.claim import Undone, claim_run, log_claim
from service.cycle.holding import Holding
from service.cycle.judging import judge_run, rejected_by_a_setting, to_examine
from service.cycle.leadership import RENEW_SECONDS, Leadership
from service.cycle.memory import return_freed_memory
from service.cycle.pausing import ENDED_BY_FILES, Pausing
from service.cycle.settle import Settling
from service.cycle.states import TOLD_BY_EVENTS, WRITING, may_follow
from service.cycle.supervise import FINAL_CODES, STEP_FAILED_CODES, Supervisor
from service.cycle.upkeep import Pause, Upkeep
from service.cycle.waiting import Waiting
from service.errors import PreconditionError
from service.gate.judge import Verdict
from service.logs import event as log
from service.settings.home import Home
from service.settings.load import Settings
from service.web.board import Board
from service.web.state import State
from trainer.recipe import Recipe
from trainer.records import Suspects, read_suspects
from trainer.run_dir import RunDirectoryError

DATABASE_PAUSE_SECONDS, LONGEST_DATABASE_PAUSE_SECONDS = 2.0, 10.0
"""Wait before the next try when the database does not answer. Doubles each time."""
MAX_CRASHES = 3
"""A run is given up after this many crashes of its trainer."""


class Daemon:
    """The service of one stream. `recipe` has its base pinned. `run()` returns when it is asked to stop or, with
    `once`, after a verdict. Without `waits`, it also returns when no row waits."""

    def __init__(
        self,
        settings: Settings,
        recipe: Recipe,
        home: Home,
        pool: Pool,
        board: Board,
        stop: threading.Event,
        once: bool,
        *,
        waits: bool = True,
    ) -> None:
        self.settings, self.recipe, self.home, self.pool, self.board = settings, recipe, home, pool, board
        self.stop, self.once, self.waits = stop, once, waits
        self.state = State.STARTING
        self.verdict: Verdict | None = None
        self.upkeep = Upkeep(settings, home, pool, board)
        self._leadership = Leadership(pool, recipe.stream, home.instance(), board.is_alive)
        self._wait = Waiting(stop, board, self._leadership)
        self._holding = Holding(pool, board, self._leadership, self.upkeep)
        self._supervisor = Supervisor(settings, pool, board, self._leadership, self.upkeep, self._holding, stop)
        self._settling = Settling(settings, home, pool, self._leadership, self.upkeep, self._wait.beat_and_renew)
        self._pausing = Pausing(pool, board, self._leadership, self.upkeep)
        self._run_id = 0
        self._crashes = 0
        self._judged: Verdict | None = None
        """The verdict that is being settled."""
        self._handlers: dict[State, Callable[[], State]] = {
            State.STARTING: self._starting,
            State.STANDBY: self._standby,
            State.WAITING: self._waiting,
            State.CLAIMING: self._claiming,
            State.TRAINING: self._training,
            State.JUDGING: self._judging,
            State.PAUSED: self._paused,
            State.ON_HOLD: self._on_hold,
        }

    @property
    def lease(self) -> Lease:
        return self._leadership.lease

    @property
    def problem(self) -> str | None:
        """Why the service paused last, or why it had nothing to do. None: neither happened."""
        return self._pausing.problem

    @property
    def has_paused(self) -> bool:
        """Whether something failed. A problem without a pause is that there is nothing to do."""
        return self._pausing.count > 0

    def run(self) -> None:
        """Go from state to state until stopped."""
        database_failures = 0
        while self.state is not State.STOPPED and not self.stop.is_set():
            try:
                following = self._handlers[self.state]()
            except Unavailable as error:
                database_failures += 1
                self.upkeep.note_database_trouble(error)
                self.upkeep.restart_database()
                pause = DATABASE_PAUSE_SECONDS * 2.0 ** (database_failures - 1)
                self._wait.sleep(min(LONGEST_DATABASE_PAUSE_SECONDS, pause), renew=False)
                if self.state in WRITING:
                    self._enter(State.STARTING)
                continue
            except LeaseLost as error:
                log("Lease lost", level=logging.WARNING, reason=str(error))
                following = State.STANDBY
            except Pause as pause:
                following = self._pause(pause.cause, str(pause))
            except (DatabaseError, RunDirectoryError, OSError) as error:
                following = self._pause("service", f"while {self.state}: {error}")
            database_failures = 0
            self.board.clear("database")  # noted here, or while training
            self._enter(following)
        self._enter(State.STOPPED)
        self._leadership.release()
        self._settling.close(asked=self.stop.is_set())

    def _enter(self, following: State) -> None:
        assert may_follow(self.state, following), f"{self.state} → {following}"
        if following is not self.state and following not in TOLD_BY_EVENTS:
            log("State", state=str(following), before=str(self.state))
        if following is not self.state and self.state in WRITING:
            return_freed_memory()
        if following is not State.JUDGING:
            self._supervisor.examiner.drop()
        self.state = following
        self.board.update(state=str(following))

    # --- the states ----------------------------------------------------------------------------------------

    def _starting(self) -> State:
        """Become the stream's only service, and resume what an earlier one left."""
        if not self._leadership.acquire():
            return State.STANDBY
        self.upkeep.derive_pointer()
        self.upkeep.clean_up()
        self.upkeep.void(self.lease, self.recipe, self._wait.beat_and_renew)
        self.upkeep.refresh()
        self.upkeep.poll(self.lease)
        run = runs.live(self.pool, self.recipe.stream)
        self._recall_verdict()
        self._settling.catch_up()
        if run is None:
            self.upkeep.check_current()
            return State.WAITING
        self._run_id, directory = run.run_id, self.home.run(run.run_id)
        if self._holding.stops_training() and run.state != "judging":
            return State.ON_HOLD
        if not directory.root.exists():
            self._settling.give_back(run.run_id, "returned", "the service ended before its directory was complete")
            return State.WAITING
        log("Resuming run", run=run.run_id, state=run.state)
        return State.JUDGING if run.state == "judging" else State.TRAINING

    def _standby(self) -> State:
        self._holding.asked()
        if other := self._leadership.other_holder():
            name, seconds = other
            if "lease" not in self.board.read().troubles:
                log("Standby", level=logging.WARNING, stream=self.recipe.stream, held_by=name, for_seconds=seconds)
            self.board.trouble("lease", f"stream {self.recipe.stream} is held by another service ({name})")
            self._wait.sleep(min(max(seconds, 1.0), RENEW_SECONDS), renew=False)
            return State.STANDBY
        self._wait.sleep(1.0, renew=False)
        self.board.clear("lease")
        return State.STARTING

    def _waiting(self) -> State:
        """Poll until there is enough to train on."""
        if self.once and self.verdict is not None:
            return State.STOPPED
        self._leadership.renew()
        self.upkeep.derive_pointer()
        if self._holding.asked() is not None:
            return State.ON_HOLD
        with self.pool.listening(CHANNEL) as notified:  # before the poll, so that later files are noticed
            found = self.upkeep.count_pending(self.lease, self.stop, self._wait.beat_and_renew)
            asked = streams.training_requested(self.pool, self.recipe.stream)
            if found.rows >= self.settings.min_new_files or (found.rows > 0 and asked is not None):
                self._pausing.rows, self._pausing.asked = found.rows, asked
                self.upkeep.check_disk()
                return State.CLAIMING
            if not self.waits and found.rows == 0:
                ineligible = ", ".join(f"{count} {reason}" for reason, count in sorted(found.ineligible.items()))
                self._pausing.problem = f"no row waits ({ineligible or 'there are no others'})"
                return State.STOPPED
            self._wait.until(notified, self.settings.check_interval_seconds, self._swept_enough())
        return State.WAITING

    def _swept_enough(self) -> Callable[[], bool]:
        """Return a function that sweeps a range while any is due, and says whether there are enough rows."""
        swept: chunks.Pending | None = None
        due = True

        def sweep() -> bool:
            nonlocal swept, due
            if due:
                swept = self.upkeep.sweep(self.lease)
                due = swept is not None
            return swept is not None and swept.rows >= self.settings.min_new_files

        return sweep

    def _claiming(self) -> State:
        self.upkeep.check_current()
        start = self.upkeep.start(self.lease)
        try:
            claimed = claim_run(
                self.pool, self.lease, self.home, self.settings, self.recipe, start, self._wait.beat_and_renew,
                reject_all=self._pausing.is_rejecting_all,
            )  # fmt: skip
        except Undone as error:
            raise Pause(error.cause, str(error)) from error
        except PreconditionError as error:  # a benchmark file has disappeared since the start
            raise Pause("service", str(error)) from error
        if claimed.run_id is None:  # the rows are gone, or no longer eligible
            chunks.discard_counts(self.pool, self.lease)
            return State.WAITING
        self._run_id, self._crashes = claimed.run_id, 0
        log_claim(claimed, start)
        self.board.update(rows_in_run=claimed.trained + claimed.held_out)
        if claimed.trained == 0:
            self._settling.settle_without_training(claimed.run_id, self.recipe)
            return State.WAITING
        return State.TRAINING

    def _training(self) -> State:
        """One start of the trainer."""
        directory = self.home.run(self._run_id)
        run = self._run()
        if run.ended_at is not None:
            return State.WAITING
        if run.state == "claimed":
            runs.advance(self.pool, self.lease, self._run_id, "training")
        if not directory.report.exists():
            runs.count_launch(self.pool, self.lease, self._run_id)
            ending = self._supervisor.train(directory, self._run_id, examines_early=run.launches == 0)
            if ending.code is None:
                return State.STOPPED if self.stop.is_set() else State.ON_HOLD
            if not directory.report.exists():
                return self._trainer_ended(ending.code, ending.failure)
        runs.advance(self.pool, self.lease, self._run_id, "judging")
        self.board.clear("trainer")
        self._crashes = self._pausing.count = 0
        return State.JUDGING

    def _judging(self) -> State:
        directory = self.home.run(self._run_id)
        if self._run().ended_at is not None:  # the answer to an earlier COMMIT was lost
            self._recall_verdict()
            self._settling.tidy()
            return State.WAITING
        if to_examine(directory, self.recipe):
            code = self._supervisor.examine(directory, self._run_id)
            if code is None:
                return State.STOPPED
            if to_examine(directory, self.recipe):
                return self._examination_ended(code)
        try:
            finished = judge_run(directory, self.recipe, run_id=self._run_id, beat=self._wait.beat_and_renew)
        except RunDirectoryError as error:
            return self._give_up(str(error))
        problem = rejected_by_a_setting(self.pool, self._run_id, finished)
        if problem is not None and not self._pausing.is_rejecting_all:
            self._settling.give_back(self._run_id, "returned", problem)
            self._settling.tidy()
            if digests(finished.recipe) != digests(self.recipe):  # the setting was corrected since the claim
                return State.WAITING
            raise Pause("samples", problem)
        self._judged = finished.verdict
        self._announce(self._settling.settle(self._run_id, finished), finished.report)
        self._pausing.is_rejecting_all = False  # a request is about the rows up to the next verdict
        self._settling.tidy()
        return State.WAITING

    def _announce(self, settled: Verdict, report: Mapping[str, object]) -> None:
        """Tell a verdict. Before it is in the database, it is none."""
        self.verdict, self._judged = settled, None
        self._settling.tell(self._run_id, settled, report)
        self.board.update(last_verdict=settled.as_record())
        self.board.ended(self._run_id, settled.decision, settled.text())

    def _recall_verdict(self) -> None:
        """Tell the verdict whose COMMIT got no answer, if the database has it."""
        if self._judged is not None and (run := self._run()).ended_at is not None:
            gone = run.state in ("returned", "failed") and self._judged.not_published(run.reason or run.state)
            self._announce(gone or self._judged, run.report or {})

    def _examination_ended(self, code: int) -> State:
        """The examination wrote nothing: try again after a crash, and give up in the end."""
        self._crashes += 1
        if code not in FINAL_CODES and self._crashes < MAX_CRASHES:
            log("Restarting the examination", level=logging.WARNING, run=self._run_id, code=code)
            return State.JUDGING
        log_file = self.home.run(self._run_id).log
        return self._give_up(f"run {self._run_id} could not be examined: it ended with code {code}; see {log_file}")

    def _paused(self) -> State:
        """Wait, then start afresh and check again what was wrong."""
        self._pausing.wait(self.stop, self._wait.sleep, self._wait.notified_within)
        for cause in ("service", *ENDED_BY_FILES):
            self.board.clear(cause)
        return State.STARTING

    def _on_hold(self) -> State:
        if self.once:
            return self._pause("hold", "somebody paused the stream. `codelupe resume` ends the pause")
        return State.ON_HOLD if self._holding.wait(self._wait.notified_within) else State.STARTING

    # --- training ------------------------------------------------------------------------------------------

    def _trainer_ended(self, code: int, failure: str | None) -> State:
        """The trainer left no report. Resume after a stop or a crash; give up otherwise."""
        log_file = self.home.run(self._run_id).log
        if code not in FINAL_CODES:
            self._crashes += 1
            if self._crashes < MAX_CRASHES:
                log("Restarting the training process", level=logging.WARNING, run=self._run_id, code=code)
                return State.TRAINING
        said = failure or f"it ended with code {code} {self._crashes} times; see {log_file}"
        suspects = read_suspects(self.home.run(self._run_id).suspects) if code in STEP_FAILED_CODES else None
        return self._give_up(f"run {self._run_id} failed: {said}", suspects)

    def _give_up(self, reason: str, suspects: Suspects | None = None) -> State:
        """The run failed: return its rows and pause. If a single row caused it, no pause is needed."""
        single = self._settling.give_back(self._run_id, "failed", reason, suspects)
        self.board.ended(self._run_id, "failed", reason)
        if single is not None:
            return State.WAITING
        return self._pause("trainer", reason)

    def _run(self) -> runs.Run:
        run = runs.get(self.pool, self._run_id)
        assert run is not None, f"run {self._run_id} is not in the database"
        return run

    # --- shared by the states ----------------------------------------------------------------------------

    def _pause(self, cause: str, reason: str) -> State:
        """Pause, and say why on the board. With `once`, stop instead."""
        self._pausing.begin(cause, reason, once=self.once)
        return State.STOPPED if self.once else State.PAUSED
