"""Outcome of each row, up to the step whose weights are the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trainer.data.batches import Windows
from trainer.data.encoder import TokenSample
from trainer.data.tokenize import TokenRows
from trainer.evaluate.parts import Parts
from trainer.records import RowOutcome


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The three tokenized input files."""

    rows: TokenRows
    replay: TokenRows
    held_out: TokenRows
    parts: Parts
    """The held-out samples that are measured."""

    @property
    def training_samples(self) -> list[TokenSample]:
        """Return the fit's samples, before shuffling."""
        return self.rows.samples + self.replay.samples


def tokens_seen(windows: Windows, steps: int) -> Counter[int]:
    """Count the tokens per file in the first `steps` steps. Each epoch counts."""
    seen: Counter[int] = Counter()
    for step in range(steps):
        for index in windows[step].members:
            sample = windows.samples[index]
            seen.update(dict(sample.shares))
    return seen


def row_outcomes(inputs: Inputs, windows: Windows, *, result_step: int) -> list[RowOutcome]:
    """Return one outcome for each row of the three files, in order."""
    seen = tokens_seen(windows, result_step)
    measured: Counter[int] = Counter()
    for sample in inputs.parts.samples:
        measured.update(dict(sample.shares))
    return [
        *_trained(inputs.rows, seen, replay=False),
        *_trained(inputs.replay, seen, replay=True),
        *_held_out(inputs.held_out, measured),
    ]


def _trained(rows: TokenRows, seen: Counter[int], *, replay: bool) -> Iterator[RowOutcome]:
    samples = _sample_counts(rows.samples)
    for file_id in rows.file_ids:
        if file_id in rows.rejected:
            yield RowOutcome(file_id=file_id, outcome="rejected", reason=rows.rejected[file_id])
        elif seen[file_id]:
            yield RowOutcome(
                file_id=file_id,
                outcome="replayed" if replay else "trained",
                samples=samples[file_id],
                tokens=seen[file_id],
            )
        else:
            yield RowOutcome(file_id=file_id, outcome="unused", samples=samples[file_id])


def _held_out(rows: TokenRows, measured: Counter[int]) -> Iterator[RowOutcome]:
    samples = _sample_counts(rows.samples)
    for file_id in rows.file_ids:
        if file_id in rows.rejected:
            yield RowOutcome(file_id=file_id, outcome="rejected", reason=rows.rejected[file_id])
        else:
            yield RowOutcome(file_id=file_id, outcome="held_out", samples=samples[file_id], tokens=measured[file_id])


def _sample_counts(samples: Iterable[TokenSample]) -> Counter[int]:
    """Count the samples per file. A sample of several files counts for each."""
    return Counter(file_id for sample in samples for file_id, _ in sample.shares)
