"""Adds rows of earlier runs to a run, so that it does not forget them (docs/continual.md)."""

from __future__ import annotations

import math

from db.source import Claim, earlier_trained
from service.admission.admission import Admission
from service.admission.separation import Judged
from service.admission.split import Splitter
from service.cycle.claim_files import row_line
from service.publish.folders import Beat
from trainer.recipe import Recipe
from trainer.records import read_rows
from trainer.run_dir import RunDirectory, content_sha256

CANDIDATES = 4
"""How many rows are looked at for each one that is needed. Some are shorter, changed, or not allowed any more."""


def write_replay(
    rows: Claim,
    folder: RunDirectory,
    recipe: Recipe,
    admission: Admission,
    splitter: Splitter,
    new_chars: int,
    beat: Beat,
) -> int:
    """Write replay.jsonl, unless there is nothing to replay. Returns the number of its rows.

    Args:
        splitter: with all of the claim's rows decided
        new_chars: characters of the rows that the run trains on for the first time
    """
    fraction = recipe.data.replay_fraction
    ratio = fraction / (1 - fraction)  # of the run's total, not of its new rows
    left, most = new_chars * ratio, CANDIDATES * math.ceil(splitter.trained * ratio)
    written = 0
    if not most:
        return written
    judged = Judged(read_rows(folder.held_out))
    with folder.replay.open("w", encoding="utf-8") as file:
        for row, run_id in earlier_trained(rows, f"{recipe.training.seed}:{rows.run_id}", most):
            beat()
            clean = None if splitter.holds_out(row) else admission.again(row)
            if clean is None or any(judged.compared([clean], recipe.hygiene)):
                continue
            if len(clean.content) / 2 > left:
                break
            left -= len(clean.content)
            rows.keep(clean, "replay")
            file.write(row_line(clean, content_sha256(clean.content), run_id=run_id))
            written += 1
    if not written:
        folder.replay.unlink()
    return written
