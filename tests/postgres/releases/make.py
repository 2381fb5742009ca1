"""Write releases/<version of pyproject.toml>.sql: the schema of this release, with a little data in every table.

    .venv/bin/python tests/postgres/releases/make.py

Once a release; the file never changes afterwards. test_releases.py migrates it for ever after.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[3])]

from world import ADAPTER, STREAM, Outcome, claim_all, fill

from db import embedded, migrate, runs, settling
from db.lease import Lease, acquire
from db.pool import Pool
from db.streams import Binding, bind, request_training

FOLDER = Path(__file__).parent
VERSION = tomllib.loads((FOLDER.parents[2] / "pyproject.toml").read_text())["project"]["version"]


def lineage(pool: Pool) -> None:
    """Two published adapters, a refused run, one that was given back, a live one; rows of every class."""
    bind(pool, STREAM, Binding(source="code_files", base_model="m", base_revision="r" * 40, lora={"rank": 8}))
    lease = acquire(pool, STREAM, "the release", 600)
    assert lease is not None
    fill(pool, 6)
    first = verdict(pool, lease, None, held_out=(2,), rejected=(3,))
    fill(pool, 3, repository="another")
    second = verdict(pool, lease, first)
    fill(pool, 2, repository="refused")
    verdict(pool, lease, second, publish=False)
    fill(pool, 2, repository="given back")
    returned, _ = claim_all(pool, lease, parent=second)
    settling.give_back(pool, lease, returned, state="failed", reason="it ended with code 1")
    live, _ = claim_all(pool, lease, parent=second)
    runs.advance(pool, lease, live, "training")
    runs.count_launch(pool, lease, live)
    runs.heartbeat(pool, lease, live)
    fill(pool, 2, repository="pending")
    fill(pool, 1, repository="poor", quality_score=10.0)
    request_training(pool, STREAM)


def verdict(
    pool: Pool, lease: Lease, parent: int | None, *, held_out: tuple[int, ...] = (), rejected: tuple[int, ...] = (),
    publish: bool = True,
) -> int:  # fmt: skip
    """Claim what there is, and judge it; ten tokens a row."""
    run_id, files = claim_all(pool, lease, held_out=held_out, parent=parent)
    runs.advance(pool, lease, run_id, "training")
    runs.count_launch(pool, lease, run_id)
    runs.advance(pool, lease, run_id, "judging")
    became = {n: "held_out" if n in held_out else "rejected" if n in rejected else "trained" for n in files}
    outcomes = [
        Outcome(file_id=n, outcome=outcome, reason="too_few_lines" if outcome == "rejected" else None)
        for n, outcome in became.items()
    ]
    report = {"train": {"tokens_published": 10 * list(became.values()).count("trained")}}
    if publish:
        settling.publish(pool, lease, run_id, outcomes, ADAPTER, report)
    else:
        settling.refuse(
            pool, lease, run_id, outcomes, reason="no gain", report=report, max_attempts=3, backoff_seconds=9e9
        )
    return run_id


def main() -> None:
    target = FOLDER / f"{VERSION}.sql"
    if target.exists():
        sys.exit(
            f"{target} is there; a release's dump never changes. Before the release: remove it, and run this again"
        )
    data = Path(tempfile.mkdtemp(prefix="codelupe-release-"))
    url = embedded.start(data)
    try:
        pool = Pool(url)
        migrate.apply(pool)
        lineage(pool)
        pool.close()
        subprocess.run([embedded.programs() / "pg_dump", "--no-owner", f"--file={target}", url], check=True)
    finally:
        embedded.stop(data)
        shutil.rmtree(data)
    print(f"{target} written; commit it")


if __name__ == "__main__":
    main()
