"""Held-out losses by language and repository."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.gate.slices import as_record, bootstrap_interval, slices
from trainer.records import SampleEvaluation


def sample(file_id: int, language: str, tokens: int, *, gain: float, repository: str | None = "r") -> SampleEvaluation:
    loss = {"anchor": 2.5 * tokens, "current": 2.0 * tokens, "candidate": (2.0 - gain) * tokens}
    return SampleEvaluation(
        file_ids=(file_id,), fresh=True, repository=repository, path="p", language=language, kind="instruction",
        tokens=tokens, loss=loss, correct={"anchor": tokens // 4, "current": tokens // 2, "candidate": tokens // 2},
    )  # fmt: skip


SAMPLES = [
    sample(1, "python", 100, gain=0.1), sample(1, "python", 300, gain=0.3), sample(2, "python", 200, gain=0.2),
    sample(3, "rust", 400, gain=-0.1, repository=None),
]  # fmt: skip


def test_each_slice_weighs_its_tokens():
    found = slices(SAMPLES)
    assert [one.name for one in found["language"]] == ["python", "rust"], "the largest first"
    python, rust = found["language"]
    assert (python.files, python.samples, python.tokens) == (2, 3, 600)
    candidate = python.models["candidate"]
    assert candidate.loss == pytest.approx(2.0 - (10 + 90 + 40) / 600)
    assert candidate.perplexity == pytest.approx(math.exp(candidate.loss)) and candidate.token_accuracy == 0.5
    assert python.models["anchor"].token_accuracy == 0.25
    assert python.differences["current"].difference == pytest.approx(-140 / 600)
    assert python.differences["anchor"].difference == pytest.approx(-140 / 600 - 0.5)
    assert candidate.low is not None and candidate.high is not None and candidate.low < candidate.loss < candidate.high
    assert rust.differences == {} and rust.models["candidate"].low is None, "one file has no interval"
    assert [one.name for one in found["repository"]] == ["r", ""] and found["all"][0].files == 3
    assert as_record(found)["all"][0]["models"]["current"]["loss"] == pytest.approx(2.0)


def test_the_bootstrap_draws_files_and_keeps_the_pairs():
    draw = np.random.default_rng(1)
    many = [sample(n, "python", int(draw.integers(50, 900)), gain=float(draw.normal(0.1, 0.2))) for n in range(150)]
    found, interval = bootstrap_interval(many, against="current"), slices(many)["all"][0].differences["current"]
    assert found is not None and found.difference == pytest.approx(interval.difference) and found.files == 150
    assert found.high - found.low == pytest.approx(interval.high - interval.low, rel=0.1)
    assert bootstrap_interval(many, against="current") == found
    equal = bootstrap_interval([sample(n, "python", 50 * n, gain=0.1) for n in range(1, 30)], against="current")
    assert equal is not None and equal.high - equal.low < 1e-9, "a file's tokens stay with its nats"
    assert bootstrap_interval(SAMPLES[:2], against="current") is None, "both samples are of one file"
