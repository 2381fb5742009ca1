"""Allow-list for licences. Without a list, every licence is allowed.

The licence is parsed as an SPDX expression, ignoring case. `A OR B` (and Cargo's `A/B`) needs one allowed licence,
`A AND B` needs both, and `A WITH exception` needs A. Not covered: licence names in prose, such as `GNU General Public
License v3`.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from trainer.recipe import Hygiene

UNKNOWN = frozenset({"", "unknown", "none", "noassertion", "other", "null", "n/a"})
"""Values that stand for an unknown licence."""

_TOKEN = re.compile(r"\(|\)|[^\s()]+")


def refused_licence(licence: str | None, hygiene: Hygiene) -> str | None:
    """Return `license` if the licence is not allowed, `no_license` if it is unknown, and None if it is allowed."""
    if not hygiene.licenses:
        return None
    stated = (licence or "").strip().casefold()
    if stated in UNKNOWN:
        return None if hygiene.unknown_license == "allow" else "no_license"
    allowed = {name.casefold() for name in hygiene.licenses}
    return None if stated in allowed or _holds(stated, allowed) else "license"


def _holds(expression: str, allowed: Collection[str]) -> bool:
    """Whether the allowed licences satisfy the expression. False for an expression that cannot be parsed."""
    tokens = _TOKEN.findall(expression.replace("/", " or "))[::-1]
    try:
        return _or_expression(tokens, allowed) and not tokens
    except (IndexError, RecursionError):
        return False


def _or_expression(tokens: list[str], allowed: Collection[str]) -> bool:
    met = _and_expression(tokens, allowed)
    while tokens and tokens[-1] == "or":
        tokens.pop()
        met = _and_expression(tokens, allowed) or met
    return met


def _and_expression(tokens: list[str], allowed: Collection[str]) -> bool:
    met = _name(tokens, allowed)
    while tokens and tokens[-1] == "and":
        tokens.pop()
        met = _name(tokens, allowed) and met
    return met


def _name(tokens: list[str], allowed: Collection[str]) -> bool:
    name = tokens.pop()
    if name == "(":
        met = _or_expression(tokens, allowed)
        return tokens.pop() == ")" and met
    if tokens and tokens[-1] == "with":
        tokens.pop()
        tokens.pop()
    return name in allowed
