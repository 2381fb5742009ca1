"""Runs a sample of each row of the fault suite. `make faults` runs the full rows. The longest samples are marked as
long, and run only with `make faults ARGS=--sample` or `make test-long`."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite import ROWS

LONG = {1, 2, 5, 7, 8, 9, 10, 11, 13, 14, 16, 18, 22, 23, 24, 25, 26, 27, 28, 29}
"""Rows whose shortest sample takes more than some seconds."""


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[pytest.mark.long] if number in LONG else []) for number in sorted(ROWS)]
)
def test_row(number: int, tmp_path: Path):
    with ROWS[number].prepare(tmp_path, True) as trials:
        assert trials.number > 0
        for trial in range(trials.number):
            trials.run(trial)
