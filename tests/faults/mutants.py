"""Row 19: each safeguard removed in turn; the suite has to turn red. It makes the other rows' zeros believable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from oracle import Broken
from rows import Done, Row, Trials
from scene import HERE

ROOT = HERE.parents[1]
MOST_SECONDS = 600.0
COPIED = ("service", "trainer", "db", "migrations", "recipes", "tests", "pyproject.toml")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A safeguard, and what sees that it is gone."""

    file: str
    old: str
    """What the safeguard is written as."""
    new: str
    caught_by: tuple[str, ...]
    """Arguments of pytest, or `row N [pattern of crash points]`."""


def _row(number: int, points: str = "") -> tuple[str, ...]:
    return ("row", str(number), points)


MUTANTS: dict[str, Mutant] = {
    "every write checks the lease": Mutant(
        file="db/lease.py",
        old="    if cursor.fetchone() != (lease.holder, lease.epoch, True):\n",
        new="    if False:\n",
        caught_by=_row(17),
    ),
    "a publication needs its parent to be current": Mutant(
        file="db/runs.py",
        old="        _check_parent(cursor, lease.stream, run_id, parent_version)\n",
        new="",
        caught_by=("tests/postgres/test_verdicts.py", "-k", "moved_parent"),
    ),
    "a run with a revoked row is not published": Mutant(
        file="db/runs.py",
        old="        if found := revoked_among(cursor, lease.stream, run_id):",
        new="        if found := []:",
        caught_by=_row(17),
    ),
    "a committed run without its directory is given back": Mutant(
        file="service/daemon.py",
        old="        if not directory.root.exists():\n            self._give_back(",
        new="        if not directory.root.exists():\n            (lambda *_: None)(",
        caught_by=_row(1, r"after db\.claim\.claim:commit, time [12]"),
    ),
    "the pointer is derived from the database again": Mutant(
        file="service/upkeep.py",
        old="            if sync_pointer(self.home, self.stream, current):\n",
        new="            from service.publish import pointer_target\n"
        "            known = pointer_target(self.home, self.stream)\n"
        "            newest = max((a.version for a in adapters.history(self.pool, self.stream)), default=0)\n"
        "            if (known is None or newest % 2) and sync_pointer(self.home, self.stream, current):\n",
        caught_by=_row(1, r"before service\.publish\.sync_pointer:replace, time 1"),
    ),
    "the pointer is swapped by a rename": Mutant(
        file="service/publish.py",
        old="            temporary.symlink_to(wanted)\n            temporary.replace(pointer)\n",
        new="            pointer.unlink(missing_ok=True)\n            pointer.symlink_to(wanted)\n"
        "            (pointer.parent / 'adapters').mkdir(exist_ok=True)\n",
        caught_by=_row(1, r"after service\.publish\.sync_pointer:unlink, time [12]"),
    ),
    "an adapter's copy is verified": Mutant(
        file="service/publish.py",
        old="    verify_manifest(run.adapter, beat)\n",
        new="",
        caught_by=("tests/unit/test_publish.py",),
    ),
    "only the rows seen before the best step are trained": Mutant(
        file="trainer/outcomes.py",
        old="        elif seen[file_id]:",
        new="        elif True:",
        caught_by=("tests/unit/test_train.py",),
    ),
    "an outcome for every row, and one only": Mutant(
        file="db/runs.py",
        old="        raise SettlementMismatch(run_id, problems)",
        new="        return",
        caught_by=("tests/postgres/test_verdicts.py",),
    ),
    "only returned rows are claimed again": Mutant(
        file="db/queries.sql",
        old="(l.not_before is null or l.not_before <= now()))\n  and {ineligible} is null\norder by {id} limit",
        new="true or true)\n  and {ineligible} is null\norder by {id} limit",
        caught_by=_row(17),
    ),
    "held-out files stay held out": Mutant(
        file="db/queries.sql",
        old="       h.file_id is not null, coalesce(l.attempts, 0), {license_bytes}",
        new="       false, coalesce(l.attempts, 0), {license_bytes}",
        caught_by=_row(17),
    ),
    "a trainer holds its run's lock": Mutant(
        file="trainer/run_dir.py",
        old="                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n                break\n",
        new="                break\n",
        caught_by=("tests/unit/test_run_dir.py",),
    ),
    "a trainer ends when its service has gone": Mutant(
        file="trainer/stop.py",
        old="        if _held_open(0):",
        new="        if False:",
        caught_by=("tests/end_to_end/test_kills.py", "-k", "the_service_is_killed"),
    ),
    "a folder appears whole": Mutant(
        file="trainer/run_dir.py",
        old='    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")\n    shutil.rmtree(temporary',
        new="    temporary = path\n    shutil.rmtree(temporary",
        caught_by=("tests/unit/test_run_dir.py",),
    ),
    "a checkpoint is verified before it is used": Mutant(
        file="trainer/fit/checkpoint.py",
        old="    verify_manifest(path)\n    try:\n        state",
        new="    try:\n        state",
        caught_by=("tests/unit/test_checkpoint.py",),
    ),
    "a connection that broke is closed, and its slot comes back": Mutant(
        file="db/pool.py",
        old="            with self._free:\n                self._in_use -= 1\n                self._free.notify()\n",
        new="            pass\n",
        caught_by=("tests/postgres/test_pool.py",),
    ),
    "content is encoded without control tokens": Mutant(
        file="trainer/data/encoder.py",
        old='    description |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}\n',
        new='    description |= {"post_processor": None, "truncation": None, "padding": None}\n',
        caught_by=("tests/unit/test_samples.py", "tests/unit/test_tokenize.py"),
    ),
    "a loop that hangs ends the process": Mutant(
        file="service/watchdog.py",
        old="                end()\n",
        new="",
        caught_by=("tests/unit/test_watchdog.py",),
    ),
    "files are dropped once, however many drop": Mutant(
        file="db/files.py",
        old='        cursor.execute(QUERIES["files_lock"])\n',
        new="",
        caught_by=("tests/postgres/test_drop_twice.py",),
    ),
    "a candidate that is worse is refused": Mutant(
        file="service/judge.py",
        old='    elif measured["candidate"] > measured["current"] + gate.tolerance:',
        new="    elif False:",
        caught_by=("tests/unit/test_judge.py",),
    ),
    "a loss that is not finite ends the run": Mutant(
        file="trainer/fit/loop.py",
        old='                raise Diverged(f"step {step}: {what} is {value}")',
        new="                return",
        caught_by=("tests/unit/test_loop.py",),
    ),
    "secrets give way to placeholders": Mutant(
        file="service/intake/admission.py",
        old='        if self._hygiene.secrets == "keep":\n            return row, found\n',
        new="        return row, found\n",
        caught_by=("tests/postgres/test_hygiene.py", "-k", "secret"),
    ),
}
"""Safeguards by name."""


def survives(mutant: Mutant, folder: Path) -> str | None:
    """What the tests said where they did not notice; None where they turned red.

    Raises:
        Broken: the safeguard is not where this list says.
    """
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    path = folder / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise Broken(f"{mutant.file} has the safeguard {text.count(mutant.old)} times; correct tests/faults/mutants.py")
    path.write_text(text.replace(mutant.old, mutant.new))
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    match mutant.caught_by:
        case ("row", number, points):
            command = [sys.executable, "tests/faults", "--sample", number]
            environment |= {"FAULTS_POINTS": points, "FAULTS_EXAMPLES": "60"}
        case arguments:
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None  # it hangs: nobody takes that for green
    return None if done.returncode == 1 else f"exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"


@contextmanager
def mutations(folder: Path, sample: bool) -> Iterator[Trials]:
    names = ["a candidate that is worse is refused"] if sample else list(MUTANTS)

    def trial(number: int) -> Done:
        name = names[number]
        work = folder / f"mutant{number}"
        work.mkdir()
        said = survives(MUTANTS[name], work)
        if said is not None:
            raise Broken(f"nothing noticed that this is gone: {name}; {said}")
        shutil.rmtree(work)
        by = MUTANTS[name].caught_by
        return Done(note=f"{name}: {' '.join(by)}")

    yield Trials(number=len(names), run=trial)


ROWS = {
    19: Row(fault="each safeguard removed in turn", unit="safeguards", passes="the suite turns red", prepare=mutations),
}
