"""Filters that judge a text on its own, without comparing it to others."""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.source_files import has_conflict, pointer
from trainer.recipe import Hygiene

CONTROL_TOKEN = re.compile(r"<\|[A-Za-z0-9_ ]{1,40}\|>")
MAX_CONTROL_TOKEN_SHARE = 0.05
"""Maximum share of characters in strings that look like control tokens. Above it, the text is an attack, not code."""

GENERATED_LINES = 10
"""Generated files say so at the top."""
GENERATED = re.compile(
    r"@generated\b|\b(?:auto|automatically|machine)[ -]?generated\b|\bgenerated (?:automatically|file|from ['\"])"
    r"|^\W*generated (?:by|from|with)\b|\b(?:file|module|code) (?:is|was|has been) generated\b"
    r"|\bdo not (?:edit|modify|make changes to) this\b|\bgenerated\b.{0,80}\bdo not (?:edit|modify)\b",
    re.IGNORECASE | re.MULTILINE,
)
ENCODED = re.compile(
    r"[A-Za-z0-9+/]{64,}={0,2}"  # base64
    r"|(?:(?:0x|\\x)?[0-9A-Fa-f]{2}[\s,]*){32,}"  # hex bytes, with or without prefix
    r"|(?:\\u[0-9A-Fa-f]{4}){16,}"
)
"""Binary data encoded as text."""


def refusal(text: str, hygiene: Hygiene, *, min_lines: int) -> str | None:
    """Return why a text is refused, or None. A few control tokens are fine: they are encoded as plain text."""
    if "\0" in text:
        return "binary"
    if not text.strip():
        return "empty"
    if pointer(text) is not None:
        return "lfs_pointer"
    if has_conflict(text):
        return "merge_conflict"
    lines = [line for line in text.splitlines() if line.strip()]
    if len([line for line in text.split("\n") if line.strip()]) < min_lines:
        return "too_few_lines"
    if _has_control_tokens(text):
        return "control_tokens"
    if max(map(len, lines)) > hygiene.longest_line_chars:
        return "long_line"
    if sum(map(len, lines)) > hygiene.mean_line_chars * len(lines):
        return "long_lines"
    if sum(map(str.isalnum, text)) < hygiene.least_alphanumeric_share * sum(map(len, lines)):
        return "few_letters"
    if hygiene.generated == "refuse" and GENERATED.search("\n".join(lines[:GENERATED_LINES])):
        return "generated"
    if _is_encoded(text, hygiene):
        return "encoded"
    return None


def refused_talk(turns: Iterable[str], hygiene: Hygiene) -> str | None:
    """Return why the turns of a conversation are refused, or None. They may be prose, so lines may have any shape.

    Shares are those of the whole conversation: a short question may name a control token, a tool may return a digest.
    """
    text = "\n".join(turns)
    if "\0" in text:
        return "binary"
    if _has_control_tokens(text):
        return "control_tokens"
    return "encoded" if _is_encoded(text, hygiene) else None


def _has_control_tokens(text: str) -> bool:
    return sum(len(match.group()) for match in CONTROL_TOKEN.finditer(text)) > MAX_CONTROL_TOKEN_SHARE * len(text)


def _is_encoded(text: str, hygiene: Hygiene) -> bool:
    runs = [len(match.group()) for match in ENCODED.finditer(text)]
    return sum(runs) > hygiene.largest_encoded_share * len(text) or max(runs, default=0) > hygiene.longest_encoded_chars
