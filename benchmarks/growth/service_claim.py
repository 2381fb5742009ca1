"""Make one claim in the service's own loop, and print its time and memory as JSON.

The benchmark starts this script in a separate process, with DATABASE_URL, CODELUPE_HOME and CODELUPE_STREAM set:

python benchmarks/growth/service_claim.py "the newest"|scattered
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import world

import service.up  # loads everything that a service has in memory
from db import runs
from db.pool import Pool
from service.cycle.daemon import Daemon
from service.settings.environment import PROJECT_RECIPES
from service.settings.home import Home
from service.settings.load import load_settings
from service.web.board import Board, Snapshot
from service.web.state import State
from trainer.recipe import pinned


def resident_mib(which: str) -> float:
    """Return this process's VmRSS or VmHWM."""
    found = re.search(rf"^{which}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) / 1024


def enter(daemon: Daemon, following: State, expected: State) -> None:
    assert following is expected, f"{following}: {daemon.board.read().health()}"
    daemon._enter(following)


def main() -> None:
    settings = load_settings(PROJECT_RECIPES / "qwen-5090.yaml", env_file=None)
    assert settings.database_url is not None and service.up is not None
    pool, home = Pool(settings.database_url), Home(settings.home)
    if sys.argv[1] == "scattered":
        world.score_scattered_rows(pool)
    recipe = pinned(settings.recipe, model="m", revision="r")
    daemon = Daemon(settings, recipe, home, pool, Board(Snapshot()), threading.Event(), once=False)
    enter(daemon, daemon._starting(), State.WAITING)
    before_mib, started = resident_mib("VmRSS"), time.perf_counter()
    enter(daemon, daemon._waiting(), State.CLAIMING)
    waited = time.perf_counter()
    daemon._pausing.is_rejecting_all = True  # the scattered rows are all too short
    after = daemon._claiming()
    claimed = time.perf_counter()
    peak_mib = resident_mib("VmHWM")
    daemon._enter(after)
    after_mib = resident_mib("VmRSS")
    run = runs.history(pool, world.STREAM, limit=1)[0]
    facts = {
        "which": sys.argv[1],
        "rows": world.count_rows(pool, run.run_id, refused=False),
        "refused": world.count_rows(pool, run.run_id, refused=True),
        "waiting_seconds": waited - started,
        "claim_seconds": claimed - waited,
        "before_mib": before_mib,
        "peak_mib": peak_mib,
        "after_mib": after_mib,
    }
    if after is State.TRAINING:
        daemon._settling.give_back(daemon._run_id, "returned", "the benchmark is done with this run")
    shutil.rmtree(home.run(run.run_id).root, ignore_errors=True)  # already gone if the claim refused all rows
    daemon._leadership.release()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
