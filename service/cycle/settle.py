"""How a run ends: its adapter is published, its candidate is refused or stays open, or its rows are returned."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

from db import adapters, runs, settling
from db.errors import ParentMoved, RowsRevoked, SettlementMismatch
from db.pool import Pool
from service.admission.reasons import digests
from service.cycle.judging import Finished, log_verdict
from service.cycle.leadership import Leadership
from service.cycle.upkeep import RUNS_TIDIED, Upkeep
from service.cycle.verdicts import ENDED_SECONDS, STOPPED_SECONDS, VerdictSender, energy_cost
from service.gate.judge import Verdict
from service.logs import event as log
from service.publish.folders import Beat, copy_candidate, tidy_run
from service.settings.home import Home
from service.settings.load import Settings
from trainer.recipe import Recipe
from trainer.records import RowOutcome, Suspects, read_rows
from trainer.run_dir import RunDirectoryError

RunEnd = Literal["returned", "failed"]
"""How a run ends without a verdict."""
REFUSED_DELAY_SECONDS = 600.0
"""How long a refused candidate's rows wait the first time. The delay doubles with each refusal."""


class Settling:
    """Settles the rows of a stream's runs. Every write is under the lease of `leadership`."""

    def __init__(
        self, settings: Settings, home: Home, pool: Pool, leadership: Leadership, upkeep: Upkeep, beat: Beat
    ) -> None:
        self.settings, self.home, self.pool = settings, home, pool
        self.leadership, self.upkeep, self.beat = leadership, upkeep, beat
        self.sender = VerdictSender(home, settings.trainer_secrets, settings.electricity_price)

    def settle(self, run_id: int, finished: Finished) -> Verdict:
        """Carry out a verdict. Returns it as it turned out: a candidate that cannot be published is refused."""
        verdict, outcomes, recipe = finished.verdict, finished.outcomes, finished.recipe
        cost = energy_cost(finished.report, self.settings.electricity_price)
        report = {**finished.report, "verdict": verdict.as_record(), "energy_cost": cost}
        try:
            match verdict.decision:
                case "promote":
                    return self._publish(run_id, verdict, report, outcomes, recipe)
                case "inconclusive":
                    return self._keep_open(run_id, verdict, report, outcomes, recipe)
                case "refuse":
                    trained = any(outcome.outcome == "trained" for outcome in outcomes)
                    self._refuse(run_id, outcomes, verdict.text(), report, recipe, with_trunk=trained)
                case _:
                    assert_never(verdict.decision)
        except SettlementMismatch as error:  # after a restore, the directory belongs to another run of this number
            return self._not_published(run_id, verdict, "failed", str(error))
        return verdict

    def give_back(self, run_id: int, state: RunEnd, reason: str, suspects: Suspects | None = None) -> int | None:
        """End a run without a verdict. Returns the row that made it fail and is now quarantined, if there is one."""
        single = settling.give_back(
            self.pool,
            self.leadership.lease,
            run_id,
            state=state,
            reason=reason,
            cause=suspects.reason if suspects else None,
            suspects=suspects.file_ids if suspects else (),
        )
        log("Rows returned", level=logging.WARNING, run=run_id, state=state, reason=reason,
            suspects=len(suspects.file_ids) if suspects else None)  # fmt: skip
        if single is not None and suspects is not None:
            log("Row quarantined", level=logging.WARNING, run=run_id, file=single, reason=suspects.reason)
            self.upkeep.refresh()
        return single

    def settle_without_training(self, run_id: int, recipe: Recipe) -> None:
        """Every row of the claim was refused or held out: settle them without a fit."""
        directory, lease = self.home.run(run_id), self.leadership.lease
        held_out = [
            RowOutcome(file_id=row.file_id, outcome="held_out") for row in read_rows(directory.held_out) if row.fresh
        ]
        runs.advance(self.pool, lease, run_id, "training")
        runs.advance(self.pool, lease, run_id, "judging")
        self._refuse(run_id, held_out, "no row was left for training", None, recipe, with_trunk=False)
        tidy_run(directory)
        self.upkeep.refresh()

    def tell(self, run_id: int, settled: Verdict, report: Mapping[str, object]) -> None:
        """Tell a verdict that is in the database to the log and to the run's trackers."""
        log_verdict(run_id, settled)
        self.sender.tell(run_id, settled, report)

    def catch_up(self) -> None:
        """Tell the trackers the verdicts that an earlier service did not tell them."""
        self.sender.catch_up(runs.history(self.pool, self.upkeep.stream, limit=RUNS_TIDIED))

    def close(self, *, asked: bool) -> None:
        """Wait a moment for the trackers. `asked`: somebody waits for the service to stop."""
        self.sender.close(STOPPED_SECONDS if asked else ENDED_SECONDS)

    def tidy(self) -> None:
        """After a verdict: move the pointer, compress the run, retire old adapters, count again."""
        self.upkeep.derive_pointer()
        self.upkeep.tidy_runs()
        self.upkeep.retire()
        self.upkeep.refresh()

    def _publish(
        self, run_id: int, verdict: Verdict, report: dict[str, Any], outcomes: Sequence[RowOutcome], recipe: Recipe
    ) -> Verdict:
        try:
            published = copy_candidate(self.home, self.home.run(run_id), run_id, report, self.beat)
        except RunDirectoryError as error:
            return self._not_published(run_id, verdict, "failed", f"the candidate is damaged: {error}")
        try:
            settling.publish(
                self.pool,
                self.leadership.lease,
                run_id,
                outcomes,
                adapters.NewAdapter(
                    folder=published.folder.name,
                    manifest_sha256=published.manifest_sha256,
                    evaluation=verdict.evaluation(),
                ),
                report,
                settings=digests(recipe),
            )
        except (ParentMoved, RowsRevoked, SettlementMismatch) as error:
            state: RunEnd = "failed" if isinstance(error, SettlementMismatch) else "returned"
            refused = self._not_published(run_id, verdict, state, str(error))
            shutil.rmtree(published.folder)  # no version will ever name this copy
            return refused
        log("Saving adapter", run=run_id, version=run_id, folder=str(published.folder))
        return verdict

    def _keep_open(
        self, run_id: int, verdict: Verdict, report: dict[str, Any], outcomes: Sequence[RowOutcome], recipe: Recipe
    ) -> Verdict:
        try:
            settling.keep_open(
                self.pool,
                self.leadership.lease,
                run_id,
                outcomes,
                reason=verdict.text(),
                report=report,
                settings=digests(recipe),
            )
        except (ParentMoved, RowsRevoked) as error:
            return self._not_published(run_id, verdict, "returned", str(error))
        return verdict

    def _not_published(self, run_id: int, verdict: Verdict, state: RunEnd, reason: str) -> Verdict:
        """The judge was not against it, but it cannot be kept. The verdict says so too."""
        self.give_back(run_id, state, reason)
        return verdict.not_published(reason)

    def _refuse(
        self,
        run_id: int,
        outcomes: Sequence[RowOutcome],
        reason: str,
        report: dict[str, Any] | None,
        recipe: Recipe,
        *,
        with_trunk: bool = True,
    ) -> None:
        settling.refuse(
            self.pool,
            self.leadership.lease,
            run_id,
            outcomes,
            reason=reason,
            report=report or {},
            max_attempts=self.settings.max_attempts,
            backoff_seconds=REFUSED_DELAY_SECONDS,
            with_trunk=with_trunk,
            settings=digests(recipe),
        )
