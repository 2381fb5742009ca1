"""The way of the rows, as six counts: arrived → admitted → sampled → trained → judged → live. Each has its reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.web.board import Snapshot

SAMPLE_REASONS = frozenset(
    {
        "empty", "too_few_lines", "too_long_line", "too_long_turns", "prompt_too_long", "no_answer", "chat_template",
        "no_conversation", "not_unicode", "parse_failure", "too_short", "too_long", "no_commit", "unchanged",
        "no_repository",
    }
)  # fmt: skip
"""Why the trainer made no sample from a row (docs/run-directory.md). All other rejections are the claim's."""
VERDICT_REASONS = frozenset({"no_gain"})
"""Why a row is rejected after its training."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A part of the rows that did not go on to the next stage."""

    reason: str
    rows: int
    disposition: str | None
    """Its rows are listed by /api/v1/rows. None: no run has claimed them, so they cannot be listed."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage, with the rows that reached it."""

    stage: str
    rows: int
    stayed: tuple[Share, ...]
    """The rows that reached this stage and not the next one, by reason."""


def pipeline(snapshot: Snapshot) -> list[Stage]:
    """Return the stages in order. Each stage's rows are those of the next one plus those that stayed.

    Rows in the ledger are counted at each verdict, and waiting rows at each poll.
    """
    totals, pending = snapshot.totals, snapshot.pending
    settled: Mapping[str, int] = totals.rows if totals else {}
    rejected: Mapping[str, int] = totals.rejected if totals else {}
    stages: list[Stage] = []
    reached = settled.get("trained", 0)

    def before(stage: str, stayed: Iterable[Share]) -> None:
        nonlocal reached
        kept = tuple(share for share in stayed if share.rows)
        reached += sum(share.rows for share in kept)
        stages.append(Stage(stage=stage, rows=reached, stayed=kept))

    before("live", ())
    before("judged", [Share(reason="open candidate", rows=settled.get("learning", 0), disposition="learning"),
                      *_rejected(rejected, VERDICT_REASONS)])  # fmt: skip
    before("trained", [Share(reason="quarantined", rows=settled.get("quarantined", 0), disposition="quarantined")])
    before("sampled", [Share(reason="in the run in progress", rows=snapshot.rows_in_run, disposition="claimed"),
                       Share(reason="held out", rows=settled.get("held_out", 0), disposition="held_out")])  # fmt: skip
    before("admitted", _rejected(rejected, SAMPLE_REASONS))
    waiting = [Share(reason="waiting", rows=pending.rows, disposition=None)] if pending else []
    ineligible = [
        Share(reason=reason, rows=rows, disposition=None)
        for reason, rows in sorted((pending.ineligible if pending else {}).items())
    ]
    claim_reasons = frozenset(rejected) - SAMPLE_REASONS - VERDICT_REASONS
    before("arrived", [*waiting, *ineligible, *_rejected(rejected, claim_reasons)])
    return stages[::-1]


def _rejected(rejected: Mapping[str, int], reasons: frozenset[str]) -> list[Share]:
    return [
        Share(reason=reason, rows=rows, disposition="rejected")
        for reason, rows in sorted(rejected.items())
        if reason in reasons
    ]
