"""Safeguards: several processes train a run, and one of them, their launcher or the service is killed."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "a process that waits for one that is gone is killed": Mutant(
        file="trainer/ranks.py",
        old="            if failed_at is None and any(self.codes.values()):\n",
        new="            if False:\n",
        caught_by=test("tests/unit/test_ranks.py", "waits_for_one_that_is_gone"),
    ),
    "the event `failed` names a process that was killed": Mutant(
        file="trainer/ranks.py",
        old='        append_event(directory.events, "failed", code=code, message=message)\n',
        new="",
        caught_by=("row", "26"),
    ),
    "processes end when their launcher is gone": Mutant(
        file="trainer/ranks.py",
        old="            stdin=subprocess.PIPE,\n",
        new="            stdin=subprocess.DEVNULL,\n",
        caught_by=("row", "27"),
    ),
    "a start waits for the processes of the one before": Mutant(
        file="trainer/ranks.py",
        old="            pass_fds=(lock,),\n",
        new="",
        caught_by=("row", "27"),
    ),
    "the launcher passes on that the service is gone": Mutant(
        file="trainer/ranks.py",
        old="            if stop.reason is not None:\n                self._ask()\n",
        new="",
        caught_by=("row", "28"),
    ),
}
