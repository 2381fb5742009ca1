"""What may be trained on: reasons to refuse a claimed row before it reaches a run."""

from __future__ import annotations

import re

CONTROL_TOKEN = re.compile(r"<\|[A-Za-z0-9_ ]{1,40}\|>")
MAX_CONTROL_TOKEN_SHARE = 0.05
"""Share of a text's characters that may look like a model's control tokens; more is not code but a probe."""


def refusal(text: str, *, min_lines: int) -> str | None:
    """Why a row is refused, or None. Control tokens in ordinary number are fine: they are encoded as plain text."""
    if "\0" in text:
        return "binary"
    if not text.strip():
        return "empty"
    if len([line for line in text.split("\n") if line.strip()]) < min_lines:
        return "too_few_lines"
    if sum(len(match.group()) for match in CONTROL_TOKEN.finditer(text)) > MAX_CONTROL_TOKEN_SHARE * len(text):
        return "control_tokens"
    return None
