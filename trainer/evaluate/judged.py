"""Measures the final weights, the parent and the base on the judging part, once for each run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from trainer.data.encoder import TokenSample
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.score import SampleScore, Score, total
from trainer.model.lora import adapter_weights
from trainer.model.shards import set_adapter_weights
from trainer.records import Row, SampleEvaluation

MODELS = ("anchor", "current", "candidate")
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What each model gives for each judging sample."""

    samples: Sequence[TokenSample]
    by_model: Mapping[str, Sequence[SampleScore]]
    """By anchor, current and candidate, in the order of `samples`."""

    def score(self, model: str) -> Score:
        """Return a model's score over all samples."""
        return total(self.by_model[model])

    def not_finite(self) -> str | None:
        """Return the name of a model whose loss is not finite, or None."""
        return next((name for name in MODELS if not math.isfinite(self.score(name).loss)), None)

    def as_records(self, rows: Mapping[int, Row]) -> Iterator[SampleEvaluation]:
        """Yield the lines of evaluation.jsonl. `rows` are the held-out rows by file id."""
        for number, sample in enumerate(self.samples):
            row = rows[sample.file_id]
            scores = {name: self.by_model[name][number] for name in MODELS}
            yield SampleEvaluation(
                file_ids=tuple(file_id for file_id, _ in sample.shares),
                fresh=row.fresh,
                run_id=row.run_id,
                repository=row.repository,
                path=row.path,
                language=row.language,
                kind=sample.kind,
                tokens=sample.supervised,
                loss={name: score.loss_sum for name, score in scores.items()},
                correct={name: score.correct for name, score in scores.items()},
            )


def judge_samples(
    held_out: HeldOut, adapted: Any, *, current: Path | None, start: Path | None, trained: bool
) -> Judged:
    """Measure all three models. The adapter has its final weights, before and after.

    Args:
        adapted: the PEFT model inside `held_out.model`
        current: folder of the published adapter. None: there is none, so the base alone is current
        start: folder of the adapter that the fit began from. None: a new adapter, which changes nothing
        trained: whether the fit took a step
    """
    candidate = held_out.by_sample()
    anchor = held_out.base_by_sample()
    if current == start and not trained:
        measured = candidate
    elif current is None:
        measured = anchor
    else:
        with _weights_of(adapted, current):
            measured = held_out.by_sample()
    return Judged(samples=held_out.samples, by_model={"anchor": anchor, "current": measured, "candidate": candidate})


@contextmanager
def _weights_of(adapted: Any, folder: Path) -> Iterator[None]:
    """Give the adapter the weights of a folder for the block. Its own wait in host memory."""
    own = adapter_weights(adapted)
    set_adapter_weights(adapted, load_file(folder / WEIGHTS))
    try:
        yield
    finally:
        set_adapter_weights(adapted, own)
