"""Safeguards: every retry has a limit."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "the last allowed attempt settles a row": Mutant(
        file="db/settling.py",
        old="            last = attempts.get(outcome.file_id, 0) + 1 >= max_attempts\n",
        new="            last = False\n",
        caught_by=test("tests/postgres/test_verdicts.py", "refused_rows_wait"),
    ),
    "rows of a refused candidate wait longer after each refusal": Mutant(
        file="db/queries/settling.sql",
        old="    not_before = now() + make_interval(secs => v.backoff_seconds * power(2, l.attempts))\n",
        new="    not_before = null\n",
        caught_by=test("tests/postgres/test_verdicts.py", "refused_rows_wait"),
    ),
    "a waiting row is not claimed": Mutant(
        file="db/queries/source.sql",
        old="(l.file_id is null or l.disposition = 'returned' and (l.not_before is null or l.not_before <= now()))",
        new="(l.file_id is null or l.disposition = 'returned')",
        caught_by=test("tests/postgres/test_claim.py", "wait_for_their_time"),
    ),
    "a run whose trainer keeps crashing is abandoned": Mutant(
        file="service/cycle/daemon.py",
        old="            if self._crashes < MAX_CRASHES:",
        new="            if True:",
        caught_by=test("tests/postgres/test_claim_run.py", "crashes_each_time"),
    ),
    "the trainer's suspects are recorded": Mutant(
        file="service/cycle/daemon.py",
        old=" if code in STEP_FAILED_CODES else None",
        new=" if False else None",
        caught_by=test("tests/postgres/test_claim_run.py", "row_that_makes_steps_fail"),
    ),
    "a claim takes half of the suspects": Mutant(
        file="db/suspects.py",
        old="    return frozenset(file_id for file_id, _ in waiting[(newest + 1) // 2 :])",
        new="    return frozenset()",
        caught_by=test("tests/postgres/test_bisection.py", "takes_half"),
    ),
    "the last suspect is quarantined": Mutant(
        file="db/suspects.py",
        old="    if len(named) != 1:",
        new="    if True:",
        caught_by=test("tests/postgres/test_bisection.py", "only_suspect"),
    ),
    "earlier suspects are blamed before other rows": Mutant(
        file="db/suspects.py",
        old="    named = again or [file_id for file_id, _ in found]",
        new="    named = [file_id for file_id, _ in found]",
        caught_by=test("tests/postgres/test_bisection.py", "finds_the_rows"),
    ),
    "a successful run clears its rows of suspicion": Mutant(
        file="db/suspects.py",
        old='    cursor.execute(QUERIES["suspects_clear"], {"stream": stream, "run_id": run_id})\n',
        new="    return\n",
        caught_by=test("tests/postgres/test_bisection.py", "takes_half"),
    ),
    "each sample of a failed step is tried alone": Mutant(
        file="trainer/fit/suspects.py",
        old="        found = [sample for sample in samples if fails(sample)]\n",
        new="",
        caught_by=test("tests/unit/test_suspects.py", "single_bad_row"),
    ),
    "no row is blamed for broken weights": Mutant(
        file="trainer/fit/suspects.py",
        old="            return None\n        found",
        new="            pass\n        found",
        caught_by=test("tests/unit/test_suspects.py", "no_row_is_suspected"),
    ),
    "a failing trainer records its suspects": Mutant(
        file="trainer/train.py",
        old="        if failed.suspects is not None:",
        new="        if False:",
        caught_by=test("tests/unit/test_suspects.py", "leaves_its_suspects"),
    ),
    "out of memory leads to a smaller micro-batch": Mutant(
        file="trainer/fit/passes.py",
        old="                if not is_out_of_memory(error):\n                    raise\n            # The",
        new="                raise\n            # The",
        caught_by=test("tests/unit/test_loop.py", "out_of_memory"),
    ),
    "a non-finite loss ends the run": Mutant(
        file="trainer/fit/context.py",
        old='            if not math.isfinite(value):\n                self.events.emit("non_finite"',
        new='            if False:\n                self.events.emit("non_finite"',
        caught_by=test("tests/unit/test_loop.py", "not_finite"),
    ),
}
