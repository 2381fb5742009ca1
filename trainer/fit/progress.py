"""Progress of a fit: counts, evaluations, early stopping. Stored in state.json. (no torch)"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.evaluate.score import Score
from trainer.fit.expert_interval import ExpertInterval
from trainer.recipe import Evaluation


@dataclass(kw_only=True)
class Progress:
    """The state of a fit besides weights and optimizer. A resume starts from it."""

    step: int = 0
    tokens_seen: int = 0
    losses: list[float] = field(default_factory=list)
    """Of each step."""
    anchor: Score | None = None
    """The frozen base alone."""
    current: Score | None = None
    """The start of the fit: the parent adapter, or a new adapter without effect."""
    history: list[tuple[int, Score]] = field(default_factory=list)
    """The candidate's evaluations by step. Step 0 is `current`."""
    reference: float = math.inf
    """Best loss so far. The next evaluation must be lower by the threshold."""
    misses: int = 0
    """Number of consecutive evaluations without improvement."""
    stopped_early: bool = False
    routed: ExpertInterval = field(default_factory=ExpertInterval)
    """What a mixture's routers did since the last evaluation."""
    experts: dict[str, Any] | None = None
    """The same for the interval before the last evaluation, as in the report. None: a base without experts."""

    @property
    def best_step(self) -> int:
        """Step with the lowest loss after training started. 0 before its first evaluation."""
        trained = [(score.loss, step) for step, score in self.history if step > 0]
        return min(trained)[1] if trained else 0

    def result_step(self, *, load_best: bool) -> int:
        """Step whose weights are the result: the best one, or the last."""
        return self.best_step if load_best else self.step

    @property
    def latest_is_best(self) -> bool:
        """Whether the last evaluation has the lowest loss so far, that of the start (step 0) included."""
        losses = [score.loss for _, score in self.history]
        return bool(losses) and all(losses[-1] < earlier for earlier in losses[:-1])

    @property
    def measured(self) -> bool:
        """Whether the current weights have been evaluated."""
        return bool(self.history) and self.history[-1][0] == self.step

    def score_at(self, step: int) -> Score:
        """The candidate's score at an evaluated step."""
        return dict(self.history)[step]

    def record(self, score: Score, limits: Evaluation) -> None:
        """Record the evaluation of the current step, and decide on early stopping."""
        self.history.append((self.step, score))
        if score.loss < self.reference - limits.threshold or self.step == 0:
            self.reference = score.loss
            self.misses = 0
            return
        self.misses += 1
        self.stopped_early = self.misses >= limits.patience

    def recent_loss(self) -> float | None:
        """Mean training loss over the last tenth of the steps, or None without steps."""
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
        if "routed" in data:  # a checkpoint of an earlier version has none
            values["routed"] = ExpertInterval(**data["routed"])
        for name in ("anchor", "current"):
            values[name] = Score(**data[name]) if data[name] else None
        return cls(**values)


def evaluation_due(step: int, steps_total: int, limits: Evaluation) -> bool:
    """Whether to evaluate after a step: at a fixed interval, and always at the first and last step."""
    interval = limits.interval_steps or max(1, math.ceil(steps_total * limits.interval_fraction))
    return step % interval == 0 or step == steps_total
