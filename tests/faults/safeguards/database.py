"""Safeguards: the database becomes unavailable, and comes back."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "the service waits for an unavailable database": Mutant(
        file="service/cycle/daemon.py",
        old="            except Unavailable as error:\n                database_failures += 1",
        new="            except ZeroDivisionError as error:\n                database_failures += 1",
        caught_by=test("tests/faults/test_lost_commit.py"),
    ),
    "after a lost COMMIT the service rereads its state from the database": Mutant(
        file="service/cycle/daemon.py",
        old="                if self.state in WRITING:",
        new="                if False:",
        caught_by=test("tests/faults/test_lost_commit.py"),
    ),
    "training continues while the database is unavailable": Mutant(
        file="service/cycle/supervise.py",
        old="            self.leadership.put_off()\n            self.upkeep.note_database_trouble(error)\n",
        new="            raise\n",
        caught_by=test("tests/postgres/test_claim_run.py", "training_goes_on_while"),
    ),
    "a dead embedded database is restarted": Mutant(
        file="service/cycle/daemon.py",
        old="                self.upkeep.restart_database()\n",
        new="",
        caught_by=test("tests/postgres/test_claim_run.py", "embedded_database"),
    ),
    "an error without a code counts as a lost connection": Mutant(
        file="db/classify.py",
        old="    if connection.closed or lost or isinstance",
        new="    if connection.closed or isinstance",
        caught_by=test("tests/faults/test_silent_server.py", "error_of_another"),
    ),
    "a broken connection returns its slot to the pool": Mutant(
        file="db/pool.py",
        old="            with self._free:\n                self._in_use -= 1\n                self._free.notify()\n",
        new="            pass\n",
        caught_by=test("tests/postgres/test_pool.py", "leaks_no_slot"),
    ),
    "a broken connection is also returned to psycopg2's pool": Mutant(
        file="db/pool.py",
        old="            self._sentinel.terminate_later(connection)\n        self._put_back(connection, close=True)\n",
        new="            self._sentinel.terminate_later(connection)\n",
        caught_by=test("tests/postgres/test_pool.py", "leaks_no_slot"),
    ),
    "a connection is checked before it is handed out": Mutant(
        file="db/pool.py",
        old="            if connection.answers():",
        new="            if True:",
        caught_by=test("tests/postgres/test_pool.py", "killed_while_idle"),
    ),
    "a long-idle connection is tested with a round trip": Mutant(
        file="db/connection.py",
        old="        if time.monotonic() - self.idle_since < ROUND_TRIP_AFTER_SECONDS:",
        new="        if True:",
        caught_by=test("tests/postgres/test_pool.py", "long_idle"),
    ),
    "a full pool waits for a free slot": Mutant(
        file="db/pool.py",
        old="self._in_use < self._limit, self._wait_seconds)",
        new="self._in_use < self._limit, 0)",
        caught_by=test("tests/postgres/test_pool.py", "full_pool"),
    ),
    "a statement has a timeout": Mutant(
        file="db/connection.py",
        old='"statement": "300s"',
        new='"statement": "0s"',
        caught_by=test("tests/postgres/test_pool.py", "have_limits"),
    ),
    "an idle transaction ends after a timeout": Mutant(
        file="db/connection.py",
        old='"idle": "600s"',
        new='"idle": "0s"',
        caught_by=test("tests/postgres/test_lease_and_streams.py", "stops_during_a_write"),
    ),
    "a silent server is probed": Mutant(
        file="db/sentinel.py",
        old="                        self._probe(connection, now - since[connection])\n",
        new="",
        caught_by=test("tests/faults/test_silent_server.py", "no_connection_left"),
    ),
    "the wait for a silent server is ended": Mutant(
        file="db/sentinel.py",
        old="        connection.give_up(reason)\n",
        new="",
        caught_by=test("tests/faults/test_silent_server.py", "black_hole"),
    ),
    "two silent connections are waited for once": Mutant(
        file="db/pool.py",
        old="            if self._sentinel.given_up == connection.given_up_before:",
        new="            if True:",
        caught_by=test("tests/faults/test_silent_server.py", "two_silent_connections"),
    ),
    "an orphaned transaction in the server is ended": Mutant(
        file="db/sentinel.py",
        old="                self._terminate_orphans()\n        finally",
        new="        finally",
        caught_by=test("tests/faults/test_silent_server.py", "orphaned_transaction"),
    ),
    "a long statement on a responsive server is not ended": Mutant(
        file="db/sentinel.py",
        old='                if probe.value(QUERIES["backend_is_busy"], {"pid": pid, "started": started, **limits}):',
        new="                if False:",
        caught_by=test("tests/faults/test_silent_server.py", "a_long_statement"),
    ),
    "a connection that breaks at once counts as an unavailable database": Mutant(
        file="db/sentinel.py",
        old='            raise psycopg2.OperationalError(f"the connection broke at once: {error}") from error',
        new="            raise",
        caught_by=test("tests/faults/test_silent_server.py", "breaks_at_once"),
    ),
}
