"""`codelupe up`: all stages from an empty folder to a running service, one line each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from db import adapters, holds, runs, streams
from db.errors import DatabaseError
from db.pool import Pool
from service import logs
from service.admission.contamination import Benchmarks
from service.alerts.alerting import alerting
from service.alerts.targets import open_targets
from service.cycle.daemon import Daemon
from service.cycle.stop_signals import stop_signals
from service.cycle.watchdog import watched
from service.database import check_pooler, get_ready, open_pool
from service.errors import ServiceError
from service.gate.judge import Verdict
from service.intake import demo
from service.logs import PrintProgress
from service.logs import event as log
from service.publish.rollback import roll_back
from service.publish.serving import serving
from service.settings.home import Home, address_noted, only_service
from service.settings.load import Settings
from service.start import bind_stream, database_url, first_snapshot, prepared_recipe, stage
from service.web.api import Commands
from service.web.board import Board
from service.web.http import Actions, HttpServer, Site, create_app, listen
from service.web.views import Views


def up(settings: Settings, *, once: bool, demo_corpus: bool, show: PrintProgress) -> Verdict | None:
    """Run the service until it is stopped, or with `once` until a verdict. Returns the last verdict.

    Raises:
        PreconditionError: folder, port, database, base model or a benchmark is not available.
        UsageError: the recipe does not fit its base model.
        SettingsError: an address of ALERT_URLS is wrong.
        ServiceError: with `once`, there is no verdict, because something must be put right first.
    """
    hygiene = settings.recipe.hygiene
    Benchmarks(hygiene.benchmarks, hygiene.benchmark_gram_words)  # fails now for an unreadable file, not at a claim
    targets = open_targets(settings.alert_urls)
    home = Home(settings.home)
    stop = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(stop_signals(stop))
        home.prepare()
        stack.enter_context(only_service(home))
        logs.set_up(settings.log_format, home.log_file)
        listening = listen(settings.metrics_host, settings.metrics_port)
        stack.callback(listening.close)
        board = Board(first_snapshot(settings))
        url = database_url(settings, home, stack, show)
        pool = open_pool(settings, url)
        stack.callback(pool.close)
        views = Views(pool, board, settings)
        site = Site(
            views=views,
            commands=commands(pool, settings, home, board),
            host=settings.metrics_host,
            public_url=settings.public_url,
        )
        server = HttpServer(create_app(board, actions(pool, settings), token=settings.token, site=site), listening)
        server.start()
        stack.callback(server.close)
        stack.enter_context(address_noted(home, *listening.getsockname()[:2]))
        with stage(show, "migrations") as note:
            applied = get_ready(pool, settings)
            note(f"{', '.join(applied)} applied" if applied else "up to date", applied=applied)
        views.open()
        check_pooler(pool)
        recipe = prepared_recipe(settings, show, stop, board)
        if recipe is None:
            return None
        board.update(model=recipe.base.model)
        bind_stream(pool, settings, recipe)
        _show_addresses(listening.getsockname(), home, settings, show)
        if settings.vllm_url is not None:
            stack.enter_context(serving(settings.vllm_url, settings.vllm_api_key, home, board))
        daemon = Daemon(settings, recipe, home, pool, board, stop, once)
        if demo_corpus:
            stack.enter_context(_demo_corpus(pool, settings, board, stop, show))
        with alerting(targets, settings, board, once=once), watched(board):
            daemon.run()
        show("stopping", "")
        stop.set()
        if once and daemon.verdict is None and daemon.problem is not None:
            raise ServiceError(f"no verdict: {daemon.problem}")
        return daemon.verdict


def _show_addresses(address: tuple[Any, ...], home: Home, settings: Settings, show: PrintProgress) -> None:
    host, port = address[0], address[1]
    shown = f"[{host}]" if ":" in host else host
    shown = {"0.0.0.0": "127.0.0.1", "[::]": "127.0.0.1"}.get(shown, shown)
    url = settings.public_url or f"http://{shown}:{port}"
    pointer = home.pointer(settings.recipe.stream)
    show("page", f"{url}/", url=f"{url}/")
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


def commands(pool: Pool, settings: Settings, home: Home, board: Board) -> Commands:
    """What the page and /api/v1 may ask of the service."""
    stream = settings.recipe.stream

    def train() -> str:
        streams.request_training(pool, stream)
        return "a run starts as soon as possible"

    def pause(stop_training: bool) -> str:
        holds.hold(pool, stream, stop_training=stop_training)
        match board.read().state:
            case "training" if stop_training:
                return "paused. The run in progress saves a checkpoint and stops"
            case "claiming" | "training" | "judging":
                return "no new run starts. The run in progress goes on to its verdict"
        return "no new run starts"

    def resume() -> str:
        return "the service goes on" if holds.release(pool, stream) else "the service was not paused"

    def back(version: int) -> str:
        said = roll_back(pool, home, stream, version)
        current = adapters.current(pool, stream)
        if current is not None:
            board.note(current_version=current.version, current_published_at=current.published_at)
        log("Rolled back", version=version)
        return said

    return Commands(train=train, pause=pause, resume=resume, roll_back=back)
