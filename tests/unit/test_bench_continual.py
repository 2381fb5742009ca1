"""The parts of `make bench-continual` that decide its figures: what is replayed, excerpts, and the table."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.data.encoder import TokenSample

FOLDER = Path(__file__).parents[2] / "benchmarks" / "continual"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's modules. They have short names, so they are found for one test only."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("figures", "samples", "sources", "strategies")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name)


def samples(first_id: int, count: int = 50) -> list[TokenSample]:
    ids = torch.zeros(10, dtype=torch.int32)
    return [TokenSample(file_id=first_id + n, ids=ids, labels=ids, supervised=10) for n in range(count)]


def test_replay_takes_the_place_of_new_tokens_unless_it_is_added(bench: Any):
    pools = [samples(100), samples(200)]
    for name, new, replayed in (("replay-25", 37, 13), ("replay-15-added", 50, 9), ("sequential", 50, 0)):
        found, tokens = bench.samples.samples_of_run(
            samples(0), pools, bench.strategies.STRATEGIES[name], random.Random(1)
        )
        by_run = [sum(sample.file_id // 100 == run for sample in found) for run in range(3)]
        assert by_run[0] == new, name
        assert sum(by_run[1:]) == replayed == tokens / 10 and abs(by_run[1] - by_run[2]) <= 1, name


def test_a_long_text_gives_an_excerpt_in_whole_lines_from_its_middle(bench: Any):
    assert bench.sources.excerpt("a\nb\n") == "a\nb\n"
    lines = [f"line {n} of many" for n in range(500)]
    found = bench.sources.excerpt("\n".join(lines)).splitlines()
    start = lines.index(found[0])
    assert 150 < start < 180 and found == lines[start : start + len(found)]
    assert bench.sources.EXCERPT_CHARS - 20 < len("\n".join(found)) < bench.sources.EXCERPT_CHARS


def test_the_figures_of_a_stream_of_three_runs(bench: Any):
    base = {"a": 6.0, "b": 6.0, "c": 6.0, "unseen": 7.0}
    stream = [
        {"losses": base},
        {"losses": {"a": 5.0, "b": 5.5, "unseen": 7.0}, "tokens": 10, "replayed": 0, "seconds": 1.0},
        {"losses": {"a": 5.2, "b": 4.5, "c": 5.0, "unseen": 7.0}, "tokens": 10, "replayed": 2, "seconds": 1.0},
        {"losses": {"a": 5.4, "b": 4.3, "c": 4.0, "unseen": 6.5}, "tokens": 10, "replayed": 2, "seconds": 1.0},
    ]
    found = bench.figures.figures([stream], ["a", "b", "c"], "unseen")
    assert found.after == pytest.approx(4.5) and found.gain == pytest.approx(1.5)
    assert found.step_gain == pytest.approx(1.0)
    assert found.backward == pytest.approx((-0.4 + 0.2) / 2)
    assert found.area == pytest.approx((5.0 + 4.85 + (5.4 + 4.3 + 4.0) / 3) / 3)
    assert (found.unseen, found.tokens, found.replayed, found.seconds) == (6.5, 30, 4, 3.0)
    better = [{"losses": {name: loss - n for name, loss in one["losses"].items()}} for n, one in enumerate(stream)]
    differences = bench.figures.differences([better], [stream], ["a", "b", "c"])
    assert [mean for mean, _, _ in differences] == pytest.approx([-2.0, 1.5, -3.0])
    low, high = found.backward_interval
    assert (low + high) / 2 == pytest.approx(-0.1) and high - low == pytest.approx(2 * 12.706 * 0.3, rel=1e-3)
