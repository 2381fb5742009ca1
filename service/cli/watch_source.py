"""What `status --watch` looks at: the folder's running service, else the database and the run's own events."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from db import adapters, chunks, embedded, history, runs
from db import lease as leases
from db.chunks import Pending
from db.errors import DatabaseError
from db.pool import Pool
from service.cycle.watch import Watcher
from service.database import database
from service.errors import PreconditionError
from service.settings.home import Home, running_service, service_address
from service.settings.load import Settings
from service.web.board import Board, Snapshot
from service.web.overview import counted, live_adapter
from service.web.pipeline import pipeline
from service.web.probe import address
from service.web.schema import plain

TIMEOUT_SECONDS = 3.0
SHOWN_RUNS = 60
MOST_BYTES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is known at one moment."""

    source: Literal["service", "database"]
    now: Mapping[str, Any]
    """As /api/v1/overview answers. From the database, it has what is known there."""
    runs: Sequence[Mapping[str, Any]]
    """The last runs, newest first, as /api/v1/runs answers."""
    note: str | None = None
    """What is wrong with the source."""

    def as_json(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {"source": self.source, "note": self.note, **self.now, "runs": list(self.runs)}


class Looker:
    """Looks at a stream again and again."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._home = settings, Home(settings.home)
        self._stored: Moment | None = None
        """What the database of a folder without a service says. Nobody changes it."""
        self._last: Moment | None = None

    def look(self) -> Moment:
        """Return what is known now.

        Raises:
            PreconditionError, DatabaseError: at the first look, neither a service nor the database answers.
        """
        if (where := service_address(self._home)) is not None:
            self._stored = None
            try:
                self._last = _ask(*where)
                return self._last
            except (OSError, ValueError) as error:
                note = f"the service at {where[0]}:{where[1]} does not answer ({error})"
        else:
            note = None
        if self._stored is None or self._changes():
            try:
                self._stored = self._last = self._read()
            except (DatabaseError, PreconditionError) as error:
                if self._last is None:
                    raise
                old = self._last
                return Moment(source="database", now=old.now, runs=old.runs, note=f"as it was: {note or error}")
        found = self._stored
        return Moment(source=found.source, now=found.now, runs=found.runs, note=note)

    def _changes(self) -> bool:
        """Whether somebody else may change the database. Starting an embedded one only to look costs a second."""
        return self._settings.database_url is not None or embedded.running_url(self._home.postgres) is not None

    def _read(self) -> Moment:
        with database(self._settings) as pool:
            return from_database(pool, self._settings, self._home)


def _ask(host: str, port: int) -> Moment:
    """Ask the service. Ignores the environment's proxy.

    Raises:
        OSError, ValueError: it does not answer, or not as expected.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(path: str) -> Any:
        with direct.open(f"http://{address(host)}:{port}/api/v1/{path}", timeout=TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read(MOST_BYTES))

    now = get("overview")
    try:
        found = get(f"runs?limit={SHOWN_RUNS}")["runs"]
    except OSError:  # the database does not answer, which the overview says
        found = []
    return Moment(source="service", now=now, runs=found)


def from_database(pool: Pool, settings: Settings, home: Home) -> Moment:
    """Return what the database knows, and what the events of a run in this folder say."""
    stream = settings.recipe.stream
    totals, current, live = runs.totals(pool, stream), adapters.current(pool, stream), runs.live(pool, stream)
    held = leases.holder(pool, stream)
    waiting = Pending(
        rows=chunks.count(pool, settings.source, settings.eligibility, stream), oldest_age_seconds=None, ineligible={},
        unknown_ranges=0, oldest_sweep_age_seconds=None, at=datetime.now(UTC),
    )  # fmt: skip
    seen = Snapshot(
        stream=stream, pending=waiting, totals=totals, rows_in_run=totals.rows.get("claimed", 0), current_known=True,
        current_version=current.version if current else None,
        current_published_at=current.published_at if current else None,
    )  # fmt: skip
    board = Board(seen)
    if live is not None and (directory := home.run(live.run_id)).events.is_file():
        Watcher(directory, live.run_id, board).skip_history()
    pid = running_service(home)
    now = board.read()
    known = {
        "sentence": _sentence(now, live, pid, held[0] if held else None), "status": "unknown", "troubles": {},
        "state": live.state if live else "no run", "stream": stream, "model": settings.recipe.base.model,
        "current_version": now.current_version, "run": now.progress, "losses": now.losses, "pipeline": pipeline(now),
    }  # fmt: skip
    return Moment(
        source="database", now=plain(known), runs=plain(history.runs(pool, stream, before=None, limit=SHOWN_RUNS))
    )


def _sentence(seen: Snapshot, live: runs.Run | None, pid: int | None, holder: str | None) -> str:
    """Return the state in one line, as the service's own sentence does."""
    if pid is not None:
        who = f"Process {pid} works in this folder"
    else:
        who = "No service runs in this folder" + (f", another one has the stream ({holder})" if holder else "")
    parts = [live_adapter(seen), f"{counted(seen.pending.rows if seen.pending else 0, 'file')} waiting"]
    if live is not None:
        state = live.state if pid is not None or holder else f"{live.state}: the next start goes on with it"
        parts.insert(0, f"run {live.run_id} is {state}")
    return f"{who}. {', '.join(parts)[:1].upper()}{', '.join(parts)[1:]}."
