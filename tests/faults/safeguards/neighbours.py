"""Safeguards: others on the same server."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "the limits of a transaction end with it": Mutant(
        file="db/queries/connections.sql",
        old="set local statement_timeout = %(statement)s;",
        new="set statement_timeout = %(statement)s;",
        caught_by=test("tests/faults/test_pooler.py", "sets_anything"),
    ),
    "behind a pooler the service does not listen": Mutant(
        file="db/pool.py",
        old="        if self.is_pooled():\n            yield _not_notified\n            return\n",
        new="",
        caught_by=test("tests/postgres/test_pool.py", "does_not_listen"),
    ),
    "a start without outstanding migrations creates nothing": Mutant(
        file="db/migrate.py",
        old="    if not pending(pool, source):\n        return []\n",
        new="    with pool.transaction() as cursor:\n        cursor.execute('create schema if not exists codelupe')\n",
        caught_by=test("tests/postgres/test_rights.py", "where_nothing_is_outstanding"),
    ),
    "the source table is made only where it is the source": Mutant(
        file="db/migrate.py",
        old="    if source.name not in OUR_SOURCES:\n        return []\n",
        new="",
        caught_by=test("tests/postgres/test_rights.py", "nothing_is_made_elsewhere"),
    ),
    "new tables are granted to the roles of services": Mutant(
        file="db/migrate.py",
        old="                rights.extend(cursor)\n",
        new="                pass\n",
        caught_by=test("tests/postgres/test_rights.py", "later_migration"),
    ),
    "drop checks the right to insert before it reads": Mutant(
        file="service/cli/data.py",
        old="        check_may_insert(pool, settings)\n",
        new="",
        caught_by=test("tests/postgres/test_rights.py", "drop_is_refused"),
    ),
    "a lease lasts less than a minute": Mutant(
        file="service/cycle/leadership.py",
        old="LEASE_SECONDS = 45.0",
        new="LEASE_SECONDS = 180.0",
        caught_by=test("tests/postgres/test_leadership.py", "times_add_up"),
    ),
    "a busy leader keeps its lease": Mutant(
        file="service/cycle/leadership.py",
        old="            if lease is None or lease is self._lost or not late",
        new="            if True or lease is self._lost or not late",
        caught_by=test("tests/postgres/test_leadership.py", "loop_is_busy"),
    ),
    "a leader whose loop hangs loses its lease": Mutant(
        file="service/cycle/leadership.py",
        old=" or not self._is_alive():",
        new=":",
        caught_by=test("tests/postgres/test_leadership.py", "loop_hangs"),
    ),
    "a leader that writes for longer than its lease keeps it": Mutant(
        file="db/lease.py",
        old="            if cursor.fetchone() is None:\n                return None\n",
        new="",
        caught_by=test("tests/postgres/test_leadership.py", "longer_than_the_lease"),
    ),
    "a stopped claim does not hold up the next leader": Mutant(
        file="db/claim.py",
        old='        cursor.execute(QUERIES["claim_idle_limit"])\n',
        new="",
        caught_by=test("tests/postgres/test_leadership.py", "hold_up"),
    ),
    "the server hears of a claim while it lasts": Mutant(
        file="service/cycle/claim.py",
        old="            rows.keep_alive()\n",
        new="",
        caught_by=test("tests/postgres/test_claim_run.py", "hears_of_a_claim"),
    ),
}
