"""Makes the evidence of a run for tests of the gate: a good candidate by default, and one change at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from service.gate.evidence import Evidence
from trainer.recipe import Gate
from trainer.records import SampleEvaluation

GOOD_EXAMINATION: dict[str, Any] = {
    "weights": {"tensors": 28, "changed": 28, "not_finite": []},
    "measured_again": {"samples": 8, "largest_difference": 0.001},
    "norm": {"largest": 0.02, "module": "layers.3.mlp.down_proj"},
    "generation": {
        "prompts": 8,
        "candidate": {"tokens": 512, "leaking": 0, "looping": 2},
        "anchor": {"tokens": 512, "leaking": 0, "looping": 2},
    },
}


def report(candidate=0.9, current=1.0, anchor=1.2, trained=10, samples=8, run_id=7, disjoint=True) -> dict[str, Any]:
    losses = {"anchor": anchor, "current": current, "candidate": candidate}
    return {
        "run_id": run_id,
        "rows": {"trained": trained},
        "held_out": {"samples": samples, "disjoint": disjoint},
        "evaluation": {name: {"loss": loss} for name, loss in losses.items()},
    }


def files(
    count: int,
    difference: float,
    *,
    spread: float = 0.02,
    run_id: int | None = None,
    language: str = "python",
    anchor: float = 0.2,
    start: int = 1,
) -> list[SampleEvaluation]:
    """Return judged files of 100 tokens. The candidate's loss differs by `difference` on the average of the files.

    Args:
        spread: standard deviation between files
        anchor: how much worse the base alone is than the current adapter, in nats per token
    """
    noise = [random.Random(number).gauss(0, spread) for number in range(count)]
    mean = sum(noise) / max(1, count)
    return [
        SampleEvaluation(
            file_ids=(start + number,),
            fresh=run_id is None,
            run_id=run_id,
            repository="r",
            path=f"{start + number}.py",
            language=language,
            kind="instruction",
            tokens=100,
            loss={
                "anchor": 100 * (1 + anchor),
                "current": 100.0,
                "candidate": 100 * (1 + difference + noise[number] - mean),
            },
            correct={"anchor": 50, "current": 50, "candidate": 50},
        )
        for number in range(count)
    ]


def evidence(
    samples: Sequence[SampleEvaluation] | None = None, *, gate: Gate | None = None, **changes: Any
) -> Evidence:
    """Return the evidence for a good candidate: better on 8 new files, equal on 20 earlier ones."""
    if samples is None:
        samples = [*files(8, -0.1), *files(20, 0.0, run_id=3, start=100)]
    values: dict[str, Any] = {"run_id": 7, "report": report(), "examination": GOOD_EXAMINATION}
    return Evidence(gate=gate or Gate(), samples=samples, **(values | changes))
