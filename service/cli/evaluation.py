"""Prepares an evaluation: finds adapter and suite, writes held-out rows, and runs the trainer's process."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from db import adapters as adapter_table
from db.held_out import read_held_out
from service.cycle import trainer_commands
from service.cycle.claim_files import row_line
from service.cycle.trainer_commands import with_absolute_folder
from service.database import database
from service.errors import PreconditionError, UsageError
from service.gate.slices import as_record, bootstrap_interval, slices
from service.publish.chosen import Chosen, choose_adapter
from service.settings.home import Home
from service.settings.load import Settings
from trainer.recipe_file import dump_recipe
from trainer.records import read_evaluation
from trainer.run_dir import RunDirectoryError, read_json

FORMS = {"humaneval": {"entry_point", "test"}, "mbpp": {"test_list"}}
"""The keys by which the first line of a benchmark shows its form. EvalPlus' own files have no tests."""
HELD_OUT_FILES = 1000
"""Held-out files that are measured without --max-samples."""
SUMMARY = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `codelupe evaluate` was asked for, except the adapter."""

    suite: str
    split: str | None
    max_samples: int | None
    samples_per_task: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    style: str | None
    engine: str
    url: str | None
    served_name: str | None
    batch_size: int
    execute: bool

    def arguments(self) -> list[str]:
        """Return the trainer's arguments, except suite, file, adapter and server."""
        plain = {
            "split": self.split, "max-samples": self.max_samples, "samples-per-task": self.samples_per_task,
            "temperature": self.temperature, "top-p": self.top_p, "max-tokens": self.max_tokens, "seed": self.seed,
            "style": self.style, "engine": self.engine, "batch-size": self.batch_size,
        }  # fmt: skip
        given = [text for name, value in plain.items() if value is not None for text in (f"--{name}", str(value))]
        return given + (["--execute"] if self.execute else [])


def needs_rows(suite: str) -> bool:
    """Whether a suite is made of the stream's held-out files."""
    return suite in ("held-out", "fim")


def folder_for(home: Home, options: Options, chosen: Chosen) -> Path:
    """Return the usual folder of the results. A version has its own, so `current` never mixes two."""
    name = "-".join([_suite_name(options.suite), *([options.split] if options.split else []), chosen.label])
    return home.root.absolute() / "evaluations" / name


def evaluate_one(
    settings: Settings, options: Options, adapter: str, *, to: Path | None = None, against: Path | None = None
) -> dict[str, Any]:
    """Evaluate one adapter. Returns evaluation.json, for held-out files with their slices.

    Args:
        to: folder of the results, if not the usual one
        against: folder of the evaluation to compare with

    Raises:
        UsageError, PreconditionError: adapter or suite cannot be found.
        typer.Exit: the trainer ended with an error, which it printed.
    """
    with _inputs(settings, options, adapter) as (chosen, current, file), tempfile.TemporaryDirectory() as scratch:
        folder = to or folder_for(Home(settings.home), options, chosen)
        recipe = Path(scratch) / f"{settings.recipe.name}.yaml"
        recipe.write_text(dump_recipe(with_absolute_folder(settings.recipe)), encoding="utf-8")
        arguments = ["--suite", _suite_name(options.suite), "--file", str(file), *options.arguments()]
        arguments += [] if chosen.folder is None else ["--adapter", str(chosen.folder)]
        arguments += [] if current is None else ["--current", str(current)]
        arguments += [] if against is None else ["--against", str(against)]
        arguments += _server(settings, options, chosen)
        folder.parent.mkdir(parents=True, exist_ok=True)
        code = trainer_commands.evaluate(recipe, folder, arguments, _environment(settings, options))
    if code != 0:
        raise typer.Exit(code if code > 0 else 1)
    return _read(folder, options, chosen)


def other_evaluation(settings: Settings, options: Options, against: str) -> Path:
    """Return the folder of the evaluation to compare with. An adapter is evaluated now, with the same options."""
    if (Path(against) / SUMMARY).is_file():
        return Path(against).absolute()
    return Path(evaluate_one(settings, options, against)["folder"])


@contextmanager
def _inputs(settings: Settings, options: Options, adapter: str) -> Iterator[tuple[Chosen, Path | None, Path]]:
    """Yield the adapter, the current adapter's folder and the file of the suite.

    The database is only opened where it is needed: a benchmark of the base needs none.
    """
    home, stream = Home(settings.home), settings.recipe.stream

    def history() -> list[adapter_table.Adapter]:
        with database(settings) as pool:
            return adapter_table.history(pool, stream)

    chosen = choose_adapter(adapter, home, history)
    if not needs_rows(options.suite):
        yield chosen, None, find_benchmark(options.suite, settings)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "held_out.jsonl"
        with database(settings) as pool:
            now = adapter_table.current(pool, stream)
            limit = options.max_samples or HELD_OUT_FILES
            with rows.open("w", encoding="utf-8") as file:
                for row in read_held_out(pool, stream, seed=options.seed, limit=limit):
                    file.write(row_line(row, row.sha256, run_id=row.run_id))
        if not rows.stat().st_size:
            raise PreconditionError(f"the stream {stream} has no held-out file yet. Its first run makes some")
        current = home.adapter(now.version).absolute() if now else None
        yield chosen, current if options.suite == "held-out" else None, rows


def find_benchmark(suite: str, settings: Settings) -> Path:
    """Return the file of a suite: a path, or the first benchmark of the recipe that has the form.

    Raises:
        UsageError: there is none.
    """
    if suite not in FORMS:
        if not Path(suite).is_file():
            raise UsageError(f"--suite {suite!r} is neither {', '.join(FORMS)}, held-out, fim, nor a file")
        return Path(suite).absolute()
    named = [Path(path).expanduser() for path in settings.recipe.hygiene.benchmarks]
    for path in named:
        if FORMS[suite] <= set(_first_record(path)):
            return path.absolute()
    known = f"None of {', '.join(map(str, named))} has its form" if named else "The recipe names no benchmark"
    raise UsageError(
        f"--suite {suite}: there is no such file. {known} (hygiene.benchmarks, BENCHMARK_FILES). "
        "List it there, which also keeps its tasks out of the training, or name the file: --suite PATH"
    )


def _first_record(path: Path) -> dict[str, Any]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            found = json.loads(next((line for line in file if line.strip()), "{}"))
    except (OSError, EOFError, ValueError) as error:
        raise PreconditionError(
            f"the benchmark {path} cannot be read ({error}). Correct hygiene.benchmarks (BENCHMARK_FILES)"
        ) from error
    return found if isinstance(found, dict) else {}


def _suite_name(suite: str) -> str:
    return suite if suite in FORMS or needs_rows(suite) else Path(suite).name.split(".")[0]


def _server(settings: Settings, options: Options, chosen: Chosen) -> list[str]:
    if options.engine != "openai":
        return []
    name = options.served_name or chosen.served_name
    if name is None and chosen.folder is None:
        name = settings.recipe.base.model
    if options.url is None or name is None:
        raise UsageError(
            "--engine openai needs the server's address (--url or VLLM_URL), and --served-name for an adapter folder"
        )
    return ["--url", options.url, "--served-name", name]


def _environment(settings: Settings, options: Options) -> dict[str, str]:
    """What the trainer's process may know beyond the usual."""
    known = {
        "HF_TOKEN": settings.trainer_secrets.get("HF_TOKEN"),
        "VLLM_API_KEY": settings.vllm_api_key if options.engine == "openai" else None,
        "SANDBOX_SOCKET": settings.sandbox_socket if options.execute else None,
    }
    return {name: value for name, value in known.items() if value}


def _read(folder: Path, options: Options, chosen: Chosen) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(folder / SUMMARY)
        if options.suite == "held-out":
            samples = list(read_evaluation(folder / "evaluation.jsonl"))
            found["slices"] = as_record(slices(samples))
            found["bootstrap"] = {
                model: asdict(interval)
                for model in ("current", "anchor")
                if (interval := bootstrap_interval(samples, against=model, seed=options.seed))
            }
    except (OSError, ValueError, RunDirectoryError) as error:
        raise PreconditionError(f"{folder} cannot be read ({error})") from error
    return {"folder": str(folder), "adapter": chosen.label, **found}
