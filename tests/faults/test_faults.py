"""A sample of every row of the fault suite; `make faults` runs them in full."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite import ROWS


@pytest.mark.parametrize("number", sorted(ROWS))
def test_row(number: int, tmp_path: Path):
    with ROWS[number].prepare(tmp_path, True) as trials:
        assert trials.number > 0
        for trial in range(trials.number):
            trials.run(trial)
