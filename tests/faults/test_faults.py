"""Runs a sample of each row of the fault suite. `make faults` runs the full rows. Samples that train for a minute or
more are marked as long, and run only with `make faults ARGS=--sample`."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite import ROWS

LONG = {2, 13, 16}
"""Rows whose shortest sample runs a real service or trainer from its start to a verdict."""


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[pytest.mark.long] if number in LONG else []) for number in sorted(ROWS)]
)
def test_row(number: int, tmp_path: Path):
    with ROWS[number].prepare(tmp_path, True) as trials:
        assert trials.number > 0
        for trial in range(trials.number):
            trials.run(trial)
