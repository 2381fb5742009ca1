"""The command sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.console import JsonOption, RecipeOption, out, print_json, print_table, settings_for
from service.cli.progress import progress_shown
from service.cli.train import FromOption, prepare
from service.cycle.watchdog import watched
from service.sweep.ranking import Ranked, plot, ranked
from service.sweep.space import dimensions
from service.sweep.sweep import none_finished
from service.sweep.sweep import sweep as run_trials
from service.sweep.trial import Trial
from service.training.train import opened
from trainer.run_dir import write_json


def sweep(
    sources: FromOption,
    changes: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUES", help="Values (1e-4,2e-4) or a range (1e-5..1e-3). May be repeated."
        ),
    ],
    recipe: RecipeOption = None,
    trials: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Number of trials. Default: a small grid whole, else 20.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder of the sweep. Default: sweeps/RECIPE below CODELUPE_HOME.")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Try it with a toy base, a few rows and a few steps.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train with different values of the recipe on the same rows, and rank them by held-out loss. Resumes."""
    settings = settings_for(recipe)
    varied = dimensions(settings.recipe, changes)
    ready = prepare(settings, sources, to, kind="sweep", smoke=smoke, as_json=as_json)
    root = ready.folder.root

    def on_trial(trial: Trial) -> None:
        ready.show("trial", f"{_values(trial)}: {_result(trial)}", **trial.params)

    with (
        progress_shown(settings.log_format),
        opened(ready.settings, ready.folder, ready.parts, show=ready.show) as here,
        watched(here.board),
    ):
        found = ranked(run_trials(here, ready.settings, varied, trials=trials, on_trial=on_trial))
    if not found or found[0].trial.state != "finished":
        raise none_finished([one.trial for one in found])
    records = [one.as_record() for one in found]
    write_json(root / "sweep.json", records)
    plot(found, root / "sweep.svg")
    print_json({"folder": root, "trials": records}) if as_json else _print(found, root)


def _print(found: Sequence[Ranked], root: Path) -> None:
    keys = sorted({key for one in found for key in one.trial.params})
    names = [key.rpartition(".")[2] for key in keys]
    rows = [[*(_short(one.trial.params.get(key)) for key in keys), *_cells(one)] for one in found]
    print_table(None, [*names, "loss", "perplexity", "against the best"], rows)
    out.print(f"table {root / 'sweep.json'}, plot {root / 'sweep.svg'}", markup=False)
    out.print(f"the best adapter: {found[0].trial.directory.adapter}", markup=False)


def _cells(one: Ranked) -> list[Any]:
    trial = one.trial
    if trial.state != "finished":
        return [None if trial.loss is None else f"{trial.loss:.4f}", None, f"{trial.state}: {trial.reason}"]
    against = "the best" if one.against_best is None else one.against_best.text()
    return [f"{trial.loss:.4f}", None if one.perplexity is None else f"{one.perplexity:.2f}", against]


def _values(trial: Trial) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in trial.params.items())


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _result(trial: Trial) -> str:
    return f"loss {trial.loss:.4f}" if trial.state == "finished" else f"{trial.state} ({trial.reason})"
