"""Intervals and tests against hand calculations, other implementations and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluate.statistics import bootstrap, compare, estimate, mcnemar


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(5, 5) == 1.0


def test_a_share_has_wilsons_interval():
    found = estimate([1, 0, 0, 1] * 25)
    assert (found.value, found.tasks, found.method) == (0.5, 100, "wilson")
    assert (found.low, found.high) == (pytest.approx(0.40383, abs=1e-4), pytest.approx(0.59617, abs=1e-4))
    nothing = estimate([0.0] * 164)
    assert nothing.low == 0.0 and nothing.high == pytest.approx(0.02289, abs=1e-4), "never a width of zero"


def test_samples_of_a_task_are_one_cluster():
    """The same standard error as statsmodels' least squares with clusters, up to its correction for one parameter."""
    import statsmodels.api as sm

    draw = np.random.default_rng(1)
    rates = draw.beta(0.5, 0.5, size=60)
    passed = draw.random((60, 20)) < rates[:, None]
    found = estimate(passed.mean(axis=1).tolist())
    fit = sm.OLS(passed.ravel().astype(float), np.ones(1200)).fit(
        cov_type="cluster", cov_kwds={"groups": np.repeat(np.arange(60), 20)}, use_t=True
    )
    low, high = fit.conf_int()[0]
    assert found.method == "clustered" and found.value == pytest.approx(passed.mean())
    assert (found.low, found.high) == (pytest.approx(low, abs=2e-4), pytest.approx(high, abs=2e-4))
    naive = estimate(passed.ravel().astype(float).tolist())
    assert naive.high - naive.low < 0.5 * (found.high - found.low), "as if all answers were independent"


def test_the_clustered_interval_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        rates = draw.beta(0.6, 0.9, size=80)
        found = estimate((draw.binomial(10, rates) / 10).tolist())
        held += found.low <= 0.4 <= found.high
    assert 925 <= held <= 975


def test_a_comparison_pairs_the_tasks():
    first = {"a": [1.0, 0.0], "b": [1.0, 1.0], "c": [0.0, 0.0], "only here": [1.0]}
    second = {"b": [0.0, 1.0], "a": [1.0, 0.0], "c": [0.0, 0.0]}
    found = compare(first, second)
    assert found is not None
    assert (found.tasks, found.first_only, found.second_only, found.p_value) == (3, 1, 0, 1.0)
    assert found.difference == pytest.approx(0.5 / 3)
    assert found.low <= found.difference <= found.high
    assert compare(first, {"z": [1.0]}) is None


def test_the_bootstrap_is_seeded_and_as_wide_as_the_t_interval():
    values = np.random.default_rng(3).normal(0.1, 1.0, size=200).tolist()
    low, high = bootstrap(values, seed=1)
    assert (low, high) == bootstrap(values, seed=1) != bootstrap(values, seed=2)
    half = 1.96 * np.std(values, ddof=1) / 200**0.5
    assert high - low == pytest.approx(2 * half, rel=0.05)
    assert bootstrap([0.25, 0.25, 0.25]) == (0.25, 0.25)
