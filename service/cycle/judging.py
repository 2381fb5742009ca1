"""Judges a finished run: whether its candidate was examined, the evidence, the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from db import runs
from db.pool import Pool
from service.admission.reasons import wrong_setting
from service.admission.separation import leaks
from service.gate.evidence import Evidence, read_evidence
from service.gate.judge import Verdict, judge
from service.logs import event as log
from trainer.recipe import Recipe
from trainer.recipe_file import load_recipe
from trainer.records import RowOutcome, read_evaluation, read_outcomes
from trainer.run_dir import RunDirectory, RunDirectoryError


def to_examine(directory: RunDirectory, recipe: Recipe) -> bool:
    """Whether the candidate has yet to be examined. A run without a candidate has nothing to examine."""
    return recipe.gate.examination and directory.adapter.is_dir() and not directory.examination.exists()


def evidence_of(directory: RunDirectory, recipe: Recipe, *, run_id: int, beat: Callable[[], None]) -> Evidence:
    """Read what the gate judges by.

    Raises:
        RunDirectoryError: a file is missing or cannot be read.
    """
    judged = {file_id for sample in read_evaluation(directory.evaluation) for file_id in sample.file_ids}
    found = leaks(directory, judged, recipe.hygiene, beat)
    evidence = read_evidence(directory, recipe.gate, run_id=run_id, leaks=found)
    if evidence.report.get("adapter") and not directory.adapter.is_dir():
        raise RunDirectoryError(f"{directory.adapter} is missing. A backup may be older than the run's verdict")
    return evidence


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished run, and the verdict on it."""

    verdict: Verdict
    report: dict[str, Any]
    outcomes: Sequence[RowOutcome]
    recipe: Recipe
    """The recipe that the run was made with."""


def judge_run(directory: RunDirectory, recipe: Recipe, *, run_id: int, beat: Callable[[], None]) -> Finished:
    """Read a finished run and judge it by the present recipe.

    Raises:
        RunDirectoryError: a file is missing or cannot be read.
    """
    try:
        evidence = evidence_of(directory, recipe, run_id=run_id, beat=beat)
        return Finished(
            verdict=judge(evidence),
            report=dict(evidence.report),
            outcomes=list(read_outcomes(directory.rows_outcome)),
            recipe=load_recipe(directory.recipe),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RunDirectoryError) as error:
        raise RunDirectoryError(f"the report of run {run_id} cannot be read: {error!r}") from error


def rejected_by_a_setting(pool: Pool, run_id: int, finished: Finished) -> str | None:
    """Return the problem if the trainer rejected nearly all rows because of one setting."""
    own = runs.unsettled(pool, run_id)
    reasons = (o.reason or "" for o in finished.outcomes if o.outcome == "rejected" and o.file_id in own)
    return wrong_setting(Counter(reasons), len(own), finished.recipe)


def log_verdict(run_id: int, verdict: Verdict) -> None:
    """Log the decision, why, and the losses."""
    losses: dict[str, Any] = verdict.measured
    log("Verdict", run=run_id, decision=verdict.decision, reason=verdict.text(), **losses)
