"""The page's server with a real database and a real home folder. Tests put runs, rows and the board into a state."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from db import runs, streams
from db.chunks import Pending
from db.pool import Pool
from service.settings.environment import PROJECT_RECIPES
from service.settings.home import Home
from service.settings.load import load_settings
from service.start import first_snapshot
from service.up import actions, commands
from service.web.board import Board
from service.web.http import HttpServer, Site, create_app, listen
from service.web.views import Views

STREAM = "tiny-codelupe"
TOKEN = "only-for-tests"
INSERT_RUN = """
insert into codelupe.runs
    (stream, state, parent_version, seed, epoch, launches, reason, report, created_at, started_at, ended_at)
values (%(stream)s, %(state)s, %(parent)s, 1, 1, 1, %(reason)s, %(report)s, %(at)s, %(at)s, %(ended)s) returning run_id
"""
RULES = (
    "complete",
    "separate",
    "whole",
    "changed",
    "answers",
    "suites",
    "gain",
    "earlier_current",
    "earlier_anchor",
    "languages",
)
ENDED = ("published", "refused", "inconclusive", "failed", "returned")


class Stage:
    """One stream and its page."""

    def __init__(self, pool: Pool, root: Path, **settings: str) -> None:
        self.pool = pool
        self.home = Home(root)
        self.home.prepare()
        given = {"CODELUPE_HOME": str(root), "CODELUPE_TOKEN": TOKEN, **settings}
        self.settings = load_settings(PROJECT_RECIPES / "embedded.yaml", environment=given, env_file=None)
        binding = streams.Binding(source="code_files", base_model="tiny-qwen2", base_revision="r" * 40, lora={})
        streams.bind(pool, STREAM, binding)
        self.board = Board(first_snapshot(self.settings))
        self.board.update(state="waiting", database_ready=True, migrations_ready=True, current_known=True)
        self.chance = random.Random(7)

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve the page. Yields its address."""
        listening = listen("127.0.0.1", 0)
        views = Views(self.pool, self.board, self.settings)
        views.open()
        site = Site(
            views=views,
            commands=commands(self.pool, self.settings, self.home, self.board),
            host="127.0.0.1",
            public_url=None,
        )
        app = create_app(self.board, actions(self.pool, self.settings), token=self.settings.token, site=site)
        server = HttpServer(app, listening)
        server.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.close()
            listening.close()

    def query(self, statement: str, parameters: Any = None) -> list[Any]:
        with self.pool.transaction() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def run(self, state: str, *, reason: str | None = None, losses: tuple[float, float, float] | None = None,
            rules: Mapping[str, str] | None = None, parent: int | None = None, **more: Any) -> int:  # fmt: skip
        """Insert a run as a verdict leaves it. `rules`: the outcome of those that did not pass."""
        ended = datetime.now(UTC) if state in ENDED else None
        report = None if losses is None else report_of(state, losses, rules or {}, self.chance, **more)
        parameters = {
            "stream": STREAM, "state": state, "parent": parent, "reason": reason, "at": datetime.now(UTC),
            "ended": ended,
            "report": None if report is None else json.dumps(report),
        }  # fmt: skip
        run_id = int(self.query(INSERT_RUN, parameters)[0][0])
        if state == "published":
            self.query("update codelupe.adapters set is_current = false where stream = %s", (STREAM,))
            self.query(
                "insert into codelupe.adapters"
                " (version, stream, parent_version, folder, manifest_sha256, evaluation, is_current)"
                " values (%s, %s, %s, %s, '', %s, true)",
                (run_id, STREAM, parent, str(self.home.adapter(run_id)),
                 json.dumps({"losses": dict(zip(("anchor", "current", "candidate"), losses or (), strict=False))})),
            )  # fmt: skip
        return run_id

    def files(self, run_id: int, *outcomes: tuple[str, str, str | None]) -> list[int]:
        """Insert source rows of a run. Each outcome is disposition, outcome in the run, and reason."""
        made = []
        for disposition, outcome, reason in outcomes:
            [(file_id,)] = self.query(
                "insert into code_files (repository, path, language, content, quality_score)"
                " values ('r', 'a.py', 'python', %s, 90) returning id",
                (f"x = {self.chance.random()}\n" * 10,),
            )
            role = "held_out" if disposition == "held_out" else "train"
            self.query(
                "insert into codelupe.run_rows (run_id, file_id, role, content_sha256, outcome, tokens)"
                " values (%s, %s, %s, '', %s, 40)",
                (run_id, file_id, role, outcome),
            )
            self.query(
                "insert into codelupe.ledger (stream, file_id, run_id, disposition, reason, settled_at)"
                " values (%s, %s, %s, %s, %s, now())",
                (STREAM, file_id, run_id, disposition, reason),
            )
            made.append(file_id)
        return made

    def events(self, run_id: int, steps: int, *, total: int | None = None, experts: bool = False) -> None:
        """Write the events of a training."""
        directory = self.home.run(run_id)
        directory.root.mkdir(parents=True, exist_ok=True)
        with directory.events.open("w") as file:
            for event in training(steps, total or steps, self.chance, experts=experts):
                file.write(json.dumps(event) + "\n")

    def refresh(self) -> None:
        """Show the database's totals on the board, as the daemon does."""
        totals = runs.totals(self.pool, STREAM)
        current = self.query(
            "select version, published_at from codelupe.adapters where stream = %s and is_current", (STREAM,)
        )
        version, published = current[0] if current else (None, None)
        self.board.update(totals=totals, current_version=version, current_published_at=published, current_known=True)

    def waiting_files(self, rows: int, **ineligible: int) -> None:
        self.board.update(
            pending=Pending(rows=rows, oldest_age_seconds=60.0, ineligible=ineligible, unknown_ranges=0,
                            oldest_sweep_age_seconds=1.0, at=datetime.now(UTC))
        )  # fmt: skip


def report_of(state: str, losses: tuple[float, float, float], rules: Mapping[str, str], chance: random.Random,
              **more: Any) -> dict[str, Any]:  # fmt: skip
    """Return a report with the sections that the page shows, as long as real ones."""
    scores = {
        name: {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": 0.6 + chance.random() / 10}
        for name, loss in zip(("anchor", "current", "candidate"), losses, strict=True)
    }
    anchor, current, candidate = losses
    return {
        "format": 1, "recipe": "embedded", "steps": {"total": 60, "done": 48, "best": 30, "result": 30},
        "early_stopped": True,
        "evaluation": {**scores, "history": [{"step": n, "loss": candidate + (10 - n) / 50} for n in range(10)]},
        "train": {"loss": candidate, "samples": 900, "tokens_seen": 60_000, "tokens_published": 51_234},
        "rows": {"trained": 110, "unused": 3, "rejected": 1, "held_out": 9, "replayed": 27}, "device": "CPU",
        "verdict": {
            "decision": {"published": "promote", "refused": "refuse"}.get(state, "inconclusive"),
            "reasons": ["gain: better by 0.0911, 95 % interval 0.0502 to 0.1301, 12 files"],
            "rules": [
                {"rule": rule, "outcome": rules.get(rule, "pass"),
                 "text": f"what {rule} found, with its numbers: {chance.random():.4f} nats per token", "numbers": {}}
                for rule in RULES
            ],
            "intervals": {},
            "quality": {
                "slices": {"new": {"anchor": anchor, "current": current, "candidate": candidate},
                           "earlier": {"anchor": anchor, "current": current + 0.01, "candidate": candidate + 0.02},
                           "fim": {"anchor": anchor + 0.3, "current": current + 0.2, "candidate": candidate + 0.2}},
                "suites": {"01-HumanEval": {"current": 0.41 - current / 50, "candidate": 0.41 - candidate / 50}},
            },
        },
        **more,
    }  # fmt: skip


def training(steps: int, total: int, chance: random.Random, *, experts: bool = False) -> Iterator[dict[str, Any]]:
    """Yield events as a trainer writes them."""
    now = time.time() - steps
    yield {
        "time": now,
        "event": "started",
        "pid": 1,
        "run_id": 1,
        "device": "cpu",
        "world_size": 1,
        "resumed_from_step": None,
    }
    yield {"time": now, "event": "evaluation", "step": 0, "which": "anchor", "loss": 1.9}
    yield {"time": now, "event": "evaluation", "step": 0, "which": "current", "loss": 1.6}
    yield {
        "time": now,
        "event": "evaluation",
        "step": 0,
        "which": "candidate",
        "loss": 1.6,
        "best": True,
        "misses": 0,
        "patience": 3,
    }
    every = max(1, total // 10)
    for step in range(1, steps + 1):
        trend = 1.1 + 0.6 * math.exp(-4 * step / total)
        yield {"time": now + step, "event": "step", "step": step, "steps_total": total, "epoch": 1,
               "loss": trend + chance.gauss(0, 0.06), "learning_rate": 2e-3 * (1 - step / total),
               "grad_norm": 0.5 + chance.random() / 10, "tokens": 4000, "tokens_total": 4000 * step,
               "tokens_per_second": 3900 + chance.gauss(0, 120), "gpu_memory_bytes": 0}  # fmt: skip
        if step % every == 0:
            yield {"time": now + step, "event": "evaluation", "step": step, "which": "candidate", "loss": trend + 0.05,
                   "token_accuracy": 0.7, "best": True, "misses": step // every % 3, "patience": 3}  # fmt: skip
            if experts:
                layers = []
                for _ in range(4):
                    shares = [chance.random() ** 2 for _ in range(8)]
                    layers.append({"shares": [2 * share / sum(shares) for share in shares], "entropy": 0.9, "dead": []})
                yield {
                    "time": now + step,
                    "event": "experts",
                    "step": step,
                    "top_k": 2,
                    "aux_loss": 2.1,
                    "layers": layers,
                }
