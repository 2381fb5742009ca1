"""pass@k: the estimate is the mean over all choices of k samples."""

from __future__ import annotations

from itertools import combinations

import pytest

from trainer.evaluate.passk import pass_at_k


def counted(samples: int, passed: int, k: int) -> float:
    """The share of choices of k samples with at least one that passed."""
    choices = list(combinations([True] * passed + [False] * (samples - passed), k))
    return sum(any(choice) for choice in choices) / len(choices)


@pytest.mark.parametrize("samples", range(1, 9))
def test_it_equals_the_count_over_all_choices(samples: int) -> None:
    for passed in range(samples + 1):
        for k in range(1, samples + 1):
            estimate = pass_at_k(samples=samples, passed=passed, k=k)
            assert estimate == pytest.approx(counted(samples, passed, k), abs=1e-12)


def test_pass_at_1_is_the_share_that_passed() -> None:
    assert pass_at_k(samples=200, passed=50, k=1) == pytest.approx(0.25)


def test_many_samples_do_not_overflow() -> None:
    assert pass_at_k(samples=1_000_000, passed=1, k=100) == pytest.approx(1e-4)
    assert pass_at_k(samples=10_000, passed=10_000, k=10_000) == 1.0


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6), (0, 0, 1)])
def test_counts_that_contradict_each_other_are_refused(samples: int, passed: int, k: int) -> None:
    with pytest.raises(ValueError, match="must be between"):
        pass_at_k(samples=samples, passed=passed, k=k)
