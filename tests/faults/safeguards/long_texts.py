"""Safeguards: very long texts."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "a text is parsed in a process with limits before the trainer parses it": Mutant(
        file="trainer/samples/syntax.py",
        old="    if not trial.passes(name, data):\n        return None, 0.0\n",
        new="",
        caught_by=test("tests/unit/test_trial.py", "greedy_text_is_not_parsed"),
    ),
    "a parse has a limit on memory": Mutant(
        file="trainer/samples/trial.py",
        old="    resource.setrlimit(resource.RLIMIT_AS, (taken + MAX_MEMORY_BYTES, hard))\n",
        new="    assert taken and hard\n",
        caught_by=test("tests/unit/test_trial.py", "limit_on_memory"),
    ),
    "a parse has a limit on operations": Mutant(
        file="trainer/samples/trial.py",
        old="        return calls > max_calls\n",
        new="        return False\n",
        caught_by=test("tests/unit/test_trial.py", "number_of_operations"),
    ),
    "long texts are checked a few at a time, and the lease is renewed between them": Mutant(
        file="service/cycle/claim.py",
        old="        if len(batch) == BATCH_ROWS or chars >= BATCH_CHARS:\n",
        new="        if len(batch) == BATCH_ROWS:\n",
        caught_by=test("tests/postgres/test_claim_run.py", "between_long_texts"),
    ),
    "long held-out texts are written a few at a time": Mutant(
        file="db/claim.py",
        old=" or self._held_out_chars >= BATCH_CHARS:\n",
        new=":\n",
        caught_by=test("tests/postgres/test_claim.py", "long_held_out"),
    ),
    "long held-out texts are read a few at a time": Mutant(
        file="db/claim.py",
        old="islice(order, min(HELD_OUT_ROWS, self.most_texts()))",
        new="islice(order, HELD_OUT_ROWS)",
        caught_by=test("tests/postgres/test_claim.py", "long_held_out"),
    ),
    "missing fingerprints of long texts are computed a few at a time": Mutant(
        file="service/admission/duplicates.py",
        old=" or chars >= CATCH_UP_CHARS:\n",
        new=":\n",
        caught_by=test("tests/unit/test_fingerprints.py", "long_old_rows"),
    ),
}
