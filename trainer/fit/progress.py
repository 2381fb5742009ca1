"""How far a fit has come: counts, evaluations, early stopping. What state.json holds. (no torch)"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.evaluate.score import Score
from trainer.recipe import Evaluation


@dataclass(kw_only=True)
class Progress:
    """Everything about a fit that is neither weights nor optimizer state. A resume starts from it."""

    step: int = 0
    tokens_seen: int = 0
    losses: list[float] = field(default_factory=list)
    """Of each step."""
    anchor: Score | None = None
    """The frozen base alone."""
    current: Score | None = None
    """What the fit started from: the parent adapter, or an adapter that does nothing yet."""
    history: list[tuple[int, Score]] = field(default_factory=list)
    """Candidate's evaluations by step; the first is step 0, which is `current`."""
    reference: float = math.inf
    """Loss that the next evaluation has to undercut by the threshold."""
    misses: int = 0
    """Evaluations in a row that did not."""
    stopped_early: bool = False

    @property
    def best_step(self) -> int:
        """Step with the lowest loss among those that trained; 0 before the first evaluation of one."""
        trained = [(score.loss, step) for step, score in self.history if step > 0]
        return min(trained)[1] if trained else 0

    @property
    def latest_is_best(self) -> bool:
        """Whether the last evaluation has the lowest loss so far, that of the start (step 0) included."""
        losses = [score.loss for _, score in self.history]
        return bool(losses) and all(losses[-1] < earlier for earlier in losses[:-1])

    @property
    def measured(self) -> bool:
        """Whether the weights as they are have been evaluated."""
        return bool(self.history) and self.history[-1][0] == self.step

    def score_at(self, step: int) -> Score:
        """The candidate's score at an evaluated step."""
        return dict(self.history)[step]

    def record(self, score: Score, limits: Evaluation) -> None:
        """Take in an evaluation of the present step, and decide whether it was the last one needed."""
        self.history.append((self.step, score))
        if score.loss < self.reference - limits.threshold or self.step == 0:
            self.reference = score.loss
            self.misses = 0
            return
        self.misses += 1
        self.stopped_early = self.misses >= limits.patience

    def recent_loss(self) -> float | None:
        """Mean training loss over the last tenth of the steps; None when there was no step."""
        if not self.losses:
            return None
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)

    def as_json(self) -> dict[str, Any]:
        """For state.json."""
        data = asdict(self)
        data["reference"] = None if math.isinf(self.reference) else self.reference
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        """From state.json."""
        values = dict(data)
        values["reference"] = math.inf if data["reference"] is None else data["reference"]
        values["history"] = [(step, Score(**score)) for step, score in data["history"]]
        for name in ("anchor", "current"):
            values[name] = Score(**data[name]) if data[name] else None
        return cls(**values)


def evaluation_due(step: int, steps_total: int, interval_fraction: float) -> bool:
    """Whether a step is followed by an evaluation: every so many, and always the first and the last."""
    interval = max(1, math.ceil(steps_total * interval_fraction))
    return step % interval == 0 or step == steps_total
