"""The command train."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from service import logs
from service.cli.console import JsonOption, RecipeOption, out, print_json, print_table, settings_for
from service.cli.doctor import trainer_findings
from service.cli.progress import progress_shown
from service.errors import PreconditionError
from service.logs import PrintProgress
from service.settings.home import Home
from service.settings.load import Settings
from service.settings.overrides import overridden
from service.training.folder import Kind, TrainingFolder, open_folder
from service.training.smoke import ROWS, smoke_settings
from service.training.sources import Part, parts_of
from service.training.train import MOST_ROWS, PhaseResult, one_off
from service.training.train import train as train_phases

WORDS = {"promote": "better", "inconclusive": "too little evidence", "refuse": "refused"}

FromOption = Annotated[
    list[str], typer.Option("--from", help="Files, folders, git checkouts or records, as for `codelupe drop`.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe. May be repeated.")
]


def train(
    sources: FromOption,
    recipe: RecipeOption = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder of the training. Default: trainings/RECIPE below CODELUPE_HOME.")
    ] = None,
    changes: SetOption = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Try the recipe in a minute or two: a toy base, a few rows, a few steps.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train once on files, without a service. The same command resumes. Exit 1 if the candidate is refused."""
    settings = settings_for(recipe)
    settings = replace(settings, recipe=overridden(settings.recipe, changes or []))
    ready = prepare(settings, sources, to, kind="training", smoke=smoke, as_json=as_json)
    with progress_shown(settings.log_format):
        found = train_phases(ready.settings, ready.folder, ready.parts, show=ready.show)
    if as_json:
        print_json({"folder": ready.folder.root, "phases": [asdict(one) for one in found]})
    else:
        _print(ready.folder, found)
    if not found or found[-1].decision == "refuse":
        raise typer.Exit(1)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A training, a sweep or a range test that can begin."""

    settings: Settings
    """Those of `one_off`."""
    folder: TrainingFolder
    parts: Sequence[Part]
    show: PrintProgress


def prepare(
    settings: Settings, sources: Sequence[str], to: Path | None, *, kind: Kind, smoke: bool, as_json: bool
) -> Ready:
    """Open the folder, and check this machine. With `smoke`, the base is a toy, and nothing has to be checked.

    Raises:
        UsageError, PreconditionError: sources, folder or machine cannot be used.
    """
    parts = parts_of(settings.recipe, sources)
    folder = open_folder(
        folder_for(settings, to, kind=kind, smoke=smoke), settings.recipe, parts, kind=kind, smoke=smoke
    )
    if smoke:
        settings = smoke_settings(settings, folder.root)
    logs.set_up(settings.log_format)
    show = silent if as_json else logs.progress_printer(settings.log_format)
    if not smoke:
        check_ready(settings, folder.root, show)
    limited = one_off(settings, folder, rows=ROWS if smoke else MOST_ROWS)
    return Ready(settings=limited, folder=folder, parts=parts, show=show)


def check_ready(settings: Settings, folder: Path, show: PrintProgress) -> None:
    """Check cards, memory, disk and base model before anything is read or loaded.

    Raises:
        PreconditionError: a check failed. Lists all that did.
    """
    failed = []
    for finding in trainer_findings(settings, folder):
        show(finding.check, f"{finding.said}{' (failed)' if finding.state == 'failed' else ''}")
        if finding.state == "failed":
            failed.append(f"{finding.check}: {finding.said}{f'. Try: {finding.mend}' if finding.mend else ''}")
    if failed:
        raise PreconditionError(
            "this machine is not ready for the recipe:\n" + "\n".join(f"  - {one}" for one in failed)
        )


def folder_for(settings: Settings, to: Path | None, *, kind: str, smoke: bool) -> Path:
    """Return the folder of a command: `--to`, else one of the recipe's name below CODELUPE_HOME."""
    name = f"{settings.recipe.name}-smoke" if smoke else settings.recipe.name
    return (to or Home(settings.home).root / f"{kind.replace(' ', '-')}s" / name).absolute()


def silent(_stage: str, _text: str, /, **_fields: Any) -> None:
    """Keep stdout for JSON."""


def _print(folder: TrainingFolder, found: Sequence[PhaseResult]) -> None:
    columns = ["phase", "run", "verdict", "loss", "perplexity", "top-1 accuracy"]
    print_table(None, columns, [_row(one) for one in found])
    for one in found:
        for reason in one.reasons:
            out.print(f"{one.phase or 'verdict'}: {reason}", markup=False)
        if one.rejected:
            why = ", ".join(f"{count} {reason}" for reason, count in one.rejected.items())
            out.print(f"rows that gave no sample: {why}. `codelupe samples` shows what the files become", markup=False)
    if found:
        out.print(f"adapter: {found[-1].adapter}", markup=False)
        out.print(f"next: CODELUPE_HOME={shlex.quote(str(folder.root))} codelupe compare", markup=False)


def _row(one: PhaseResult) -> list[Any]:
    """Return a phase's line. Each measure has its value before and after."""
    scores = one.evaluation.get("current") or {}, one.evaluation.get("candidate") or {}
    measures = [
        " → ".join(format(score[name], form) for score in scores if isinstance(score.get(name), float))
        for name, form in (("loss", ".4f"), ("perplexity", ",.1f"), ("token_accuracy", ".1%"))
    ]
    return [one.phase, one.run_id, WORDS.get(one.decision, one.decision), *measures]
