"""Safeguards: a wrong setting burns no rows."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "a rejection is void when its setting changes": Mutant(
        file="service/cycle/daemon.py",
        old="        self.upkeep.void(self.lease, self.recipe, self._wait.beat_and_renew)\n",
        new="",
        caught_by=test("tests/postgres/test_wrong_settings.py", "void_when"),
    ),
    "a claim that a setting would reject whole is given back": Mutant(
        file="service/cycle/claim.py",
        old="        if not reject_all and (problem :=",
        new="        if False and (problem :=",
        caught_by=test("tests/postgres/test_wrong_settings.py", "reject_whole"),
    ),
    "a run of which the trainer rejects nearly all is given back": Mutant(
        file="service/cycle/daemon.py",
        old="        problem = rejected_by_a_setting(self.pool, self._run_id, finished)\n",
        new="        problem = None\n",
        caught_by=test("tests/postgres/test_wrong_settings.py", "trainer_rejects_nearly_all"),
    ),
    "a rejection carries the settings of its run": Mutant(
        file="db/settling.py",
        old='disposition, reason, self.settings.get(reason or ""))',
        new="disposition, reason, None)",
        caught_by=test("tests/postgres/test_wrong_settings.py", "some_are_rejected"),
    ),
    "a request that is announced like files has the rows rejected": Mutant(
        file="service/cycle/pausing.py",
        old="                    requested = ending.is_requested()",
        new="                    requested = ended == REQUESTED",
        caught_by=test("tests/postgres/test_wrong_settings.py", "announced_like"),
    ),
}
