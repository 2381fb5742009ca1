"""From rows to token samples. A row that is too long for one sample is split at line boundaries, never truncated."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trainer.data.encoder import Encoded, SampleEncoder, TokenSample
from trainer.data.windows import fitted_samples
from trainer.recipe import Data
from trainer.run_dir import Row
from trainer.samples.build import build_samples, builder_of, halves
from trainer.samples.sample import Rejected, Sample

CHUNK_ROWS = 64
"""Rows whose texts are encoded in one call, on all cores."""


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """The samples of one input file, and what became of the rows that gave none."""

    samples: list[TokenSample] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)
    """file_id → reason"""
    file_ids: list[int] = field(default_factory=list)
    """Every row's, in the order of the input."""
    fresh: set[int] = field(default_factory=set)


def tokenize_rows(rows: Iterable[Row], encoder: SampleEncoder, data: Data, *, seed: int) -> TokenRows:
    """Samples of all rows, in the order of the rows; a row has one sample or more, or a reason why it has none."""
    result = TokenRows()
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        built: list[tuple[Row, Sequence[Sample]]] = []
        for row in chunk:
            result.file_ids.append(row.file_id)
            if row.fresh:
                result.fresh.add(row.file_id)
            try:
                built.append((row, build_samples(row, data, seed=seed)))
            except Rejected as rejected:
                result.rejected[row.file_id] = rejected.reason
        encoded = iter(encoder.encode_parts([sample for _, samples in built for sample in samples]))
        for row, samples in built:
            try:
                mine = [next(encoded) for _ in samples]
                result.samples.extend(_fitting(row, mine, encoder, data, seed=seed))
            except Rejected as rejected:
                result.rejected[row.file_id] = rejected.reason
    return result


def _fitting(
    row: Row, encoded: Sequence[Encoded], encoder: SampleEncoder, data: Data, *, seed: int
) -> list[TokenSample]:
    """The row's samples if each can be made to fit, else those of its halves, and of theirs.

    Raises:
        Rejected: `too_long` (its builder makes nothing of halves), `too_long_line` (a part is still too long and has
            no line boundary to cut at, or too few lines to make a sample of). The row then gives no sample at all,
            rather than a part of itself.
    """
    fitted = [fitted_samples(sample, data) for sample in encoded]
    fitting = [sample for samples in fitted if samples is not None for sample in samples]
    if None not in fitted:
        return fitting
    if not builder_of(row, data, seed=seed).halves:
        raise Rejected("too_long")
    parts = halves(row)
    if parts is None:
        raise Rejected("too_long_line")
    samples: list[TokenSample] = []
    for part in parts:
        try:
            built = build_samples(part, data, seed=seed)
        except Rejected as rejected:
            raise Rejected("too_long_line") from rejected
        samples += _fitting(part, encoder.encode_parts(built), encoder, data, seed=seed)
    return samples
