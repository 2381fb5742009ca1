"""Safeguards: what is said."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "a verdict is told after it is settled": Mutant(
        file="service/cycle/daemon.py",
        old="        self._judged = finished.verdict\n",
        new="        self._announce(finished.verdict)\n",
        caught_by=test("tests/postgres/test_pauses.py", "cannot_be_settled"),
    ),
    "a verdict whose COMMIT got no answer is told": Mutant(
        file="service/cycle/daemon.py",
        old="        self._recall_verdict()\n        self._settling.catch_up()\n",
        new="        self._settling.catch_up()\n",
        caught_by=test("tests/postgres/test_pauses.py", "got_no_answer"),
    ),
    "`up --once` says why there is no verdict": Mutant(
        file="service/up.py",
        old="        if once and daemon.verdict is None and daemon.problem is not None:\n",
        new="        if False:\n",
        caught_by=("row", "23"),
    ),
    "a drop that fails says what it has inserted": Mutant(
        file="service/cli/data.py",
        old='raise PreconditionError(f"{error}. {_so_far(summary)}") from error',
        new="raise",
        caught_by=("row", "23"),
    ),
    "a pause that asks for files hears of them": Mutant(
        file="service/cycle/pausing.py",
        old="        with self._pool.listening(CHANNEL) if by_files else nullcontext() as notified:\n",
        new="        with nullcontext() as notified:\n",
        caught_by=test("tests/postgres/test_pauses.py", "announced_files"),
    ),
    "a pause that asks for files looks for them": Mutant(
        file="service/cycle/pausing.py",
        old="        if self._cause in ENDED_BY_FILES and self._has_more_rows():\n",
        new="        if False:\n",
        caught_by=test("tests/postgres/test_pauses.py", "nobody_announces"),
    ),
    "a pause for space ends when there is space": Mutant(
        file="service/cycle/pausing.py",
        old='        if self._cause == "disk" and self._has_space():\n',
        new="        if False:\n",
        caught_by=test("tests/postgres/test_pauses.py", "space_ends"),
    ),
    "a request for a run wakes a service that waits": Mutant(
        file="db/streams.py",
        old='        cursor.execute(QUERIES["files_notify"], {"channel": CHANNEL})\n',
        new="",
        caught_by=test("tests/postgres/test_pauses.py", "request_wakes"),
    ),
}
