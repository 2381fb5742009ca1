"""pass@k: how likely at least one of k samples passes. (no torch)"""

from __future__ import annotations

import math


def pass_at_k(*, samples: int, passed: int, k: int) -> float:
    """Estimate pass@k of one task without bias, from `samples` samples of which `passed` passed.

    The estimate is 1 - C(samples - passed, k) / C(samples, k), equation 1 of Chen et al. 2021, "Evaluating Large
    Language Models Trained on Code" (https://arxiv.org/abs/2107.03374). The product form avoids large binomials.

    Raises:
        ValueError: k samples cannot be chosen, or the counts contradict each other.
    """
    if not 0 <= passed <= samples:
        raise ValueError(f"passed must be between 0 and samples ({samples}), not {passed}")
    if not 1 <= k <= samples:
        raise ValueError(f"k must be between 1 and the number of samples ({samples}), not {k}")
    failed = samples - passed
    if failed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / number for number in range(failed + 1, samples + 1))
