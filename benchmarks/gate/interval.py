"""How often the gate's interval holds the true difference, against a BCa bootstrap: python benchmarks/gate/interval.py

Files have log-normal lengths. Their differences to the current adapter are normal or skewed. 1,000 trials each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from service.gate.interval import LEVEL, ratio_interval

TRIALS = 1000
DIFFERENCE = -0.1


def main() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)
    draws = {
        "normal": lambda n: rng.normal(DIFFERENCE, 0.1, n),
        "skewed": lambda n: 0.1 - rng.lognormal(np.log(0.2) - 0.5 * 0.7**2, 0.7, n),
    }
    print("| differences | files | clustered, Student's t | BCa bootstrap |\n|---|---|---|---|")
    for name, draw in draws.items():
        for files in (2, 4, 8, 16, 64):
            held = np.zeros(2)
            for _ in range(TRIALS):
                tokens = np.minimum(2000, np.exp(rng.normal(5.5, 0.9, files))).round() + 10
                nats = draw(files) * tokens
                found = ratio_interval(nats, tokens)
                other = bootstrap(
                    (nats, tokens), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True,
                    n_resamples=999, confidence_level=LEVEL, method="BCa", rng=rng,
                ).confidence_interval  # fmt: skip
                held += [found.low <= DIFFERENCE <= found.high, other.low <= DIFFERENCE <= other.high]
            print(f"| {name} | {files} | {held[0] / TRIALS:.1%} | {held[1] / TRIALS:.1%} |", flush=True)


if __name__ == "__main__":
    main()
