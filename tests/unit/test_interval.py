"""The gate's interval: by file, wider with fewer files, and right as often as it claims."""

from __future__ import annotations

import random

import numpy as np
import pytest
from gate_evidence import evidence

from service.gate.interval import Interval, loss_interval, ratio_interval
from service.gate.judge import judge
from trainer.records import SampleEvaluation


def sample(*file_ids: int, by: float, tokens: int = 100, fresh: bool = True, current: float = 2.0) -> SampleEvaluation:
    """Return a sample on which the candidate's loss differs from the current one by `by` nats per token."""
    return SampleEvaluation(
        file_ids=file_ids, fresh=fresh, repository=None, path=None, language="python", kind="instruction",
        tokens=tokens, loss={"anchor": 3.0 * tokens, "current": current * tokens, "candidate": (current + by) * tokens},
        correct={},
    )  # fmt: skip


def interval(*samples: SampleEvaluation) -> Interval:
    found = loss_interval(samples)
    assert found is not None
    return found


def test_the_difference_is_the_mean_over_tokens():
    found = interval(sample(1, by=-0.3, tokens=100), sample(2, by=0.1, tokens=300))
    assert found.difference == pytest.approx(0.0) and found.files == 2
    assert found.low < 0 < found.high


def test_two_equal_files_by_hand():
    """Differences −0.1 and −0.3 at equal lengths: mean −0.2, standard error 0.1, Student's t with one degree 12.706."""
    found = interval(sample(1, by=-0.1), sample(2, by=-0.3))
    assert (found.difference, found.low, found.high) == pytest.approx((-0.2, -0.2 - 1.2706, -0.2 + 1.2706), abs=1e-4)


def test_samples_of_one_file_are_one_cluster():
    pieces = [sample(n % 3, by=[-0.3, -0.1, 0.2][n % 3]) for n in range(30)]
    alone = interval(*pieces[:3])
    assert interval(*pieces).files == 3
    assert (interval(*pieces).low, interval(*pieces).high) == pytest.approx((alone.low, alone.high))


def test_samples_that_share_a_file_are_one_cluster():
    assert interval(sample(1, 2, by=0.1), sample(2, by=0.2), sample(3, by=0.3)).files == 2


def test_one_file_has_no_interval():
    assert loss_interval([sample(1, by=-0.5), sample(1, by=-0.4)]) is None
    assert loss_interval([]) is None


def test_it_can_be_against_the_base():
    found = loss_interval([sample(1, by=0.0), sample(2, by=0.1)], against="anchor")
    assert found is not None and found.difference == pytest.approx(-0.95)


def test_95_of_100_intervals_hold_the_truth():
    rng, held = np.random.default_rng(1), 0
    for _ in range(2000):
        nats = rng.normal(-0.1, 0.1, 40) * 100
        found = ratio_interval(nats, np.full(40, 100.0))
        held += found.low <= -0.1 <= found.high
    assert 0.935 < held / 2000 < 0.965


def test_the_verdict_names_new_and_earlier_files():
    rng = random.Random(1)
    samples = [sample(n, by=rng.gauss(-0.4, 0.05)) for n in range(8)]
    samples += [sample(n, by=rng.gauss(0.07, 0.02), fresh=False) for n in range(100, 108)]
    found = judge(evidence(samples)).intervals
    assert found["new"].high < 0 < found["earlier"].low
    assert found["new"].text().startswith("better by 0.4") and found["new"].text().endswith(", 8 files")
    assert found["earlier"].text().startswith("worse by 0.0") and "95 % interval 0.0" in found["earlier"].text()


def test_a_higher_level_gives_a_wider_interval_and_says_so():
    samples = [sample(n, by=0.1 * (n % 3)) for n in range(9)]
    usual, wide = loss_interval(samples), loss_interval(samples, level=1 - 0.05 / 6)
    assert usual is not None and wide is not None
    assert wide.low < usual.low < usual.high < wide.high
    assert "99.1667 % interval" in wide.text()
