"""/api/v1: everything the page shows, and what it can do, in one table."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from flask import request

from service.web.board import Board
from service.web.endpoint import MAX_ID, Endpoint, Parameter
from service.web.overview import Overview, overview
from service.web.views import (
    AdapterPage,
    Answers,
    FilePage,
    LogTail,
    QualitySeries,
    RowDetail,
    RowPage,
    RunCurvesPage,
    RunDetail,
    RunPage,
    Views,
)

LEAST_ID = -MAX_ID - 1
Disposition = Literal["claimed", "learning", "trained", "held_out", "rejected", "quarantined", "returned"]


@dataclass(frozen=True, kw_only=True)
class Commands:
    """What a person may ask of the service. Each returns one sentence about what happens now."""

    train: Callable[[], str]
    pause: Callable[[bool], str]
    """The argument: whether the run in progress stops too."""
    resume: Callable[[], str]
    roll_back: Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """The body of a command without arguments."""


@dataclass(frozen=True, kw_only=True)
class Pause:
    """The body of `pause`."""

    stop_training: bool = False
    """Whether the run in progress saves a checkpoint and waits too."""


@dataclass(frozen=True, kw_only=True)
class RollBack:
    """The body of `rollback`."""

    version: int
    """Between 1 and 2^63 - 1."""


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A command that was accepted."""

    accepted: bool
    said: str
    """What happens now."""


class Pace:
    """How often a page should ask. With many pages open, each asks less often, so that training keeps the machine."""

    LEAST_SECONDS, MOST_SECONDS, PAGES_PER_SECOND, WINDOW_SECONDS = 2.0, 60.0, 3.0, 10.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began, self._asked = time.monotonic(), 0
        self._seconds = self.LEAST_SECONDS

    def seconds(self) -> float:
        """Count one request, and return the seconds until the next one of the same page."""
        with self._lock:
            self._asked += 1
            passed = time.monotonic() - self._began
            if passed >= self.WINDOW_SECONDS:
                pages = self._asked / passed * self._seconds
                self._seconds = min(self.MOST_SECONDS, max(self.LEAST_SECONDS, pages / self.PAGES_PER_SECOND))
                self._began, self._asked = time.monotonic(), 0
            return round(self._seconds, 1)


def endpoints(board: Board, views: Views, commands: Commands, *, token: str | None) -> list[Endpoint]:
    """Return all endpoints of /api/v1."""
    pace = Pace()

    def row(file_id: int) -> RowDetail:
        shows_text = "Authorization" in request.headers
        return views.row(file_id, with_text=shows_text)

    def limit(default: int, most: int) -> Parameter:
        return Parameter(name="limit", help="Most entries of the answer.", default=default, most=most)

    points = Parameter(name="points", help="Most points of a curve.", default=300, least=2, most=600)
    run_id = Parameter(name="run_id", help="A run.", in_path=True, is_required=True)
    before = Parameter(name="before", help="Only lower ids: the next page.")
    return [
        Endpoint(path="overview", summary="The state at this moment", returns=Overview, errors=(),
                 answer=lambda: overview(board.read(), can_act=token is not None, poll_seconds=pace.seconds())),
        Endpoint(path="runs", summary="Runs, newest first", returns=RunPage, errors=(429, 503),
                 parameters=(before, limit(50, 500)), answer=views.runs),
        Endpoint(path="runs/{run_id}", summary="A run with its report and verdict", returns=RunDetail,
                 errors=(404, 429, 503), parameters=(run_id,), answer=views.run),
        Endpoint(path="runs/{run_id}/curves", summary="Loss, learning rate and speed of a run, down-sampled",
                 returns=RunCurvesPage, errors=(404, 429, 503), parameters=(run_id, points), answer=views.curves),
        Endpoint(path="runs/{run_id}/files", summary="The files of a run, without their texts", returns=FilePage,
                 errors=(404, 429, 503), answer=views.files,
                 parameters=(run_id, Parameter(name="after", help="Only higher ids: the next page.", default=LEAST_ID,
                                               least=LEAST_ID), limit(100, 1000))),
        Endpoint(path="quality", summary="What the judged runs measured, oldest first, down-sampled",
                 returns=QualitySeries, errors=(429, 503), parameters=(points,), answer=views.quality),
        Endpoint(path="adapters", summary="Published adapters, newest first", returns=AdapterPage, errors=(429, 503),
                 parameters=(limit(50, 500),), answer=views.adapters),
        Endpoint(path="rows", summary="Rows of a disposition, without their texts", returns=RowPage, errors=(429, 503),
                 answer=views.rows,
                 parameters=(Parameter(name="disposition", help="Where the rows stand.", is_required=True,
                                       choices=get_args(Disposition)),
                             Parameter(name="reason", help="Only rows with this reason.", free_text=True),
                             Parameter(name="before", help="Only lower ids: the next page.", least=LEAST_ID),
                             limit(50, 500))),
        Endpoint(path="rows/{file_id}", summary="Where a row stands; with the token its text too", returns=RowDetail,
                 errors=(401, 403, 404, 429, 503), answer=row,
                 parameters=(Parameter(name="file_id", help="A row's id.", in_path=True, is_required=True,
                                       least=LEAST_ID),)),
        Endpoint(path="answers", summary="The recipe's own prompts, answered by base, previous and current adapter",
                 returns=Answers, errors=(429, 503), answer=views.answers),
        Endpoint(path="log", summary="The last lines of the service's log", returns=LogTail, errors=(429,),
                 parameters=(Parameter(name="lines", help="Most lines.", default=100, most=1000),), answer=views.log),
        Endpoint(path="train", summary="Start a run with the files that wait, however few", returns=Accepted,
                 body=Nothing, errors=(401, 403, 503), answer=lambda _: _accepted(commands.train())),
        Endpoint(path="pause", summary="Start no new run; with stop_training, the run in progress waits too",
                 returns=Accepted, body=Pause, errors=(401, 403, 503),
                 answer=lambda body: _accepted(commands.pause(body.stop_training))),
        Endpoint(path="resume", summary="End the pause", returns=Accepted, body=Nothing, errors=(401, 403, 503),
                 answer=lambda _: _accepted(commands.resume())),
        Endpoint(path="rollback", summary="Make an earlier adapter current", returns=Accepted, body=RollBack,
                 errors=(401, 403, 409, 503), answer=lambda body: _accepted(commands.roll_back(body.version))),
    ]  # fmt: skip


def _accepted(said: str) -> Accepted:
    return Accepted(accepted=True, said=said)
