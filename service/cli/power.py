"""The command power."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from service.cli.console import JsonOption, RecipeOption, out, print_json, print_table, settings_for
from service.errors import UsageError
from service.gate.power import (
    PassRates,
    deviation_of,
    files_needed,
    mcnemar_power,
    mcnemar_tasks,
    paired_tasks,
    samples_per_task,
)
from service.settings.home import Home
from trainer.records import read_evaluation
from trainer.run_dir import RunDirectoryError

SUITES = {"HumanEval": 164, "MBPP test": 500}
SAMPLES = (1, 5, 10, 20, 100)


def power(
    pass_rates: Annotated[
        tuple[float, float] | None, typer.Option("--pass-at-1", help="pass@1 before and after: --pass-at-1 0.30 0.35")
    ] = None,
    nats: Annotated[float | None, typer.Option(help="Gain in held-out loss, in nats per token.")] = None,
    sd: Annotated[
        float | None, typer.Option(help="Standard deviation between files of the difference, in nats per token.")
    ] = None,
    run: Annotated[int | None, typer.Option(help="Take this deviation from a run's judged files.")] = None,
    icc: Annotated[float, typer.Option(help="Share of the variance of outcomes that lies between tasks.")] = 0.7,
    task_correlation: Annotated[
        float, typer.Option(help="Correlation of the tasks' pass rates under the two models.")
    ] = 0.9,
    target: Annotated[float, typer.Option("--power", help="Probability of finding the gain.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Probability of finding one that is not there.")] = 0.05,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how many tasks, answers and held-out files a claimed gain needs, under stated assumptions."""
    if (pass_rates is None) == (nats is None):
        raise UsageError("name one gain: --pass-at-1 BEFORE AFTER, or --nats GAIN with --sd or --run")
    if not (0.5 <= target <= 0.999 and 1e-6 <= alpha <= 0.2):
        raise UsageError(f"--power {target:g} must be from 0.5 to 0.999, and --alpha {alpha:g} from 1e-6 to 0.2")
    if pass_rates is not None:
        rates = PassRates(before=pass_rates[0], after=pass_rates[1], icc=icc, task_correlation=task_correlation)
        found = _for_tasks(rates, target, alpha)
    else:
        assert nats is not None
        found = _for_files(nats, *_deviation(sd, run, recipe_home=Home(settings_for(recipe).home)), target, alpha)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _for_tasks(rates: PassRates, target: float, alpha: float) -> dict[str, Any]:
    worse, better = rates.discordant()
    return {
        "gain": {"pass@1": [rates.before, rates.after]},
        "power": target,
        "alpha": alpha,
        "assumed": {
            "icc": rates.icc,
            "task_correlation": rates.task_correlation,
            "tasks_that_differ": round(worse + better, 4),
        },
        "mcnemar_tasks": mcnemar_tasks(rates, power=target, alpha=alpha),
        "tasks_by_samples": {n: paired_tasks(rates, n, power=target, alpha=alpha) for n in SAMPLES},
        "suites": {
            name: {
                "tasks": tasks,
                "power_with_one_answer": round(mcnemar_power(rates, tasks, alpha=alpha), 4),
                "samples_per_task": samples_per_task(rates, tasks, power=target, alpha=alpha),
            }
            for name, tasks in SUITES.items()
        },
    }


def _for_files(nats: float, deviation: float, source: str, target: float, alpha: float) -> dict[str, Any]:
    return {
        "gain": {"nats_per_token": nats},
        "power": target,
        "alpha": alpha,
        "assumed": {"deviation": deviation, "source": source},
        "files": files_needed(nats, deviation, power=target, alpha=alpha),
    }


def _deviation(sd: float | None, run: int | None, *, recipe_home: Home) -> tuple[float, str]:
    if (sd is None) == (run is None):
        raise UsageError("--nats needs the deviation between files: --sd NATS, or --run RUN")
    if sd is not None:
        return sd, "--sd"
    assert run is not None
    path = recipe_home.run(run).evaluation
    if not path.is_file():
        raise UsageError(f"{path} does not exist: the run judged no file, or there is no such run (codelupe runs)")
    try:
        deviation, files = deviation_of(list(read_evaluation(path)))
    except RunDirectoryError as error:
        raise UsageError(str(error)) from error
    return deviation, f"run {run}: {files} files, candidate against current"


def _show(found: dict[str, Any]) -> None:
    assumed = found["assumed"]
    tests = f"two-sided, power {found['power']:g}, alpha {found['alpha']:g}"
    if "files" in found:
        out.print(f"gain of {found['gain']['nats_per_token']:g} nats per token, {tests}")
        out.print(f"held-out files needed: {_number(found['files'])}")
        out.print(f"assumed: standard deviation between files {assumed['deviation']:.4f} nats per token", end=" ")
        out.print(f"({assumed['source']}), independent files, the same files for both models")
        return
    before, after = found["gain"]["pass@1"]
    out.print(f"pass@1 from {before:g} to {after:g}, {tests}")
    lines = [["1, McNemar's exact test", _number(found["mcnemar_tasks"])]]
    lines += [[f"{n}, paired t test", _number(tasks)] for n, tasks in found["tasks_by_samples"].items()]
    print_table("tasks needed", ["answers to each task", "tasks"], lines)
    print_table(
        "with the usual benchmarks",
        ["benchmark", "tasks", "power with one answer", "answers to each task needed"],
        [[name, one["tasks"], f"{one['power_with_one_answer']:.2f}",
          one["samples_per_task"] or "no number is enough"] for name, one in found["suites"].items()],
    )  # fmt: skip
    out.print(
        f"assumed: {assumed['icc']:.0%} of the variance of outcomes lies between tasks (--icc), the tasks' pass rates "
        f"correlate with {assumed['task_correlation']:g} (--task-correlation). Then the models differ on "
        f"{assumed['tasks_that_differ']:.1%} of the tasks with one answer each"
    )


def _number(value: int | None) -> str:
    return "more than a million" if value is None else f"{value:,}"
