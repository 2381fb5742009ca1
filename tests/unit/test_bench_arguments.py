"""The benchmarks refuse unknown words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("benchmark", "words", "complaint"),
    [
        pytest.param(
            "step/__main__.py",
            "3 1 bfloat16 codelupe trl-plain",
            "unrecognized arguments: trl-plain",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "step/__main__.py", "3 1 float16", "float16: choose from float32, bfloat16", marks=pytest.mark.long
        ),
        ("step/__main__.py", "3 1 bfloat16 codelupe,nobody", "nobody: choose from codelupe,"),
        pytest.param("step/__main__.py", "0", "'0' is not a whole number of at least 1", marks=pytest.mark.long),
        pytest.param("cycle/__main__.py", "many", "invalid int value: 'many'", marks=pytest.mark.long),
        ("cycle/__main__.py", "1 no-such-checkout", "no-such-checkout is not a checkout"),
        pytest.param("hygiene/__main__.py", "one.gz two.gz", "unrecognized arguments: two.gz", marks=pytest.mark.long),
        pytest.param("samples/__main__.py", "flask", "unrecognized arguments: flask", marks=pytest.mark.long),
        ("continual", "sequential replay-7", "replay-7: choose from sequential, replay-5"),
        pytest.param("continual", "--seeds 0", "--seeds: 0 is not at least 1", marks=pytest.mark.long),
    ],
)
def test_an_unknown_word_is_an_error(benchmark: str, words: str, complaint: str):
    command = [sys.executable, str(ROOT / "benchmarks" / benchmark), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr
