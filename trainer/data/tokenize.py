"""Turns rows into token samples. Splits long rows at line boundaries and never truncates them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from trainer.conversations import turns_of
from trainer.data.encoder import Encoded, SampleEncoder, TokenSample
from trainer.data.windows import fitted_samples
from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.build import BUILDERS, CHAT, REPO, Builder, builder_of, ready
from trainer.samples.plain import PLAIN
from trainer.samples.sample import Chat, Rejected, Sample
from trainer.samples.syntax import look_ahead

EARLIER = 0
"""Stands for an earlier run whose number is unknown. Run directories of older versions do not tell it."""
CHUNK_ROWS = 64
"""Number of rows that are encoded in one call, on all cores."""


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """The samples of one input file, and the reasons for rows without samples."""

    samples: list[TokenSample] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)
    """file_id → reason"""
    file_ids: list[int] = field(default_factory=list)
    """File ids of all rows, in input order."""
    runs: dict[int, int | None] = field(default_factory=dict)
    """file_id → the earlier run that claimed the row, or None for a row of this run"""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A row and its samples."""

    row: Row
    builder: Builder
    samples: Sequence[Sample]


def tokenize_rows(
    rows: Iterable[Row],
    encoder: SampleEncoder,
    data: Data,
    *,
    seed: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> TokenRows:
    """Make the samples of all rows, in row order. Each row gets samples, or a reason why it has none.

    The samples of the builder `repo` come last, because they need all rows of a repository.

    Args:
        on_rows: is told how many rows are done, chunk by chunk
    """
    result = TokenRows()
    repositories: dict[str, list[Row]] = {}
    rows = iter(rows)
    coming = _next_chunk(rows)
    while chunk := coming:
        built: list[Built] = []
        for row in chunk:
            result.file_ids.append(row.file_id)
            result.runs[row.file_id] = None if row.fresh else row.run_id or EARLIER
            try:
                made = _build(row, encoder, data, seed=seed)
            except Rejected as rejected:
                result.rejected[row.file_id] = rejected.reason
                continue
            if made.builder.build_group is not None:
                repositories.setdefault(row.repository or "", []).append(made.row)
            else:
                built.append(made)
        coming = _next_chunk(rows)
        encoded = iter(encoder.encode_parts([sample for made in built for sample in made.samples]))
        for made in built:
            try:
                mine = [next(encoded) for _ in made.samples]
                result.samples.extend(_fitting(made, mine, encoder, data, seed=seed))
            except Rejected as rejected:
                result.rejected[made.row.file_id] = rejected.reason
        on_rows(len(result.file_ids))
    result.samples.extend(_repository_samples(repositories.values(), encoder, data))
    return result


def _next_chunk(rows: Iterator[Row]) -> list[Row]:
    """Read the next rows. Their texts are tried while the rows before are encoded."""
    chunk = list(itertools.islice(rows, CHUNK_ROWS))
    look_ahead(
        (row.language, row.content, row.path) for row in chunk if turns_of(row.content, row.metadata) is None
    )  # conversations are not parsed
    return chunk


def _build(row: Row, encoder: SampleEncoder, data: Data, *, seed: int) -> Built:
    """Build the row's samples.

    Raises:
        Rejected: the builder's reasons, or `chat_template` (the base's template cannot show a conversation's turns).
    """
    row = ready(row, data, seed=seed)
    builder = builder_of(row, data, seed=seed)
    samples = builder.build(row, data, seed=seed)
    if builder is BUILDERS[CHAT] and not all(encoder.shows(chat) for chat in samples if isinstance(chat, Chat)):
        raise Rejected("chat_template")
    return Built(row=row, builder=builder, samples=samples)


def _fitting(
    made: Built, encoded: Sequence[Encoded], encoder: SampleEncoder, data: Data, *, seed: int
) -> list[TokenSample]:
    """Fit the row's samples into the length limit. If one does not fit, halve the row recursively.

    Raises:
        Rejected: `too_long` (the builder does not support halves), `too_long_line` or `too_long_turns` (a part is still
            too long, but cannot be cut), `prompt_too_long` (a conversation's question leaves no room for the answer).
            A rejected row gives no sample at all, not even for a part.
    """
    fitted = [fitted_samples(sample, data) for sample in encoded]
    if None not in fitted:
        return [sample for samples in fitted for sample in samples or ()]
    if made.builder.halves is None:
        raise Rejected("too_long")
    parts = made.builder.halves(made.row)
    if parts is None:
        raise Rejected("prompt_too_long" if _leaves_no_room(encoded, data) else made.builder.whole)
    samples: list[TokenSample] = []
    for part in parts:
        try:
            built = made.builder.build(part, data, seed=seed)
        except Rejected as rejected:
            raise Rejected(made.builder.whole) from rejected
        half = Built(row=part, builder=made.builder, samples=built)
        samples += _fitting(half, encoder.encode_parts(built), encoder, data, seed=seed)
    return samples


def _leaves_no_room(encoded: Sequence[Encoded], data: Data) -> bool:
    """Whether what comes before the first supervised text alone fills a sample of a conversation."""
    for sample in encoded:
        before = itertools.takewhile(lambda part: not (part.supervised and part.ids), sample.parts)
        if sample.kind in (CHAT, PLAIN) and sum(len(part.ids) for part in before) >= data.max_length:
            return True
    return False


def _repository_samples(
    repositories: Iterable[Sequence[Row]], encoder: SampleEncoder, data: Data
) -> Iterable[TokenSample]:
    """Make one document of each repository, cut into windows."""
    build_group = BUILDERS[REPO].build_group
    assert build_group is not None
    for rows in repositories:
        (encoded,) = encoder.encode_parts([build_group(rows)])
        yield from fitted_samples(encoded, data) or ()
