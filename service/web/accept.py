"""Which form of an answer a client wants, by its Accept header."""

from __future__ import annotations

from collections.abc import Sequence

from werkzeug.http import parse_list_header, parse_options_header


def preferred(header: str, offers: Sequence[str]) -> str:
    """Return the offered media type that the header weighs most. The first offer if it accepts none.

    The most specific range that covers an offer gives its weight. Equal weights: the order of the header decides, then
    the order of the offers. Parameters such as `version` are ignored.
    """
    ranges = _ranges(header)
    best, best_weight = offers[0], (0.0, 0)
    for offer in offers:
        weight = _weight(offer, ranges)
        if weight[0] > 0 and weight > best_weight:
            best, best_weight = offer, weight
    return best


def _ranges(header: str) -> list[tuple[str, float]]:
    """The media ranges of the header with their weights, in order. A range with an invalid weight is left out."""
    found = []
    for part in parse_list_header(header):
        name, options = parse_options_header(part)
        try:
            found.append((name.lower(), float(options.get("q", 1))))
        except ValueError:
            continue
    return found


def _weight(offer: str, ranges: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """The weight of an offer, and how early the header names it (greater is earlier)."""
    for name in (offer, offer.partition("/")[0] + "/*", "*/*"):
        found = [(quality, -place) for place, (given, quality) in enumerate(ranges) if given == name]
        if found:
            quality, place = max(found)
            return quality, place + len(ranges)
    return 0.0, 0
