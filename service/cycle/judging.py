"""What is known of a finished run before its verdict: whether its candidate was examined, and the evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.admission.separation import leaks
from service.gate.evidence import Evidence, read_evidence
from service.gate.judge import Verdict
from service.logs import event as log
from trainer.recipe import Recipe
from trainer.records import read_evaluation
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


def log_verdict(run_id: int, verdict: Verdict) -> None:
    """Log the decision, why, and the losses."""
    losses: dict[str, Any] = verdict.measured
    log("Verdict", run=run_id, decision=verdict.decision, reason=verdict.text(), **losses)
