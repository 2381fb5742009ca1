"""How many runs of pure noise the gate promotes: python benchmarks/gate/noise.py

The candidate is as good as the current adapter. Each file's difference is random with mean 0. 1,000 runs each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from service.gate.judge import judge
from trainer.recipe import Gate
from trainer.records import SampleEvaluation

RUNS = 1000


def main() -> None:
    rng = np.random.default_rng(0)
    print("| judging files | promoted by today's rules | interval below zero |\n|---|---|---|")
    for files in (4, 8, 16, 64):
        promoted, certain = 0, 0
        for _ in range(RUNS):
            samples = [sample_of_noise(rng, number) for number in range(files)]
            verdict = judge(report_of(samples), Gate(), run_id=1, samples=samples)
            promoted += verdict.promote
            certain += verdict.intervals["new"].high < 0
        print(f"| {files} | {promoted / RUNS:.1%} | {certain / RUNS:.1%} |", flush=True)


def sample_of_noise(rng: np.random.Generator, number: int) -> SampleEvaluation:
    tokens = int(min(2000, np.exp(rng.normal(5.5, 0.9)))) + 10
    loss = {"anchor": 2.0 * tokens, "current": 2.0 * tokens, "candidate": (2.0 + rng.normal(0, 0.1)) * tokens}
    return SampleEvaluation(
        file_ids=(number,), fresh=True, repository=None, path=None, language="python", kind="chunks", tokens=tokens,
        loss=loss, correct={},
    )  # fmt: skip


def report_of(samples: list[SampleEvaluation]) -> dict[str, object]:
    tokens = sum(sample.tokens for sample in samples)
    losses = {
        name: {"loss": sum(s.loss[name] for s in samples) / tokens} for name in ("anchor", "current", "candidate")
    }
    return {"run_id": 1, "rows": {"trained": 1}, "held_out": {"samples": len(samples)}, "evaluation": losses}


if __name__ == "__main__":
    main()
