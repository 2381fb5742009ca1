"""The commands merge and export."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from db import adapters as adapter_table
from service.cli.console import JsonOption, RecipeOption, out, print_json, settings_for
from service.cycle.trainer_commands import export_or_push, with_absolute_folder
from service.database import database
from service.errors import PreconditionError, ServiceError, UsageError
from service.publish.card import CARD, LOAD_MERGED, merged_card
from service.publish.chosen import choose_adapter
from service.settings.home import Home
from service.settings.load import Settings
from trainer.recipe_file import dump_recipe

FORMATS = ("hf", "adapter", "gguf")
DTYPES = ("auto", "bfloat16", "float16")

AdapterArgument = Annotated[str, typer.Argument(help="current, previous, a version, or an adapter folder.")]
ToOption = Annotated[Path, typer.Option("--to", help="A folder that does not exist yet.")]
DtypeOption = Annotated[str, typer.Option(help=f"Of the merged weights: {', '.join(DTYPES)} (auto: the base's own).")]


def merge(
    to: ToOption,
    adapter: AdapterArgument = "current",
    dtype: DtypeOption = "auto",
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its base, in 16 bits. The logits before and after must agree."""
    settings = settings_for(recipe)
    _print(_export(settings, adapter, to, "hf", ["merge", "--dtype", _checked_dtype(dtype)]), as_json)


def export(
    to: ToOption,
    adapter: AdapterArgument = "current",
    form: Annotated[str, typer.Option("--format", help="hf (merged folder), adapter (as it is) or gguf.")] = "hf",
    dtype: DtypeOption = "auto",
    converter: Annotated[
        str | None, typer.Option(help="llama.cpp's convert_hf_to_gguf.py. Default: the one on PATH.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="Also upload to this Hub repository (owner/name).")] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody read the repository.")] = False,
    push_minutes: Annotated[float, typer.Option(min=0.01, help="Give up the upload after this time.")] = 240.0,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export an adapter: merged, as it is, or as GGUF. Each is tried before its folder appears."""
    settings = settings_for(recipe)
    if form not in FORMATS:
        raise UsageError(f"--format {form!r} is not one of {', '.join(FORMATS)}")
    token = settings.trainer_secrets.get("HF_TOKEN")
    if push is not None and not token:
        raise PreconditionError("--push needs a token that may write to the repository. Set HF_TOKEN")
    arguments = ["export", "--format", form, "--dtype", _checked_dtype(dtype)]
    found = _export(settings, adapter, to, form, arguments + ([] if converter is None else ["--converter", converter]))
    if push is not None and token:
        found |= _push(to.absolute(), push, token, public=public, minutes=push_minutes)
    _print(found, as_json)


def _export(settings: Settings, word: str, to: Path, form: str, arguments: list[str]) -> dict[str, Any]:
    """Run the trainer's command, which writes the folder."""
    home = Home(settings.home)

    def history() -> list[adapter_table.Adapter]:
        with database(settings) as pool:
            return adapter_table.history(pool, settings.recipe.stream)

    if to.exists():
        raise UsageError(f"{to} exists already. Choose a new folder with --to")
    chosen = choose_adapter(word, home, history)
    if chosen.folder is None:
        raise UsageError("the base alone has no adapter. Name a version, or an adapter folder")
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / f"{settings.recipe.name}.yaml"
        recipe.write_text(dump_recipe(with_absolute_folder(settings.recipe)), encoding="utf-8")
        card = Path(scratch) / CARD
        if form in LOAD_MERGED and (chosen.folder / CARD).is_file():
            text = merged_card((chosen.folder / CARD).read_text(encoding="utf-8"), form=form)
            card.write_text(text, encoding="utf-8")
            arguments = [*arguments, "--card", str(card)]
        command, *options = arguments
        places = [str(recipe), str(chosen.folder), str(to.absolute())]
        token = settings.trainer_secrets.get("HF_TOKEN")
        code, found = export_or_push([command, *places, *options], {"HF_TOKEN": token} if token else {})
    if code != 0:
        raise typer.Exit(code if code > 0 else 1)
    return {"adapter": chosen.label, **found}


def _push(folder: Path, repository: str, token: str, *, public: bool, minutes: float) -> dict[str, Any]:
    arguments = ["push", str(folder), repository, *(["--public"] if public else [])]
    code, found = export_or_push(arguments, {"HF_TOKEN": token}, seconds=60 * minutes)
    if code == -9:
        raise ServiceError(
            f"the upload did not end within {minutes:g} minutes. {folder} is complete; upload it later with: "
            f"hf upload {repository} {folder}"
        )
    if code != 0:
        raise typer.Exit(code if code > 0 else 1)
    return found


def _checked_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise UsageError(
            f"--dtype {dtype!r} is not one of {', '.join(DTYPES)}. Adapters are merged in 16 bits only: rounding the "
            "sum to 4 or 8 bits would lose most of what was learned. Quantize the merged model afterwards"
        )
    return dtype


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    out.print(f"{found['adapter']} → {found['folder']}", markup=False)
    if check := found.get("logits"):
        lost, tokens = _percent(found["rounding"]), check["tokens"]
        out.print(f"{found['modules']} matrices changed in {found['dtype']}; rounding loses {lost} of the change")
        out.print(
            f"logits before and after differ by {_percent(check['difference'])} of their spread over {tokens} tokens\n"
            f"the adapter itself changes them by {_percent(check['effect'])}; the likeliest word is the same for "
            f"{_percent(check['top_1'])}"
        )
    if "tensors" in found:
        out.print(f"{found['file']}: {found['tensors']} tensors", markup=False)
    if found["answer"] is not None:
        out.print(f"it answers: {found['answer']!r}", markup=False)
    if "commit" in found:
        out.print(f"pushed: {found['commit']}", markup=False)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
