"""Held-out losses by language and repository, with intervals over files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from service.gate.interval import LEVEL, Array, Interval, loss_interval, ratio_interval, sums_by_file
from trainer.records import SampleEvaluation

MODELS = ("anchor", "current", "candidate")
RESAMPLES = 10_000
DIVISIONS: Mapping[str, Callable[[SampleEvaluation], str]] = {
    "all": lambda _: "all",
    "language": lambda sample: sample.language,
    "repository": lambda sample: sample.repository or "",
    "kind": lambda sample: sample.kind,
}


@dataclass(frozen=True, kw_only=True)
class ModelScore:
    """One model on one slice."""

    loss: float
    """Nats per supervised token."""
    low: float | None
    high: float | None
    """95 % interval of the loss over files. None with fewer than two files."""
    perplexity: float
    token_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Three models on the same held-out samples."""

    name: str
    files: int
    samples: int
    tokens: int
    models: Mapping[str, ModelScore]
    """By anchor, current and candidate."""
    differences: Mapping[str, Interval]
    """The candidate's loss minus that of `current` and `anchor`. Missing with fewer than two files."""


def slices(samples: Sequence[SampleEvaluation]) -> dict[str, list[Slice]]:
    """Return the slices of each division, the largest first."""
    found = {}
    for division, name_of in DIVISIONS.items():
        members: dict[str, list[SampleEvaluation]] = {}
        for sample in samples:
            members.setdefault(name_of(sample), []).append(sample)
        made = [_slice(name, group) for name, group in members.items()]
        found[division] = sorted(made, key=lambda one: (-one.tokens, one.name))
    return found


def bootstrap_interval(samples: Sequence[SampleEvaluation], *, against: str, seed: int = 0) -> Interval | None:
    """Return the candidate's difference with the interval of a paired bootstrap over files: both models keep a drawn
    file. With few files it is too narrow (see interval.py). None with fewer than two files."""
    nats, tokens = sums_by_file(samples, lambda sample: sample.loss["candidate"] - sample.loss[against])
    if len(tokens) < 2:
        return None
    from scipy import stats

    def ratio(drawn_nats: Array, drawn_tokens: Array, axis: int = -1) -> Any:
        return drawn_nats.sum(axis=axis) / drawn_tokens.sum(axis=axis)

    found = stats.bootstrap(
        (nats, tokens), ratio, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=500,
        confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    difference = float(ratio(nats, tokens))
    return Interval(difference=difference, low=float(found.low), high=float(found.high), files=len(tokens))


def as_record(found: Mapping[str, Sequence[Slice]]) -> dict[str, Any]:
    """Return plain JSON values."""
    return {division: [asdict(one) for one in members] for division, members in found.items()}


def _slice(name: str, samples: Sequence[SampleEvaluation]) -> Slice:
    differences = {against: loss_interval(samples, against=against) for against in ("current", "anchor")}
    _, tokens = sums_by_file(samples, lambda _: 0.0)
    return Slice(
        name=name,
        files=len(tokens),
        samples=len(samples),
        tokens=int(tokens.sum()),
        models={model: _model(samples, model) for model in MODELS},
        differences={against: interval for against, interval in differences.items() if interval is not None},
    )


def _model(samples: Sequence[SampleEvaluation], model: str) -> ModelScore:
    nats, tokens = sums_by_file(samples, lambda sample: sample.loss[model])
    interval = ratio_interval(nats, tokens) if len(tokens) > 1 else None
    loss = float(nats.sum() / tokens.sum())
    return ModelScore(
        loss=loss,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        perplexity=math.exp(min(loss, 700.0)),
        token_accuracy=sum(sample.correct[model] for sample in samples) / float(tokens.sum()),
    )
