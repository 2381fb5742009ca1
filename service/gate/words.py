"""What models and decisions are called."""

from __future__ import annotations

MODELS = {"anchor": "base alone", "current": "current adapter", "candidate": "candidate"}
DECISIONS = {
    "promote": "promoted: the candidate is published",
    "refuse": "refused: the current adapter stays, and the rows come back later",
    "inconclusive": "inconclusive: there is not enough evidence. "
    "The current adapter stays, and the next run trains on from this candidate",
}
