"""`codelupe sweep`: the same rows with different values, ranked by held-out loss.

A small grid is tried whole. Otherwise optuna proposes values (TPE: Bergstra et al. 2011) and ends trials early whose
loss is above the median of the others at the same step. The folders of the trials are the only state: a sweep resumes
from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from db import runs
from service import progress
from service.cycle.claim import Undone, claim_run
from service.cycle.claim_files import Start
from service.cycle.leadership import Leadership
from service.cycle.upkeep import Upkeep
from service.errors import PreconditionError, ServiceError, UsageError
from service.settings.load import Settings
from service.sweep.space import Dimension, Params, grid, size, with_params
from service.sweep.trial import Trial, drop_weights, make_trial, run_trial, trials_in
from service.training.train import Open
from trainer.run_dir import RunDirectory

WHOLE_GRID = 24
"""A grid of at most so many combinations is tried whole."""
PROPOSED = 20
"""Number of trials when optuna proposes the values, if none is given."""
PRUNED_AFTER = 4
"""Trials that run to their end before any is ended early."""

SWEEP = "sweep"
"""The name of its progress."""

OnTrial = Callable[[Trial], None]


def sweep(
    here: Open, settings: Settings, varied: Sequence[Dimension], *, trials: int | None, on_trial: OnTrial
) -> list[Trial]:
    """Run all trials that have not ended, and return all of them.

    Args:
        trials: their number. None: the whole grid if it is small, else PROPOSED

    Raises:
        Interrupted: a signal asked it to stop.
        UsageError: the rows give nothing to train on.
    """
    inputs = claimed_inputs(here, settings)
    folder = here.folder.root / "trials"
    folder.mkdir(exist_ok=True)
    best: Trial | None = None
    for trial in trials_in(folder):
        best = _keep_better(best, trial)
    _tell(trials_in(folder), _number(varied, trials), best)
    for params, is_hopeless, tell in _proposals(varied, trials, lambda: trials_in(folder), here.recipe.training.seed):
        trial = make_trial(inputs, folder, params, with_params(here.recipe, params))
        trial = run_trial(trial, settings.trainer_secrets, here.stop, is_hopeless)
        here.check_stop()
        tell(trial)
        best = best if trial == best else _keep_better(best, trial)
        on_trial(trial)
        _tell(trials_in(folder), _number(varied, trials), best)
    progress.ended(SWEEP)
    return trials_in(folder)


def _tell(made: Sequence[Trial], total: int, best: Trial | None) -> None:
    done = sum(trial.state != "waiting" for trial in made)
    found = "" if best is None or best.loss is None else f", best loss {best.loss:.4f}"
    progress.report(SWEEP, f"{done}/{total} trials{found}", done, total)


def _number(varied: Sequence[Dimension], trials: int | None) -> int:
    """Return how many trials there will be."""
    return int(size(varied)) if _is_whole(varied, trials) else trials or PROPOSED


def _is_whole(varied: Sequence[Dimension], trials: int | None) -> bool:
    """Whether the grid is tried whole."""
    return size(varied) <= (WHOLE_GRID if trials is None else trials)


def claimed_inputs(here: Open, settings: Settings) -> RunDirectory:
    """Return the run directory with the rows of all trials. Its run is never trained itself.

    Raises:
        UsageError: there is nothing to train on.
        PreconditionError: another process works on the folder's database.
    """
    live = runs.live(here.pool, here.recipe.stream)
    if live is not None and here.home.run(live.run_id).manifest.is_file():
        return here.home.run(live.run_id)
    leadership = Leadership(here.pool, here.recipe.stream, here.home.instance(), here.board.is_alive)
    if not leadership.acquire():
        raise PreconditionError(f"another process works in {here.folder.root}. Wait for it, or end it")
    upkeep = Upkeep(settings, here.home, here.pool, here.board)
    try:
        upkeep.count_pending(leadership.lease, here.stop, here.board.beat)
        claimed = claim_run(
            here.pool, leadership.lease, here.home, settings, here.recipe, Start(), here.board.beat
        )  # fmt: skip
    except Undone as error:
        raise UsageError(str(error)) from error
    finally:
        leadership.release()
    if claimed.run_id is None or not claimed.trained:
        raise UsageError("no row can be trained on. `codelupe drop --dry-run` shows what the files become")
    return here.home.run(claimed.run_id)


Proposal = tuple[Params, Callable[[int, float], bool], Callable[[Trial], None]]


def _proposals(
    varied: Sequence[Dimension], trials: int | None, ended: Callable[[], list[Trial]], seed: int
) -> Iterator[Proposal]:
    """Yield the values of each trial, whether to end it early, and where to tell its result."""
    if _is_whole(varied, trials):
        for params in grid(varied):
            yield params, lambda _step, _loss: False, lambda _trial: None
        return
    yield from _proposed(varied, trials or PROPOSED, ended(), seed)


def _proposed(varied: Sequence[Dimension], count: int, before: list[Trial], seed: int) -> Iterator[Proposal]:
    """Let optuna propose values. Trials of an earlier start are told to it first."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {one.key: _distribution(one) for one in varied}
    before = [trial for trial in before if _is_within(trial.params, space)]  # --set may have been another one
    ended = [trial for trial in before if trial.state != "waiting"]
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed + len(ended)),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=PRUNED_AFTER),
    )
    for trial in ended:
        study.add_trial(_known(trial, space))
    for trial in before:
        if trial.state == "waiting":
            study.enqueue_trial(trial.params)
    for _ in range(count - len(ended)):
        asked = study.ask(space)

        def is_hopeless(step: int, loss: float, asked: optuna.Trial = asked) -> bool:
            asked.report(loss, step)
            return bool(asked.should_prune())

        def tell(trial: Trial, asked: optuna.Trial = asked) -> None:
            study.tell(asked, **_outcome(trial))

        yield dict(asked.params), is_hopeless, tell


def _distribution(one: Dimension) -> BaseDistribution:
    """Return optuna's form of a dimension. Ranges are tried on a logarithmic scale."""
    if not one.is_range:
        return CategoricalDistribution(one.values)
    if one.is_whole:
        return IntDistribution(int(one.low), int(one.high), log=True)
    return FloatDistribution(one.low, one.high, log=True)


def _is_within(params: Params, space: dict[str, BaseDistribution]) -> bool:
    """Whether values are ones that the sweep may propose."""
    try:
        return params.keys() == space.keys() and all(
            space[key]._contains(space[key].to_internal_repr(value)) for key, value in params.items()
        )
    except (ValueError, TypeError):  # not a number, or not one of the listed values
        return False


def _known(trial: Trial, space: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    outcome = _outcome(trial)
    values = {} if outcome["values"] is None else {"value": outcome["values"]}
    return optuna.trial.create_trial(
        params=trial.params, distributions=space, intermediate_values=dict(trial.measured), state=outcome["state"],
        **values,
    )  # fmt: skip


def _outcome(trial: Trial) -> dict[str, Any]:
    match trial.state:
        case "finished":
            return {"values": trial.loss, "state": optuna.trial.TrialState.COMPLETE}
        case "pruned":
            return {"values": None, "state": optuna.trial.TrialState.PRUNED}
        case _:
            return {"values": None, "state": optuna.trial.TrialState.FAIL}


def _keep_better(best: Trial | None, trial: Trial) -> Trial | None:
    """Keep the weights of the best trial only. Returns that trial."""
    if trial.state != "finished" or trial.loss is None:
        return best
    if best is None or best.loss is None or trial.loss < best.loss:
        if best is not None:
            drop_weights(best)
        return trial
    drop_weights(trial)
    return best


def none_finished(trials: Sequence[Trial]) -> ServiceError:
    """Return the error of a sweep without a result."""
    why = "; ".join(f"{trial.name}: {trial.reason}" for trial in trials if trial.reason)
    return ServiceError(f"no trial finished. {why}")
