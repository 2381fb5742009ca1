"""Reasons for which a row is rejected because of a setting. Such a rejection is void when the setting changes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

from trainer.recipe import Recipe

NEARLY_ALL = 0.9
"""Share of a claim's rows from which a single reason means that the setting is wrong, not the rows."""
LEAST_ROWS = 5
"""A smaller claim says nothing about its settings."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """What a rejection depends on."""

    settings: tuple[str, ...]
    """Values of the recipe."""
    variable: str | None = None
    """The variable that sets the first of them."""
    is_ordinary: bool = False
    """Whether nearly all rows of a claim may well be rejected for it, such as files that come again."""


_LENGTH = ("data.max_length", "data.window_tokens", "data.builders")
_LINES = ("data.min_context_lines", "data.context_fraction_low", "data.context_fraction_high", "data.builders")

REASONS: Mapping[str, Reason] = {
    "license": Reason(settings=("hygiene.licenses",), variable="ALLOWED_LICENSES"),
    "no_license": Reason(settings=("hygiene.licenses", "hygiene.unknown_license"), variable="ALLOWED_LICENSES"),
    "too_few_lines": Reason(settings=_LINES),
    "long_line": Reason(settings=("hygiene.longest_line_chars",)),
    "long_lines": Reason(settings=("hygiene.mean_line_chars",)),
    "few_letters": Reason(settings=("hygiene.least_alphanumeric_share",)),
    "encoded": Reason(settings=("hygiene.largest_encoded_share", "hygiene.longest_encoded_chars")),
    "generated": Reason(settings=("hygiene.generated",), is_ordinary=True),
    "vendored": Reason(settings=("hygiene.vendored",), is_ordinary=True),
    "benchmark": Reason(settings=("hygiene.benchmarks", "hygiene.benchmark_gram_words"), is_ordinary=True),
    "duplicate": Reason(settings=("hygiene.duplicates",), is_ordinary=True),
    "near_duplicate": Reason(settings=("hygiene.duplicates", "hygiene.near_duplicate_jaccard"), is_ordinary=True),
    "too_long": Reason(settings=_LENGTH, variable="MAX_LENGTH"),
    "too_long_line": Reason(settings=_LENGTH, variable="MAX_LENGTH"),
    "prompt_too_long": Reason(settings=_LENGTH, variable="MAX_LENGTH"),
    "too_long_turns": Reason(settings=_LENGTH, variable="MAX_LENGTH"),
    "no_conversation": Reason(settings=("data.builders",)),
    "too_short": Reason(settings=("data.builders",)),
    "no_repository": Reason(settings=("data.builders",)),
    "no_commit": Reason(settings=("data.builders",)),
    "unchanged": Reason(settings=("data.builders",)),
    "parse_failure": Reason(settings=("data.largest_unparsed_share", "data.builders")),
}
"""Every reason of the claim (service/admission) and of the trainer (trainer/samples) that depends on a setting."""


def digests(recipe: Recipe) -> dict[str, str]:
    """Return by reason a digest of the settings that it depends on."""
    return {name: _digest(recipe, reason.settings) for name, reason in REASONS.items()}


def wrong_setting(rejected: Counter[str], rows: int, recipe: Recipe, *, is_full: bool = False) -> str | None:
    """Return what to tell a person if nearly all rows are rejected because of one setting, or None.

    Args:
        rejected: rows by reason
        rows: all rows. Those with an ordinary reason, or one that depends on no setting, do not count
        is_full: whether there may be more rows than a run can have, so that other files wait behind these
    """
    due = {name: count for name, count in rejected.items() if name in REASONS and not REASONS[name].is_ordinary}
    rows -= rejected.total() - sum(due.values())
    by_setting: Counter[str] = Counter()
    for name, count in due.items():
        by_setting[REASONS[name].settings[0]] += count
    first, count = max(by_setting.items(), key=itemgetter(1), default=("", 0))
    if rows < LEAST_ROWS or count < NEARLY_ALL * rows:
        return None
    named = sorted(name for name in due if REASONS[name].settings[0] == first)
    settings = dict.fromkeys(setting for name in named for setting in REASONS[name].settings)
    values = ", ".join(f"{setting} = {json.dumps(_value(recipe, setting))}" for setting in settings)
    variable = next((f" ({REASONS[name].variable})" for name in named if REASONS[name].variable), "")
    behind = ", and all other files wait behind them" if is_full else ""
    others = "" if is_full else ", or add other files"
    return (
        f"{count} of {rows} rows would be rejected as {' or '.join(named)}, which depends on {values}{variable}. "
        f"They wait again{behind}. Correct the setting, or the rows, and restart the service{others}. "
        "If the rows should be rejected, ask for a run while `codelupe up` pauses (not with --once): "
        "`codelupe drop --train-now` or POST /api/train"
    )


def _digest(recipe: Recipe, settings: tuple[str, ...]) -> str:
    values = {setting: _value(recipe, setting) for setting in settings}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _value(recipe: Recipe, setting: str) -> Any:
    value = attrgetter(setting)(recipe)
    return dict(value) if isinstance(value, Mapping) else value
