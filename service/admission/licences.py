"""Licences by allow-list. Without a list every licence will do.

A row's licence is read as an SPDX expression, in any case: of `A OR B` (Cargo's `A/B` too) one has to be allowed, of
`A AND B` both; an exception (`A WITH e`) asks for A. Not covered: prose (`GNU General Public License v3`), which is
no identifier that a list has.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from trainer.recipe import Hygiene

UNKNOWN = frozenset({"", "unknown", "none", "noassertion", "other", "null", "n/a"})
"""What is written where nothing is known."""

_TOKEN = re.compile(r"\(|\)|[^\s()]+")


def refused_licence(licence: str | None, hygiene: Hygiene) -> str | None:
    """Why a row's licence is not enough: `license`, or `no_license` where nothing is known; None when it is."""
    if not hygiene.licenses:
        return None
    stated = (licence or "").strip().casefold()
    if stated in UNKNOWN:
        return None if hygiene.unknown_license == "allow" else "no_license"
    allowed = {name.casefold() for name in hygiene.licenses}
    return None if stated in allowed or _holds(stated, allowed) else "license"


def _holds(expression: str, allowed: Collection[str]) -> bool:
    """Whether an expression can be met with the allowed licences alone; one that cannot be read is not."""
    tokens = _TOKEN.findall(expression.replace("/", " or "))[::-1]
    try:
        return _either(tokens, allowed) and not tokens
    except (IndexError, RecursionError):
        return False


def _either(tokens: list[str], allowed: Collection[str]) -> bool:
    met = _both(tokens, allowed)
    while tokens and tokens[-1] == "or":
        tokens.pop()
        met = _both(tokens, allowed) or met
    return met


def _both(tokens: list[str], allowed: Collection[str]) -> bool:
    met = _one(tokens, allowed)
    while tokens and tokens[-1] == "and":
        tokens.pop()
        met = _one(tokens, allowed) and met
    return met


def _one(tokens: list[str], allowed: Collection[str]) -> bool:
    name = tokens.pop()
    if name == "(":
        met = _either(tokens, allowed)
        return tokens.pop() == ")" and met
    if tokens and tokens[-1] == "with":
        tokens.pop()
        tokens.pop()
    return name in allowed
