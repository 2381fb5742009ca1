"""An answer to a held-out prompt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A held-out prompt and the candidate's answer, for people to read."""

    file_id: int
    prompt: str
    expected: str
    answer: str
