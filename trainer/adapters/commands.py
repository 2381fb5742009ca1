"""The commands merge, export, push and compare of `python -m trainer`. (no torch until one runs)"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from trainer.errors import Stopped, TrainerError, UnusableInput
from trainer.imports import collector_paused, compiler_off
from trainer.recipe_file import load_recipe
from trainer.stop import StopRequest, write_stderr

FORMS = ("hf", "adapter", "gguf")
DTYPES = ("auto", "bfloat16", "float16")
NAMES = ("merge", "export", "push", "compare")


def add_commands(commands: Any) -> None:
    """Add the commands to a parser."""
    merge = commands.add_parser("merge", help="merge an adapter into its base, in 16 bits")
    export = commands.add_parser("export", help="export an adapter: merged, as it is, or as GGUF")
    for parser in (merge, export):
        parser.add_argument("recipe", type=Path)
        parser.add_argument("adapter", type=Path, help="adapter folder")
        parser.add_argument("to", type=Path, help="a folder that does not exist yet")
        parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of merged weights (auto: the base's own)")
        parser.add_argument("--card", type=Path, help="README.md of the merged model")
    merge.set_defaults(form="hf", converter=None)
    export.add_argument("--format", dest="form", choices=FORMS, required=True)
    export.add_argument("--converter", help="llama.cpp's convert_hf_to_gguf.py (default: the one on PATH)")
    push = commands.add_parser("push", help="upload a folder to the Hub with HF_TOKEN")
    push.add_argument("folder", type=Path)
    push.add_argument("repository", help="owner/name")
    push.add_argument("--public", action="store_true", help="let everybody read it")
    compare = commands.add_parser("compare", help="answer prompts with several adapters (JSON lines)")
    compare.add_argument("recipe", type=Path)
    compare.add_argument("--adapter", type=Path, help="adapter that says which revision of the base is loaded")


def run_adapter_command(chosen: argparse.Namespace) -> int:
    """Run one of NAMES and return its exit code. What was made is JSON on the last line of stdout."""
    stop = StopRequest()
    try:
        if chosen.command == "compare":
            _compare(chosen)
            return 0
        stop.listen()
        found = _push(chosen) if chosen.command == "push" else _export(chosen)
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    except Stopped as stopped:
        write_stderr(f"stopped: {stopped}. Nothing was written")
        return stopped.exit_code
    except TrainerError as error:
        write_stderr(str(error))
        return error.exit_code


def _export(chosen: argparse.Namespace) -> dict[str, Any]:
    recipe = load_recipe(chosen.recipe)
    _import_bitsandbytes()
    from transformers.utils.logging import disable_progress_bar

    from trainer.adapters.formats import ExportRequest, export

    disable_progress_bar()
    card = None if chosen.card is None else chosen.card.read_text(encoding="utf-8")
    return export(
        ExportRequest(
            recipe=recipe, adapter=chosen.adapter.resolve(), to=chosen.to.absolute(), form=chosen.form,
            dtype=chosen.dtype, card=card, converter=chosen.converter, on_note=write_stderr,
        )
    )  # fmt: skip


def _push(chosen: argparse.Namespace) -> dict[str, Any]:
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UnusableInput("there is no token. Set HF_TOKEN to one that may write to the repository")
    from trainer.adapters.push import push_folder

    return {"commit": push_folder(chosen.folder, chosen.repository, token=token, public=chosen.public)}


def _compare(chosen: argparse.Namespace) -> None:
    recipe = load_recipe(chosen.recipe)
    _import_bitsandbytes()
    from trainer.adapters.compare import compare_command

    compare_command(recipe, chosen.adapter)


def _import_bitsandbytes() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)  # about transformers' own names
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow down generation
    with collector_paused(), compiler_off():
        importlib.import_module("bitsandbytes")
