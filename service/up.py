"""`codelupe up`: all stages from an empty folder to a running service, one line each."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from db import adapters, embedded, runs, streams
from db.errors import DatabaseError, StreamMismatch
from db.pool import Pool
from service import logs
from service.admission.contamination import Benchmarks
from service.cycle.daemon import Daemon
from service.cycle.stop_signals import stop_signals
from service.cycle.trainer_commands import prepare_base, with_absolute_folder
from service.cycle.watchdog import watched
from service.database import check_pooler, get_ready, open_pool, shown_url
from service.errors import PreconditionError, ServiceError, UsageError
from service.gate.judge import Verdict
from service.intake import demo
from service.logs import PrintProgress
from service.publish.serving import serving
from service.settings.home import Home, only_service
from service.settings.load import Settings
from service.web.board import Board, Snapshot
from service.web.http import Actions, HttpServer, create_app, listen
from trainer.recipe import Recipe, pinned
from trainer.recipe_file import dump_recipe


class Note(Protocol):
    """Records the result of a stage."""

    def __call__(self, text: str, /, **fields: Any) -> None: ...


def up(settings: Settings, *, once: bool, demo_corpus: bool, show: PrintProgress) -> Verdict | None:
    """Run the service until it is stopped, or with `once` until a verdict. Returns the last verdict.

    Raises:
        PreconditionError: folder, port, database, base model or a benchmark is not available.
        UsageError: the recipe does not fit its base model.
        ServiceError: with `once`, there is no verdict, because something must be put right first.
    """
    hygiene = settings.recipe.hygiene
    Benchmarks(hygiene.benchmarks, hygiene.benchmark_gram_words)  # fails now for an unreadable file, not at a claim
    home = Home(settings.home)
    stop = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(stop_signals(stop))
        home.prepare()
        stack.enter_context(only_service(home))
        logs.set_up(settings.log_format, home.log_file)
        listening = listen(settings.metrics_host, settings.metrics_port)
        stack.callback(listening.close)
        board = Board(_first_snapshot(settings))
        url = _database_url(settings, home, stack, show)
        pool = open_pool(settings, url)
        stack.callback(pool.close)
        server = HttpServer(create_app(board, actions(pool, settings), token=settings.token), listening)
        server.start()
        stack.callback(server.close)
        with _stage(show, "migrations") as note:
            applied = get_ready(pool, settings)
            note(f"{', '.join(applied)} applied" if applied else "up to date", applied=applied)
        check_pooler(pool)
        recipe = _prepare(settings, show, stop, board)
        if recipe is None:
            return None
        board.update(model=recipe.base.model)
        _bind(pool, settings, recipe)
        _show_addresses(listening.getsockname(), home, settings, show)
        if settings.vllm_url is not None:
            stack.enter_context(serving(settings.vllm_url, settings.vllm_api_key, home, board))
        daemon = Daemon(settings, recipe, home, pool, board, stop, once)
        if demo_corpus:
            stack.enter_context(_demo_corpus(pool, settings, board, stop, show))
        with watched(board):
            daemon.run()
        show("stopping", "")
        stop.set()
        if once and daemon.verdict is None and daemon.problem is not None:
            raise ServiceError(f"no verdict: {daemon.problem}")
        return daemon.verdict


@contextmanager
def _stage(show: PrintProgress, name: str) -> Iterator[Note]:
    """Print one line for a stage, with its result and duration."""
    notes: list[tuple[str, dict[str, Any]]] = []
    began = time.monotonic()

    def note(text: str, /, **fields: Any) -> None:
        notes.append((text, fields))

    yield note
    for text, fields in notes:  # empty if the stage was interrupted
        show(name, text, **fields, seconds=round(time.monotonic() - began, 3))


def _first_snapshot(settings: Settings) -> Snapshot:
    recipe = settings.recipe
    return Snapshot(
        stream=recipe.stream,
        model=recipe.base.model,
        batch_size=recipe.training.batch_size,
        lora_rank=recipe.lora.rank,
        min_new_files=settings.min_new_files,
    )


def _database_url(settings: Settings, home: Home, stack: ExitStack, show: PrintProgress) -> str:
    if settings.database_url is not None:
        show("database", shown_url(settings.database_url))
        return settings.database_url
    with _stage(show, "database") as note:
        try:
            url = embedded.start(home.postgres)
        except DatabaseError as error:
            raise PreconditionError(str(error)) from error
        stack.callback(embedded.stop, home.postgres)
        note(f"embedded PostgreSQL in {home.postgres}", folder=str(home.postgres))
    return url


def _prepare(settings: Settings, show: PrintProgress, stop: threading.Event, board: Board) -> Recipe | None:
    """Resolve the base and pin it in the recipe. Returns None if `stop` is set meanwhile."""
    recipe = with_absolute_folder(settings.recipe)
    with _stage(show, "base model") as note, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        logged = settings.log_format != "text"
        done = prepare_base(path, settings.trainer_secrets, stop, board.beat, capture_stderr=logged)
        for line in filter(str.strip, (done.stderr or "").splitlines()):
            logs.event("Base model", level=logging.WARNING, said=line)
        if stop.is_set():
            note("stopping")
            return None
        if done.returncode == 2:  # stderr has the reason
            raise UsageError(f"recipe {settings.recipe.name} does not fit the base model {settings.recipe.base.model}")
        if done.returncode != 0:
            raise PreconditionError(
                f"preparing the base model failed (exit code {done.returncode}). See the messages above"
            )
        facts = json.loads(done.stdout.splitlines()[-1])
        note(f"{facts['model']} at {facts['revision'][:12]}, {facts['parameters'] / 1e6:,.1f} M parameters", **facts)
    return pinned(recipe, model=facts["model"], revision=facts["revision"])


def _bind(pool: Pool, settings: Settings, recipe: Recipe) -> None:
    """Bind the stream to its source, base and LoRA shape. Fails if it is bound to others."""
    lora = recipe.lora
    binding = streams.Binding(
        source=settings.source.name,
        base_model=recipe.base.model,
        base_revision=recipe.base.revision or "",
        lora={"rank": lora.rank, "alpha": lora.alpha, "targets": sorted(lora.targets)},
    )
    try:
        streams.bind(pool, recipe.stream, binding)
    except StreamMismatch as error:
        raise PreconditionError(str(error)) from error


def _show_addresses(address: tuple[Any, ...], home: Home, settings: Settings, show: PrintProgress) -> None:
    host, port = address[0], address[1]
    shown = f"[{host}]" if ":" in host else host
    shown = {"0.0.0.0": "127.0.0.1", "[::]": "127.0.0.1"}.get(shown, shown)
    url = settings.public_url or f"http://{shown}:{port}"
    pointer = home.pointer(settings.recipe.stream)
    show("ready", f"{url}/health   {url}/metrics", health=f"{url}/health", metrics=f"{url}/metrics")
    show("adapter", f"{pointer} (once published)", path=str(pointer))
    show("log", str(home.log_file), path=str(home.log_file))


@contextmanager
def _demo_corpus(
    pool: Pool, settings: Settings, board: Board, stop: threading.Event, show: PrintProgress
) -> Iterator[None]:
    """Insert the demo corpus in a thread. A failure is shown on /health."""
    if not demo.wanted(pool, settings.source):
        yield
        return

    def on_batch(number: int, files: int) -> None:
        show("corpus", f"batch {number}: {files} files of Python's standard library", batch=number, files=files)

    def feed() -> None:
        try:
            demo.feed(pool, settings, stop, on_batch)
        except DatabaseError as error:
            board.trouble("corpus", f"the demo corpus was only partly inserted: {error}. Restart the service")

    thread = threading.Thread(target=feed, name="demo corpus", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def actions(pool: Pool, settings: Settings) -> Actions:
    """The database operations that the HTTP API needs."""
    stream = settings.recipe.stream
    return Actions(
        request_training=lambda: streams.request_training(pool, stream),
        run_history=lambda: [
            {key: value for key, value in asdict(run).items() if key != "report"}
            for run in runs.history(pool, stream, limit=50)
        ],
        adapter_history=lambda: [asdict(adapter) for adapter in adapters.history(pool, stream, limit=50)],
    )
