"""What the gate judges by: the report and the files of a finished run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from service.gate.interval import Interval, loss_interval
from trainer.recipe import Gate
from trainer.records import SampleEvaluation, read_evaluation
from trainer.run_dir import RunDirectory, RunDirectoryError, read_json

MODELS = ("anchor", "current", "candidate")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A finished run, as the rules see it."""

    run_id: int
    gate: Gate
    report: Mapping[str, Any]
    samples: Sequence[SampleEvaluation] = ()
    """The judged samples. Empty for a run of a version that did not write them."""
    examination: Mapping[str, Any] | None = None
    """What a fresh process found. None: it was not asked for, or the run has no adapter."""
    leaks: Sequence[str] = ()
    """Pairs of an evaluation row and a training row that are the same or nearly so."""
    trunk: frozenset[int] = field(default_factory=frozenset)
    """The inconclusive runs that the candidate was trained on from."""

    @cached_property
    def losses(self) -> dict[str, float]:
        """Held-out loss in nats per token by model. NaN where the report has none."""
        evaluation = self.report.get("evaluation") or {}
        return {name: _number((evaluation.get(name) or {}).get("loss")) for name in MODELS}

    @property
    def measured(self) -> bool:
        """Whether all three losses are finite."""
        return all(math.isfinite(loss) for loss in self.losses.values())

    @property
    def looks(self) -> int:
        """How often the new files have been looked at for a verdict, this one included."""
        return len(self.trunk) + 1

    @property
    def new_level(self) -> float:
        """Level of the interval on new files. It spends the allowed error over the looks.

        Look k may err with probability α / (k (k + 1)). These add up to α over all looks, however many there are.
        """
        return 1 - (1 - self.gate.confidence) / (self.looks * (self.looks + 1))

    @property
    def new(self) -> list[SampleEvaluation]:
        """Samples of files that no published version was judged by: those of this run and of its trunk."""
        return [sample for sample in self.samples if sample.fresh or sample.run_id in self.trunk]

    @property
    def earlier(self) -> list[SampleEvaluation]:
        """Samples of files that runs before the trunk held out."""
        return [sample for sample in self.samples if not (sample.fresh or sample.run_id in self.trunk)]

    def languages(self) -> Iterator[tuple[str, list[SampleEvaluation]]]:
        """Yield each language with its samples, by name."""
        for language in sorted({sample.language for sample in self.samples}):
            yield language, [sample for sample in self.samples if sample.language == language]

    def interval(
        self, samples: Sequence[SampleEvaluation], *, against: str = "current", level: float | None = None
    ) -> Interval | None:
        """Return the interval of the candidate's difference on some samples, or None with fewer than two files."""
        return loss_interval(samples, against=against, level=level or self.gate.confidence)


def read_evidence(directory: RunDirectory, gate: Gate, *, run_id: int, leaks: Sequence[str] = ()) -> Evidence:
    """Read the files of a finished run.

    Raises:
        RunDirectoryError: a file is missing or cannot be read.
    """
    try:
        report = read_json(directory.report)
        trunk = read_json(directory.manifest).get("trunk", [])
        examination = read_json(directory.examination) if directory.examination.exists() else None
        samples = list(read_evaluation(directory.evaluation))
    except (OSError, ValueError, AttributeError) as error:
        raise RunDirectoryError(f"{directory.root} cannot be judged ({error})") from error
    return Evidence(
        run_id=run_id,
        gate=gate,
        report=report,
        samples=samples,
        examination=examination,
        leaks=leaks,
        trunk=frozenset(trunk),
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
