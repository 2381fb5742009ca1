"""A sweep's trials: their ranking with intervals, what optuna is told, and whose weights stay."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from service.sweep.ranking import ranked
from service.sweep.space import Dimension, grid
from service.sweep.sweep import WHOLE_GRID, _keep_better, _number, _proposals
from service.sweep.trial import Trial, read_trial, trial_name, trials_in
from trainer.records import SampleEvaluation, write_evaluation
from trainer.run_dir import RunDirectory, write_json

RATES = Dimension(key="training.learning_rate", low=1e-4, high=1e-2)
FILES = 6


def make(folder: Path, rate: float, *, nats: list[float] | None = None, state: str = "finished", **record) -> Trial:
    """Write the folder of a trial that has ended. `nats`: of the candidate on each file, of ten tokens each."""
    params = {RATES.key: rate}
    directory = RunDirectory(folder / trial_name(params))
    for path in (directory.root, directory.adapter):
        path.mkdir(parents=True)
    (directory.root / "MANIFEST.json").write_text("{}", encoding="utf-8")
    if nats is not None:
        record["loss"] = sum(nats) / (10 * len(nats))
        samples = [
            SampleEvaluation(
                file_ids=(number,), fresh=True, repository=None, path=None, language="python", kind="file", tokens=10,
                loss={"anchor": 30.0 + number, "current": 30.0, "candidate": value}, correct={},
            )
            for number, value in enumerate(nats)
        ]  # fmt: skip
        write_evaluation(directory.evaluation, samples)
    write_json(directory.root / "trial.json", {"params": params, "state": state, **record})
    return read_trial(directory.root)


def test_trials_are_ranked_with_the_interval_of_their_difference_to_the_best(tmp_path: Path) -> None:
    best = [20.0 + n for n in range(FILES)]
    make(tmp_path, 1e-3, state="pruned", loss=1.0, measured=[[1, 1.0]], reason="at step 1")
    make(tmp_path, 2e-3, nats=[value + 2 for value in best])  # exactly 0.2 nats per token worse on each file
    make(tmp_path, 3e-3, nats=best)
    make(tmp_path, 4e-3, state="failed", reason="it diverged")
    found = ranked(trials_in(tmp_path))
    assert [one.trial.params[RATES.key] for one in found] == [3e-3, 2e-3, 1e-3, 4e-3]
    first, second, *others = found
    assert first.against_best is None and second.against_best is not None
    assert second.against_best.difference == pytest.approx(0.2)
    assert second.against_best.low == pytest.approx(0.2) and second.against_best.files == FILES
    assert first.against_base is not None and first.against_base.difference == pytest.approx(-1.0)
    assert all(one.against_best is None and one.perplexity is None for one in others)
    assert second.as_record()["against_best"]["difference"] == pytest.approx(0.2)


def test_without_a_finished_trial_nothing_is_compared(tmp_path: Path) -> None:
    make(tmp_path, 1e-3, state="failed", reason="out of memory")
    (one,) = ranked(trials_in(tmp_path))
    assert one.against_best is None and one.against_base is None


def test_only_the_best_trial_keeps_its_weights(tmp_path: Path) -> None:
    second, first, third = (make(tmp_path, rate, nats=[level] * 2) for rate, level in ((1, 20.0), (2, 10.0), (3, 30.0)))
    best = None
    for trial in (second, first, third):
        best = _keep_better(best, trial)
    assert best == first and first.directory.adapter.exists()
    assert not second.directory.adapter.exists() and not third.directory.adapter.exists()


def test_a_small_grid_is_tried_whole_and_a_large_one_is_proposed() -> None:
    few = [Dimension(key="training.seed", values=(1, 2, 3)), Dimension(key="lora.rank", values=(4, 8))]
    assert [params for params, *_ in _proposals(few, None, list, 1)] == list(grid(few))
    many = [Dimension(key="training.seed", values=tuple(range(WHOLE_GRID + 1)))]
    assert len([*_proposals(many, 5, list, 1)]) == 5
    assert len([*_proposals(many, None, list, 1)]) == 20
    assert [_number(few, None), _number(few, 4), _number(many, 5), _number(many, None)] == [6, 4, 5, 20]  # as reported


def test_what_was_tried_before_is_told_and_what_was_interrupted_comes_first(tmp_path: Path) -> None:
    for rate, loss in ((1e-4, 3.0), (2e-4, 2.5)):
        make(tmp_path, rate, nats=[10 * loss] * 2)
    make(tmp_path, 7e-3, state="failed", reason="it diverged")
    waiting = make(tmp_path, 5e-3, state="waiting")
    make(tmp_path, 0.5, nats=[1.0] * 2)  # of another range
    proposals = _proposals([RATES], 5, lambda: trials_in(tmp_path), 1)
    (first, is_hopeless, tell), *others = itertools.islice(proposals, 10)
    assert first == waiting.params
    assert len(others) == 1  # five trials, of which three have ended
    assert RATES.low <= others[0][0][RATES.key] <= RATES.high
    assert not is_hopeless(1, 100.0)  # too few trials have run to their end
    tell(make(tmp_path / "elsewhere", 5e-3, nats=[20.0] * 2))


def test_a_trial_above_the_median_is_hopeless(tmp_path: Path) -> None:
    for number in range(4):
        make(tmp_path, (number + 1) * 1e-3, nats=[20.0] * 2, measured=[[5, 2.0 + number / 10]])
    _, is_hopeless, _ = next(iter(_proposals([RATES], 9, lambda: trials_in(tmp_path), 1)))
    assert is_hopeless(5, 2.9)
    _, is_hopeless, _ = next(iter(_proposals([RATES], 9, lambda: trials_in(tmp_path), 1)))
    assert not is_hopeless(5, 1.9)
