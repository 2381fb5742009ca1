"""A service in its own process, with its own database and folder, and a producer.

The process is forked from one that has already imported everything, so a start takes a tenth of a second instead of
three. It skips what `codelupe up` does before its loop (resolving the base). The loop and everything below it is real.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import full
import psycopg2
from crashing import Crash, crash_at, record
from full import DiskFault
from oracle import Broken, Count, ProducerLog, check_pointer, count, lineage
from psycopg2 import sql
from psycopg2.extensions import make_dsn
from psycopg2.extras import execute_values

from db import audit, embedded, migrate, sentinel, streams
from db import pool as pools
from db.pool import Pool
from service import logs
from service.cycle import daemon, launch, leadership, pausing, settle, waiting
from service.database import open_pool
from service.settings.environment import PROJECT_RECIPES
from service.settings.home import Home, only_service
from service.settings.load import Settings, load_settings
from service.up import actions
from service.web.board import Board, Snapshot
from service.web.http import HttpServer, create_app, listen
from trainer.recipe import Recipe, pinned
from trainer.recipe_file import with_overrides
from trainer.run_dir import read_json, write_text

HERE = Path(__file__).parent
STUB = (sys.executable, "-S", str(HERE / "stub_trainer.py"))
REAL = (sys.executable, "-m", "trainer")
SETTLE_SECONDS = 60.0
WORDS = ("read", "write", "open", "close", "merge", "split", "count", "total", "index", "value", "node", "left", "next",
         "last", "item", "group", "cache", "token", "batch", "frame", "state", "event", "limit", "range", "shift",
         "scale", "first", "depth")  # fmt: skip
INSERT = "insert into code_files (repository, path, language, content, quality_score) values %s returning id"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a service."""

    url: str
    home: Path
    crash: Crash | None = None
    points: Path | None = None
    """The file for the crash points that are passed."""
    disk: DiskFault | None = None
    disk_points: Path | None = None
    """The file for the points at which something is written."""
    board: Path | None = None
    """The file for the answer of /health, each time that it changes."""
    trainer: tuple[str, ...] = STUB
    """The command that replaces `python -m trainer`."""
    revision: str = "r" * 40
    """The revision of the tiny base. The stub ignores it."""
    settings: tuple[tuple[str, str], ...] = ()
    lease_seconds: float | None = None
    http: Path | None = None
    """The file for the HTTP address; without it, the service has no HTTP server."""
    hygiene: tuple[tuple[str, str], ...] = ()
    """Overrides the recipe's hygiene settings."""
    held_out_fraction: float | None = None
    recipe: tuple[tuple[str, Any], ...] = ()
    """Overrides of the recipe, by keys with dots."""
    status_file: Path | None = None
    """The file for the state of the pool and of health, written 20 times a second."""
    short_timeouts: bool = False
    """Whether a silent or unavailable database is checked about ten times as often as usual."""
    once: bool = False
    first_pause_seconds: float = 0.1


def code(number: int, lines: int = 14) -> str:
    """Return a text that is unique to this number."""
    chance = random.Random(number)

    def word() -> str:
        return f"{chance.choice(WORDS)}_{chance.choice(WORDS)}_{chance.randrange(1000)}"

    body = "".join(f"    {word()} = {word()}({word()}, {chance.randrange(10**6)})\n" for _ in range(lines))
    return f"def {word()}_{number}({word()}, {word()}):\n{body}    return {word()}\n"


# --- the service's process ------------------------------------------------------------------------------------


def settings_of(options: Options) -> Settings:
    """Return settings with small runs and short waits."""
    given = {
        "CODELUPE_HOME": str(options.home),
        "DATABASE_URL": options.url,
        "MIN_NEW_FILES": "1",
        "CHECK_INTERVAL": "0.1",
        "SWEEP_INTERVAL": "0.5",
        "MAX_ATTEMPTS": "1000",
        "KEEP_ADAPTERS": "5",
        **dict(options.settings),
    }
    return load_settings(PROJECT_RECIPES / "embedded.yaml", environment=given, env_file=None)


def recipe_of(settings: Settings, options: Options) -> Recipe:
    recipe = pinned(settings.recipe, model="tiny-qwen2", revision=options.revision)
    recipe = with_overrides(recipe, dict(options.recipe))
    changes: dict[str, Any] = dict(options.hygiene)
    fraction = options.held_out_fraction
    return replace(
        recipe,
        data=replace(
            recipe.data,
            min_held_out=2,
            max_eval_tokens=10**7,
            held_out_fraction=recipe.data.held_out_fraction if fraction is None else fraction,
        ),
        hygiene=replace(recipe.hygiene, **changes),
        gate=replace(recipe.gate, evidence="point", examination=False),  # stand-ins train, and the faults are elsewhere
    )


def write_status(path: Path, pool: Pool, board: Board) -> None:
    """Write the state of the pool and the service to a file, atomically."""
    status, reason = board.read().health()
    new = path.with_suffix(".new")
    new.write_text(
        json.dumps(
            {
                **vars(pool.stats()),
                "taken": len(pool._connections._used),  # type: ignore[attr-defined]  # psycopg2's own count
                "status": status,
                "reason": reason,
                "threads": threading.active_count(),
                "blocks": sys.getallocatedblocks(),
                "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
            }
        )
    )
    new.replace(path)


@contextmanager
def status_written(path: Path | None, pool: Pool, board: Board) -> Iterator[None]:
    """Write the status file repeatedly inside the block, and once at its end."""
    if path is None:
        yield
        return
    done = threading.Event()

    def write() -> None:
        while not done.wait(0.05):
            write_status(path, pool, board)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield
    done.set()
    thread.join()
    write_status(path, pool, board)


def serve(options: Options) -> None:
    """Run the service until SIGTERM."""
    if options.points is not None:
        record(options.points)
    if options.crash is not None:
        crash_at(options.crash)
    if options.disk_points is not None:
        full.record(options.disk_points)
    if options.disk is not None:
        full.fail_at(options.disk)
    pausing.FIRST_PAUSE_SECONDS = options.first_pause_seconds
    settle.REFUSED_DELAY_SECONDS, waiting.GATHERING_SECONDS = 0.05, 0.02
    if options.short_timeouts:
        daemon.DATABASE_PAUSE_SECONDS, daemon.LONGEST_DATABASE_PAUSE_SECONDS = 0.1, 1.0
        pools.CONNECT_TIMEOUT_SECONDS = 3
        sentinel.PROBE_AFTER_SECONDS, sentinel.CHECK_SECONDS, sentinel.ANSWER_SECONDS = 1.0, 0.1, 0.7
    waiting.LISTEN_SECONDS = launch.WATCH_SECONDS = 0.02
    launch.TRAINER = options.trainer
    if options.lease_seconds is not None:
        leadership.LEASE_SECONDS, leadership.RENEW_SECONDS = options.lease_seconds, options.lease_seconds / 4
        leadership.STAND_IN_SECONDS = options.lease_seconds / 3
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings, home = settings_of(options), Home(options.home)
    home.prepare()
    output = os.open(options.home / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    recipe = recipe_of(settings, options)
    with only_service(home):
        logs.set_up("text", home.log_file)
        pool, board = open_pool(settings, options.url), Board(Snapshot())
        if options.http is not None:
            serve_http(options.http, pool, settings, board)
        if options.board is not None:
            threading.Thread(target=note_health, args=(board, options.board), daemon=True).start()
        with status_written(options.status_file, pool, board):
            daemon.Daemon(settings, recipe, home, pool, board, stop, options.once).run()
        pool.close()
    os._exit(0)


def serve_http(path: Path, pool: Pool, settings: Settings, board: Board) -> None:
    """Start the HTTP server, and write its address to a file."""
    listening = listen("127.0.0.1", 0)
    HttpServer(create_app(board, actions(pool, settings), token=None), listening).start()
    write_text(path, f"127.0.0.1:{listening.getsockname()[1]}")


def note_health(board: Board, path: Path) -> None:
    """Write every change of the health status to a file."""
    descriptor, before = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), ""
    while True:
        health = ": ".join(board.read().health())
        if health != before:
            os.write(descriptor, f"{health}\n".encode())
            before = health
        time.sleep(0.005)


os.environ["PYTHONPATH"] = f"{HERE}{os.pathsep}{HERE.parents[1]}"  # the fork server does not inherit sys.path
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["scene"])


def in_process(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Call a function of one of the suite's modules in a new process."""
    process = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


class Service:
    """One start of the service."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.process: BaseProcess = _CONTEXT.Process(target=serve, args=(options,), daemon=True)
        self.process.start()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()

    def terminate(self, within: float) -> float:
        """Send SIGTERM. Return the seconds until the service ended.

        Raises:
            Broken: the service did not end in time, or not with exit code 0.
        """
        began = time.monotonic()
        self.process.terminate()
        self.process.join(within)
        if self.process.exitcode is None:
            self.kill()
            raise Broken(f"SIGTERM: still running after {within:.0f} s")
        if self.process.exitcode != 0:
            raise Broken(f"SIGTERM: ended with {self.process.exitcode}")
        return time.monotonic() - began

    def ended(self, within: float) -> bool:
        """Return whether the service ends by itself within this time."""
        self.process.join(within)
        return self.process.exitcode is not None


# --- its surroundings -----------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A database, a folder, a producer's log, and at most one service."""

    folder: Path
    url: str
    given: tuple[tuple[str, str], ...] = ()
    """Settings of all its services."""
    options: Options = field(init=False)
    service: Service | None = None
    made: int = 0
    """How many files have been inserted."""
    had_pointer: bool = False
    """Whether an earlier check found a live adapter. From then on there must always be one."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.options = Options(url=self.url, home=self.folder / "home", settings=self.given)
        self.home = Home(self.options.home)
        self.log = ProducerLog(self.folder / "produced")
        self.settings = settings_of(self.options)
        self.stream = self.settings.recipe.stream
        pool = Pool(self.url)
        migrate.apply(pool)
        binding = streams.Binding(source="code_files", base_model="tiny-qwen2", base_revision="r" * 40, lora={})
        streams.bind(pool, self.stream, binding)
        pool.close()

    @property
    def pointer(self) -> Path:
        return self.home.pointer(self.stream)

    def produce(self, files: int, *, lines: int = 14) -> list[int]:
        """Insert files, and log their ids after the COMMIT has returned."""
        records = [
            (f"r{n % 5}", f"p/{n}.py", "python", code(n, lines), 90.0) for n in range(self.made, self.made + files)
        ]
        self.made += files
        connection = psycopg2.connect(self.url)
        with connection, connection.cursor() as cursor:
            ids = [number for (number,) in execute_values(cursor, INSERT, records, fetch=True)]
        connection.close()
        self.log.add(ids)
        return ids

    def start(self, **options: Any) -> Service:
        """Start the service."""
        self.service = Service(replace(self.options, **options))
        return self.service

    def stop(self) -> None:
        """Kill the service if it runs."""
        if self.service is not None and self.service.process.exitcode is None:
            self.service.kill()
        self.service = None

    def counted(self) -> Count:
        return count(self.log.ids(), self.pointer, self.home.runs)

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Wait until every row is consumed, then check everything.

        Raises:
            Broken: not every row is consumed in time, or the pointer or the audit is bad.
        """
        deadline = time.monotonic() + seconds
        while not (found := self.counted()).settled:
            if time.monotonic() > deadline or found.twice or found.phantom:
                raise Broken(f"{found}; {self.log_tail()}")
            self.check_pointer()
            if self.service is None or self.service.process.exitcode is not None:
                raise Broken(f"the service ended; {found}; {self.log_tail()}")
            time.sleep(0.02)
        self.check()

    def check(self) -> None:
        """Check the pointer, the stub's own list of consumed rows, and the audit."""
        self.check_pointer()
        listed = self.pointer / "consumed.json"
        if listed.exists():
            ids = read_json(listed)
            by_runs = [o for run in lineage(self.pointer, self.home.runs) for o in trained(run)]
            if sorted(ids) != sorted(by_runs):
                raise Broken("the adapter's own list of consumed rows differs from that of its runs")
        pool = Pool(self.url)
        try:
            problems = audit.audit(pool, self.settings.source, self.settings.eligibility, self.stream).problems
        finally:
            pool.close()
        if problems:
            raise Broken(f"audit: {'; '.join(problems)}")

    def check_pointer(self) -> None:
        """Check that the live adapter can be loaded, if there ever was one.

        Raises:
            Broken: it cannot be loaded, or it is gone.
        """
        check_pointer(self.pointer)
        if self.had_pointer and not self.pointer.is_symlink():
            raise Broken(f"{self.pointer} is gone")
        self.had_pointer = self.pointer.is_symlink()

    def log_tail(self) -> str:
        """Return the last lines of the service's log."""
        path = self.home.log_file
        return "".join(path.read_text().splitlines(keepends=True)[-8:]) if path.exists() else "no log"


def trained(run: Any) -> list[int]:
    """Return the ids that a run was trained on."""
    from trainer.records import read_outcomes

    return [outcome.file_id for outcome in read_outcomes(run.rows_outcome) if outcome.outcome == "trained"]


def new_database(server: str, name: str) -> str:
    """Create an empty database on a server. Return its URL."""
    connection = psycopg2.connect(server)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        cursor.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    connection.close()
    return str(make_dsn(server, dbname=name))


@contextmanager
def scene(folder: Path, server: str, name: str) -> Iterator[Scene]:
    """Create a scene with its own database."""
    made = Scene(folder, new_database(server, name))
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def server(folder: Path, *, durable: bool = False) -> Iterator[str]:
    """Start a Postgres server, and yield its URL. Without `durable` it does not sync to disk, which only a power cut
    would reveal."""
    url = embedded.start(folder)
    try:
        if not durable:
            connection = psycopg2.connect(url)
            connection.autocommit = True
            with connection.cursor() as cursor:
                for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
                    cursor.execute(f"alter system set {setting}")
                cursor.execute("select pg_reload_conf()")
            connection.close()
        yield url
    finally:
        embedded.stop(folder)
