"""The commands plan, doctor and alert-test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from service.alerts.targets import open_targets
from service.cli.console import JsonOption, RecipeOption, out, print_json, settings_for
from service.cli.doctor import Finding, alert_findings, examine
from service.cycle.trainer_commands import plan_memory, with_absolute_folder
from service.errors import PreconditionError
from trainer.recipe_file import dump_recipe


def plan(
    recipe: RecipeOption = None,
    card: Annotated[str | None, typer.Option(help="Short name of a card: rtx-5090, a100-80, h100, …")] = None,
    vram_gib: Annotated[float | None, typer.Option(min=0.1, max=100_000, help="Memory of the card in GiB.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, max=4096, help="Number of cards, over the recipe's.")] = None,
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp2", "zero2", "zero3"] | None, typer.Option(help="Over the recipe's.")
    ] = None,
    sequence: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Cards that share each pack, over the recipe's.")
    ] = None,
    network_gbits: Annotated[
        float | None, typer.Option(min=0.001, help="Network of a machine of eight cards, in Gbit/s. Default: 100.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples of the corpus, over the recipe's.")] = None,
    tokens_per_sample: Annotated[float | None, typer.Option(min=1, help="Average tokens of one of them.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict memory and speed from the recipe, and choose the fastest plan that fits. Exit 3 if none fits."""
    settings = settings_for(recipe)
    arguments = ["--json"] if as_json else []
    arguments += [] if card is None else ["--card", card]
    arguments += [] if vram_gib is None else ["--vram-gib", str(vram_gib)]
    arguments += [] if gpus is None else ["--gpus", str(gpus)]
    arguments += [] if strategy is None else ["--strategy", strategy]
    arguments += [] if sequence is None else ["--sequence", str(sequence)]
    arguments += [] if network_gbits is None else ["--network-gbits", str(network_gbits)]
    arguments += [] if samples is None else ["--samples", str(samples)]
    arguments += [] if tokens_per_sample is None else ["--tokens-per-sample", str(tokens_per_sample)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{settings.recipe.name}.yaml"
        path.write_text(dump_recipe(with_absolute_folder(settings.recipe)), encoding="utf-8")
        code = plan_memory(path, arguments, settings.trainer_secrets)
    raise typer.Exit(code)


def doctor(recipe: RecipeOption = None, as_json: JsonOption = False) -> None:
    """Check folders, disk, database, alerts, card, memory, base model, Hub and W&B. Exit 1 if a check fails."""
    _report(examine(settings_for(recipe)), as_json)


def alert_test(recipe: RecipeOption = None, as_json: JsonOption = False) -> None:
    """Send a test message to each target of ALERT_URLS, and say which ones took it. Exit 1 if one did not."""
    settings = settings_for(recipe)
    if not settings.alert_urls:
        raise PreconditionError("no target: set ALERT_URLS, for example ALERT_URLS=jsons://host/path")
    open_targets(settings.alert_urls)  # a wrong address is a usage error here, and nothing is sent
    _report(alert_findings(settings), as_json)


def _report(found: Iterator[Finding], as_json: bool) -> None:
    findings = []
    for finding in found:
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    failed = sum(finding.state == "failed" for finding in findings)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        out.print(f"{failed} of {len(findings)} checks failed" if failed else "all checks passed")
    if failed:
        raise typer.Exit(1)


def _print_finding(finding: Finding) -> None:
    mark = {"ok": "[green]ok[/green]    ", "note": "[yellow]note[/yellow]  ", "failed": "[red]FAILED[/red]"}[
        finding.state
    ]
    out.print(f"{mark} {finding.check:<12} {escape(finding.said)}")
    if finding.mend:
        out.print(f"       {'':<12} → {escape(finding.mend)}")
