"""The command compare: one or many prompts at once, or a conversation."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from db import adapters as adapter_table
from service.cli.compare_session import LIMITS, Session, allowed, ask_one
from service.cli.console import JsonOption, RecipeOption, print_json, settings_for
from service.cycle.comparing import Answers, Settings
from service.cycle.trainer_commands import with_absolute_folder
from service.database import database
from service.errors import PreconditionError, UsageError
from service.publish.chosen import Chosen, choose_model, found_models
from service.settings.home import Home
from service.settings.load import Settings as ServiceSettings
from trainer.recipe_file import dump_recipe

STYLES = ("chat", "completion")
LONGEST_PROMPT_CHARS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt of the command line or of a file."""

    text: str
    style: str | None = None
    """`chat` or `completion`. None: chat, if the base has a chat template."""
    name: str | None = None
    """What the prompt tries, for example `explanation`."""


def compare(
    first: Annotated[
        str | None, typer.Argument(help="base, current, previous, a version, a folder, or a name of /models.")
    ] = None,
    second: Annotated[str | None, typer.Argument(help="The same. Default: previous against current.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Ask this and end. May be repeated.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Ask each prompt of a file and end: one per line, or JSONL with `prompt`.")
    ] = None,
    style: Annotated[str | None, typer.Option(help="chat or completion. Default: chat, if the base can.")] = None,
    temperature: Annotated[float, typer.Option(help="0: the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens up to this sum.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many likeliest tokens. 0: all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens of an answer.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 42,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what two models answer to the same prompts. Without --prompt or --prompts: a conversation."""
    settings = settings_for(recipe)
    sampling = Settings(
        temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed, top_k=top_k,
        repetition_penalty=repetition_penalty,
    )  # fmt: skip
    for name in LIMITS:
        if problem := allowed(name, getattr(sampling, name)):
            raise UsageError(f"--{name.replace('_', '-')} {problem}")
    if style not in (None, *STYLES):
        raise UsageError(f"--style {style!r} is not one of {', '.join(STYLES)}")
    asked = [Prompt(text=text, style=style) for text in prompt or []] + (
        read_prompts(prompts, style) if prompts else []
    )
    if as_json and not asked:
        raise UsageError("--json needs --prompt or --prompts")
    history = _history(settings)
    home = Home(settings.home)
    models = _two(first, second, home, history)
    with _answers(settings, models) as answers:
        session = Session(
            answers, models, sampling, style=style, found=lambda: found_models(home, _history(settings)),
            choose=lambda word: choose_model(word, home, lambda: _history(settings)),
        )  # fmt: skip
        if not asked:
            session.talk(sys.stdin)
        elif as_json:
            print_json(_as_json(answers, models, asked, sampling))
        else:
            for one in asked:
                session.ask(one.text, style=one.style, name=one.name)


def read_prompts(path: Path, style: str | None) -> list[Prompt]:
    """Read a file of prompts: JSON objects with `prompt`, and perhaps `name` and `style`, or plain lines.

    Raises:
        UsageError: it cannot be read, or has no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompts {path} cannot be read ({error})") from error
    found = [
        _prompt(line, style, f"{path}, line {number}") if path.suffix == ".jsonl" else Prompt(text=line, style=style)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise UsageError(f"--prompts {path} has no prompt")
    return found


def _prompt(line: str, style: str | None, where: str) -> Prompt:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error})") from error
    text = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text:
        raise UsageError(f"{where}: it needs a text `prompt`")
    own = record.get("style")
    if own not in (None, *STYLES):
        raise UsageError(f"{where}: style {own!r} is not one of {', '.join(STYLES)}")
    return Prompt(text=text, style=own or style, name=None if record.get("name") is None else str(record["name"]))


def _history(settings: ServiceSettings) -> list[adapter_table.Adapter]:
    with database(settings) as pool:
        return adapter_table.history(pool, settings.recipe.stream)


def _two(first: str | None, second: str | None, home: Home, history: Sequence[adapter_table.Adapter]) -> list[Chosen]:
    """Return the models to compare. One name is compared with current, and current with the version before it."""
    current = next((adapter for adapter in history if adapter.is_current), None)
    if second is None:
        if first is None and current is None:
            raise PreconditionError(
                "no adapter was published yet. Name two models, for example: codelupe compare base FOLDER"
            )
        second = "current"
    if first is None:
        first = "previous" if any(current and one.version < current.version for one in history) else "base"
    return [choose_model(word, home, lambda: history) for word in (first, second)]


@contextmanager
def _answers(settings: ServiceSettings, models: Sequence[Chosen]) -> Iterator[Answers]:
    token = settings.trainer_secrets.get("HF_TOKEN")
    adapter = next((one.folder for one in reversed(models) if one.folder is not None), None)
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / f"{settings.recipe.name}.yaml"
        recipe.write_text(dump_recipe(with_absolute_folder(settings.recipe)), encoding="utf-8")
        print("loading the base …", file=sys.stderr)
        answers = Answers(recipe, adapter, {"HF_TOKEN": token} if token else {})
    try:
        yield answers
    finally:
        answers.close()


def _as_json(answers: Answers, models: Sequence[Chosen], asked: Sequence[Prompt], sampling: Settings) -> dict[str, Any]:
    return {
        "models": [{"name": one.label, "folder": None if one.folder is None else str(one.folder)} for one in models],
        "settings": asdict(sampling),
        "prompts": [
            {
                **asdict(prompt),
                "answers": [
                    asdict(made) | {"tokens_per_second": round(made.tokens_per_second, 2)}
                    for one in models
                    for made in [ask_one(answers, one, prompt.text, sampling, style=prompt.style)]
                ],
            }
            for prompt in asked
        ],
    }
