"""The command evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import JsonOption, RecipeOption, print_json, settings_for
from service.cli.evaluation import Options, evaluate_one, other_evaluation
from service.cli.evaluation_view import print_evaluation
from service.cli.progress import progress_shown
from service.publish.chosen import WORDS


def evaluate(
    suite: Annotated[
        str, typer.Option(help="humaneval, mbpp, held-out, fim, or a JSONL file in HumanEval's or MBPP's form.")
    ],
    adapter: Annotated[str, typer.Option(help=f"{', '.join(WORDS)}, a version, or an adapter folder.")] = "current",
    against: Annotated[
        str | None, typer.Option(help="Compare with another adapter, or with the folder of an evaluation.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="MBPP's split: test (default), train, validation, few_shot or all.")
    ] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Only the first N tasks or held-out files.")] = None,
    samples_per_task: Annotated[int, typer.Option(min=1, max=10_000, help="Answers to each task.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, max=100, help="0: the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw from the likeliest tokens up to this sum.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of an answer.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and of gaps.")] = 42,
    style: Annotated[
        str | None, typer.Option(help="chat or completion. Default: chat, if the base has a chat template.")
    ] = None,
    engine: Annotated[str, typer.Option(help="transformers (this machine), or openai (a server).")] = "transformers",
    url: Annotated[str | None, typer.Option(help="The server's address. Default: VLLM_URL.")] = None,
    served_name: Annotated[str | None, typer.Option(help="The model's name on the server.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Answers in a batch, or calls at once.")] = 16,
    execute: Annotated[
        bool, typer.Option("--execute", help="Run the tests on the answers, in the sandbox. Off unless asked for.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: below evaluations/ in CODELUPE_HOME.")
    ] = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate an adapter: pass@k of a benchmark, losses on held-out files, or infilling. Goes on where it stopped."""
    settings = settings_for(recipe)
    options = Options(
        suite=suite, split=split, max_samples=max_samples, samples_per_task=samples_per_task, temperature=temperature,
        top_p=top_p, max_tokens=max_tokens, seed=seed, style=style, engine=engine, url=url or settings.vllm_url,
        served_name=served_name, batch_size=batch_size, execute=execute,
    )  # fmt: skip
    with progress_shown(settings.log_format):
        other = None if against is None else other_evaluation(settings, options, against)
        found = evaluate_one(settings, options, adapter, to=None if to is None else to.absolute(), against=other)
    if as_json:
        print_json(found)
    else:
        print_evaluation(found)
