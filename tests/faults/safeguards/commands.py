"""Safeguards: commands."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "`codelupe gc` does not run beside a service": Mutant(
        file="service/cli/adapters.py",
        old="    with database(settings) as pool, only_service(home):",
        new="    with database(settings) as pool:",
        caught_by=test("tests/postgres/test_gc.py", "meanwhile"),
    ),
}
