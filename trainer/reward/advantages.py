"""How much better an answer is than the other answers to the same task. (no torch)

    advantage = reward − mean of the group                                  (Liu et al. 2025, Dr. GRPO; the default)
    advantage = (reward − mean of the group) / deviation of the group       (Shao et al. 2024, section 4.1.2)

Dividing by the deviation gives tasks that are nearly always or nearly never solved more weight than others.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

SMALLEST = 1e-6
"""A smaller deviation is none."""


def advantages(rewards: Sequence[float], *, divide_by_deviation: bool = False) -> list[float]:
    """Return the advantages of one group. All are 0 if all rewards are equal."""
    mean = statistics.fmean(rewards)
    deviation = statistics.pstdev(rewards)
    if deviation < SMALLEST:
        return [0.0] * len(rewards)
    scale = deviation if divide_by_deviation else 1.0
    return [(reward - mean) / scale for reward in rewards]
