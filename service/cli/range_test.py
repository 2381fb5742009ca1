"""The command range-test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import JsonOption, RecipeOption, out, print_json, settings_for
from service.cli.progress import progress_shown
from service.cli.train import FromOption, prepare
from service.cycle.watchdog import watched
from service.sweep.range_test import plot, range_recipe
from service.sweep.range_test import range_test as find_rate
from service.training.train import opened
from trainer.run_dir import write_json


def range_test(
    sources: FromOption,
    recipe: RecipeOption = None,
    low: Annotated[float, typer.Option(help="The first step's learning rate.")] = 1e-6,
    high: Annotated[float, typer.Option(help="The last step's learning rate.")] = 1e-1,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 100,
    to: Annotated[
        Path | None, typer.Option(help="Folder of the test. Default: range-tests/RECIPE below CODELUPE_HOME.")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Try it with a toy base and a few rows.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find a learning rate: train once while the rate rises with every step."""
    settings = settings_for(recipe)
    range_recipe(settings.recipe, low=low, high=high, steps=steps)  # refuses wrong limits now
    ready = prepare(settings, sources, to, kind="range test", smoke=smoke, as_json=as_json)
    root = ready.folder.root
    with (
        progress_shown(settings.log_format),
        opened(ready.settings, ready.folder, ready.parts, show=ready.show) as here,
        watched(here.board),
    ):
        found = find_rate(here, ready.settings, low=low, high=high, steps=steps)
    write_json(root / "range_test.json", found.as_record())
    plot(found, root / "range_test.svg")
    if as_json:
        print_json({"folder": root, **found.as_record()})
        return
    if found.diverged:
        out.print("the loss became infinite at the highest rates, where the curve ends")
    out.print(f"the loss falls fastest at {found.steepest:.2g}, and is lowest at {found.lowest:.2g}")
    out.print(f"try: --set learning_rate={found.steepest:.1g}   plot: {root / 'range_test.svg'}", markup=False)
