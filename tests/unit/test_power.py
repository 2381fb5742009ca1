"""What `codelupe power` promises comes true in simulations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from service.cli.main import app
from service.errors import UsageError
from service.gate.power import (
    PassRates,
    deviation_of,
    files_needed,
    mcnemar_power,
    mcnemar_tasks,
    paired_tasks,
    samples_per_task,
)
from trainer.records import SampleEvaluation

TRIALS = 4000
CLAIM = PassRates(before=0.30, after=0.38, icc=0.6, task_correlation=0.8)


def task_rates(draw: np.random.Generator, tasks: int) -> tuple[np.ndarray, np.ndarray, PassRates]:
    """Correlated pass rates of many tasks (betas joined by a normal copula), and what they amount to."""
    normal = draw.multivariate_normal([0, 0], [[1, 0.85], [0.85, 1]], size=tasks)
    uniform = stats.norm.cdf(normal)
    before, after = stats.beta.ppf(uniform[:, 0], 0.45, 0.9), stats.beta.ppf(uniform[:, 1], 0.6, 0.9)
    p, q = float(before.mean()), float(after.mean())
    variances = (before.var() / (p * (1 - p)), after.var() / (q * (1 - q)))
    icc = float(np.mean(variances))
    correlation = float(np.corrcoef(before, after)[0, 1])
    return before, after, PassRates(before=p, after=q, icc=icc, task_correlation=correlation)


def test_mcnemars_power_is_that_of_simulated_outcomes():
    tasks = mcnemar_tasks(CLAIM, power=0.8, alpha=0.05)
    assert tasks is not None
    draw = np.random.default_rng(1)
    worse, better = CLAIM.discordant()
    counts = draw.multinomial(tasks, [worse, better, 1 - worse - better], size=TRIALS)
    found = [b > a and a + b > 0 and stats.binomtest(int(min(a, b)), int(a + b)).pvalue <= 0.05 for a, b, _ in counts]
    assert np.mean(found) == pytest.approx(0.8, abs=0.025)
    assert mcnemar_power(CLAIM, tasks, alpha=0.05) == pytest.approx(np.mean(found), abs=0.025)
    assert mcnemar_power(CLAIM, tasks // 2, alpha=0.05) < 0.6


def test_outcomes_differ_as_often_as_assumed():
    """One answer to each task, drawn from correlated pass rates."""
    draw = np.random.default_rng(2)
    before, after, rates = task_rates(draw, 200_000)
    first, second = draw.random(200_000) < before, draw.random(200_000) < after
    worse, better = rates.discordant()
    assert np.mean(first & ~second) == pytest.approx(worse, abs=0.006)
    assert np.mean(second & ~first) == pytest.approx(better, abs=0.006)


@pytest.mark.parametrize("samples", [1, 10])
def test_the_paired_test_has_the_promised_power(samples):
    draw = np.random.default_rng(3)
    before, after, rates = task_rates(draw, 400_000)
    tasks = paired_tasks(rates, samples, power=0.8, alpha=0.05)
    assert tasks is not None
    chosen = draw.integers(0, len(before), size=(TRIALS, tasks))
    difference = (draw.binomial(samples, after[chosen]) - draw.binomial(samples, before[chosen])) / samples
    found = stats.ttest_1samp(difference, 0, axis=1)
    assert np.mean((found.pvalue <= 0.05) & (found.statistic > 0)) == pytest.approx(0.8, abs=0.03)


def test_more_answers_need_fewer_tasks_down_to_a_limit():
    needed = [paired_tasks(CLAIM, samples, power=0.8, alpha=0.05) or 0 for samples in (1, 10, 100, 10_000)]
    assert needed == sorted(needed, reverse=True) and needed[0] > needed[-1] > 0
    enough = samples_per_task(CLAIM, 300, power=0.8, alpha=0.05)
    assert enough is not None and (paired_tasks(CLAIM, enough, power=0.8, alpha=0.05) or 0) <= 300
    assert enough == 1 or (paired_tasks(CLAIM, enough - 1, power=0.8, alpha=0.05) or 0) > 300
    assert samples_per_task(CLAIM, needed[-1] - 1, power=0.8, alpha=0.05) is None


def evaluated(file_id: int, tokens: int, difference: float) -> SampleEvaluation:
    loss = {"anchor": 2.0 * tokens, "current": 2.0 * tokens, "candidate": 2.0 * tokens + difference * tokens}
    return SampleEvaluation(
        file_ids=(file_id,), fresh=True, repository="r", path="p", language="python", kind="k", tokens=tokens,
        loss=loss, correct={"anchor": 0, "current": 0, "candidate": 0},
    )  # fmt: skip


def test_files_of_uneven_length_have_the_promised_power():
    """A run's deviation, then many later runs with as many files as it asks for."""
    draw = np.random.default_rng(4)

    def lengths(size: object) -> np.ndarray:
        return np.maximum(20, draw.lognormal(6, 0.8, size=size)).astype(int)

    tokens, drawn = lengths(3000), draw.normal(-0.01, 0.05, size=3000)
    pairs = zip(tokens, drawn, strict=True)
    deviation, files = deviation_of([evaluated(n, int(t), float(d)) for n, (t, d) in enumerate(pairs)])
    assert files == 3000 and deviation > 0.05, "long files count for more, which widens it"
    needed = files_needed(0.01, deviation, power=0.8, alpha=0.05)
    assert needed is not None
    t = lengths((TRIALS, needed)).astype(float)
    nats = t * draw.normal(-0.01, 0.05, size=t.shape)
    ratio = nats.sum(1) / t.sum(1)
    spread = np.sqrt(needed / (needed - 1) * np.square(nats - ratio[:, None] * t).sum(1)) / t.sum(1)
    assert np.mean(ratio + stats.t.ppf(0.975, needed - 1) * spread < 0) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"after": 0.3}, "no gain"), ({"after": 1.0}, "above 0 and below 1"), ({"icc": 1.5}, "icc must be from 0 to 1"),
     ({"after": 0.95, "icc": 1.0, "task_correlation": 1.0}, "cannot be so alike")],
)  # fmt: skip
def test_impossible_claims_are_refused(changes, problem):
    with pytest.raises(UsageError, match=problem):
        PassRates(**{"before": 0.3, "after": 0.4, **changes})


def test_the_command_shows_its_assumptions():
    shown = CliRunner().invoke(app, ["power", "--pass-at-1", "0.3", "0.35"])
    assert shown.exit_code == 0 and "assumed: 70% of the variance" in shown.stdout and "HumanEval" in shown.stdout
    found = json.loads(CliRunner().invoke(app, ["power", "--nats", "0.01", "--sd", "0.05", "--json"]).stdout)
    assert found["files"] == files_needed(0.01, 0.05, power=0.8, alpha=0.05) == 199
    both = CliRunner().invoke(app, ["power", "--nats", "0.01"])
    assert isinstance(both.exception, UsageError) and "--sd" in str(both.exception)
