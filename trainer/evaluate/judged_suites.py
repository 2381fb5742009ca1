"""Lets the candidate and the current adapter solve benchmarks, for the gate. The sandbox executes their answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.check import Checked
from trainer.evaluate.command import evaluate_command
from trainer.evaluate.engines import Sampling
from trainer.evaluate.request import EvaluationRequest
from trainer.evaluate.results import Results
from trainer.run_dir import RunDirectory, read_json
from trainer.stop import StopRequest

MAX_TOKENS = 512


def judge_suites(directory: RunDirectory, checked: Checked, stop: StopRequest) -> dict[str, Any]:
    """Return the paired result of each of the recipe's suites, by number and name. Greedy, one answer a task.

    What was answered is kept in the run directory, so that a later start goes on from there.

    Raises:
        UnusableInput: a suite cannot be read, or the sandbox is not available.
        Stopped, OutOfMemory
    """
    found = {}
    for number, file in enumerate(map(Path, checked.recipe.evaluation.suites), 1):
        folder = directory.suites / f"{number:02d}-{file.name.split('.')[0]}"
        for request in _requests(directory, checked, file, folder):
            evaluate_command(request, stop)
        compared = read_json(folder / "candidate" / "evaluation.json")["against"]["passed"]
        found[folder.name] = compared | {name: _solved(folder / name) for name in ("current", "candidate")}
    return found


def _solved(folder: Path) -> float:
    """Return the share of the tasks that an adapter solved: pass@1."""
    outcomes = Results(folder).read_outcomes().values()
    return sum(verdict.passed for verdict in outcomes) / len(outcomes)


def _requests(directory: RunDirectory, checked: Checked, file: Path, folder: Path) -> Iterator[EvaluationRequest]:
    """Yield the current adapter's request, then the candidate's, which compares with it."""
    for name, adapter in (("current", checked.current), ("candidate", directory.adapter)):
        yield EvaluationRequest(
            recipe=directory.recipe,
            to=folder / name,
            suite=file.name,
            file=file.expanduser(),
            adapter=adapter,
            current=None,
            split=None,
            max_samples=checked.recipe.evaluation.suite_tasks,
            samples_per_task=1,
            sampling=Sampling(temperature=0.0, top_p=1.0, max_tokens=MAX_TOKENS, seed=checked.seed),
            style=None,
            engine="transformers",
            url=None,
            served_name=None,
            batch_size=16,
            execute=True,
            against=folder / "current" if name == "candidate" else None,
        )
