"""Fill-in-the-middle on held-out files: the gaps that the builder `fim` makes, and how near an answer is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.data.encoder import IGNORED, SampleEncoder, TokenSample
from trainer.data.tokenize import tokenize_rows
from trainer.errors import UnusableInput
from trainer.evaluate.engines import Request
from trainer.evaluate.prompts import Question
from trainer.evaluate.results import Judgement, Results
from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.build import BUILDERS

DIFFERENT = "another text"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A gap in a held-out file."""

    task_id: str
    """File id and start of the text's hash, so that a changed file is another task."""
    repository: str
    language: str
    kind: str
    """How the gap was drawn: fim_node, fim_siblings or fim_random."""
    question: Question
    expected: str


def make_gaps(rows: Sequence[Row], tokenizer: Any, data: Data, *, seed: int, max_tokens: int) -> tuple[list[Gap], int]:
    """Make the gaps of some rows. Returns them, and the number of those that are longer than an answer.

    Raises:
        UnusableInput: the tokenizer lacks the control tokens, or no row gives a gap.
    """
    encoder = SampleEncoder(tokenizer)
    encoder.check({"fim": BUILDERS["fim"].needs})
    plain = replace(data, builders={"fim": 1.0}, rename_fraction=0.0)
    samples = tokenize_rows(rows, encoder, plain, seed=seed).samples
    by_id = {row.file_id: row for row in rows}
    short = [sample for sample in samples if sample.supervised <= max_tokens]
    if not short:
        raise UnusableInput(
            f"no held-out row gives a gap of at most {max_tokens} tokens ({len(rows)} rows, {len(samples)} gaps). "
            "Raise --max-tokens, or wait for more held-out files"
        )
    seen: dict[int, int] = {}
    gaps = []
    for sample in short:
        seen[sample.file_id] = seen.get(sample.file_id, 0) + 1
        gaps.append(_gap(sample, by_id[sample.file_id], seen[sample.file_id], encoder))
    return gaps, len(samples) - len(short)


def _gap(sample: TokenSample, row: Row, number: int, encoder: SampleEncoder) -> Gap:
    start = int((sample.labels != IGNORED).nonzero()[0])
    ends = encoder.roles["fim_end"]
    middle = sample.ids[start : len(sample.ids) - len(ends)].tolist()
    return Gap(
        task_id=f"{row.file_id}:{row.sha256[:8]}" + (f".{number}" if number > 1 else ""),
        repository=row.repository or "",
        language=row.language,
        kind=sample.kind,
        question=Question(ids=tuple(sample.ids[:start].tolist()), ends=tuple(ends)),
        expected=encoder.tokenizer.decode(middle, clean_up_tokenization_spaces=False),
    )


def judge_gaps(gaps: Mapping[str, Gap], requests: Iterable[Request], results: Results) -> None:
    """Compare the answers to `requests` that have no verdict yet."""
    answers, judged = results.read_generations(), results.read_outcomes()
    keys = [(request.task_id, request.sample) for request in requests]
    new = []
    for key in keys:
        if key in answers and key not in judged:
            expected, text = gaps[key[0]].expected.strip(), answers[key].text.strip()
            new.append(
                Judgement(
                    task_id=key[0],
                    sample=key[1],
                    passed=text == expected,
                    reason="" if text == expected else DIFFERENT,
                    similarity=round(edit_similarity(text, expected), 6),
                )
            )
    results.append(results.outcomes, new)


def edit_similarity(left: str, right: str) -> float:
    """1 minus Levenshtein's distance over the length of the longer text. 1 for two empty texts."""
    longest = max(len(left), len(right))
    return 1.0 - _distance(left, right) / longest if longest else 1.0


def _distance(left: str, right: str) -> int:
    """Levenshtein's distance, row by row.

    In a row, an insertion carries a cost to the right. `minimum.accumulate` of cost - place does that at once.
    """
    codes = np.array([ord(character) for character in right], dtype=np.int64)
    places = np.arange(len(right) + 1)
    row = places
    for number, character in enumerate(left, 1):
        replaced = row[:-1] + (codes != ord(character))
        cost = np.concatenate(([number], np.minimum(replaced, row[1:] + 1)))
        row = np.minimum.accumulate(cost - places) + places
    return int(row[-1])
