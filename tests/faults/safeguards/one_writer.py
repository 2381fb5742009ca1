"""Safeguards: only one writer."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "every write checks the lease": Mutant(
        file="db/lease.py",
        old="    if cursor.fetchone() != (lease.holder, lease.epoch, True):\n",
        new="    if False:\n",
        caught_by=test("tests/postgres/test_verdicts.py", "every_write_is_fenced"),
    ),
    "only a free, own or expired lease can be taken": Mutant(
        file="db/queries/lease.sql",
        old="    where held.holder is null or held.holder = excluded.holder or held.expires_at <= clock_timestamp()\n",
        new="",
        caught_by=test("tests/postgres/test_lease_and_streams.py", "one_holder_at_a_time"),
    ),
    "a lost lease is not renewed": Mutant(
        file="db/queries/lease.sql",
        old=" and epoch = %(epoch)s and expires_at > statement_timestamp()\n    for update",
        new="\n    for update",
        caught_by=test("tests/postgres/test_lease_and_streams.py", "same_holder or expired"),
    ),
    "a lease does not change hands during a write": Mutant(
        file="db/queries/lease.sql",
        old="from codelupe.leases where stream = %(stream)s for share;",
        new="from codelupe.leases where stream = %(stream)s;",
        caught_by=test("tests/postgres/test_verdicts.py", "cannot_change_hands"),
    ),
    "a process that stops during a write holds the lease row for only a few seconds": Mutant(
        file="db/queries/lease.sql",
        old="select set_config('idle_in_transaction_session_timeout', '15s', true);",
        new="select 1;",
        caught_by=test("tests/postgres/test_lease_and_streams.py", "stops_during_a_write"),
    ),
    "a claim checks the lease again before its commit": Mutant(
        file="db/claim.py",
        old="            fence(guard, lease)\n",
        new="",
        caught_by=test("tests/postgres/test_claim.py", "takeover"),
    ),
    "a stream has one live run": Mutant(
        file="migrations/0001_initial.sql",
        old="create unique index runs_one_live on codelupe.runs (stream) where ended_at is null;\n",
        new="",
        caught_by=test("tests/postgres/test_claim.py", "second_claim"),
    ),
    "only one service runs in a folder": Mutant(
        file="service/settings/home.py",
        old="            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        new="            pass\n",
        caught_by=test("tests/unit/test_service_parts.py", "one_service_per_folder"),
    ),
    "a trainer holds the lock of its run": Mutant(
        file="trainer/run_dir.py",
        old="                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n                break\n",
        new="                break\n",
        caught_by=test("tests/unit/test_run_dir.py", "exclusive"),
    ),
    "a trainer ends when its service is gone": Mutant(
        file="trainer/stop.py",
        old="        if _held_open(0):",
        new="        if False:",
        caught_by=test("tests/unit/test_train.py", "closed_stdin"),
    ),
    "a trainer that does not stop is killed": Mutant(
        file="service/cycle/launch.py",
        old="                    if time.monotonic() > deadline:\n                        process.kill()\n",
        new="",
        caught_by=test("tests/unit/test_launch.py", "does_not_stop"),
    ),
    "an unsupervised trainer is killed": Mutant(
        file="service/cycle/launch.py",
        old="    except BaseException:\n        process.kill()\n        raise\n    return code",
        new="    except BaseException:\n        raise\n    return code",
        caught_by=test("tests/unit/test_launch.py", "unwatched"),
    ),
    "only one process migrates at a time": Mutant(
        file="db/migrate.py",
        old='        cursor.execute(QUERIES["migrations_lock"])\n',
        new="",
        caught_by=test("tests/postgres/test_lease_and_streams.py", "however_many_ask"),
    ),
    "a database of a newer version is left unchanged": Mutant(
        file="db/migrate.py",
        old="    if unknown := sorted(applied.keys() - scripts.keys()):",
        new="    if unknown := []:",
        caught_by=test("tests/postgres/test_lease_and_streams.py", "refuse_what_they_do_not_know"),
    ),
    "a stream keeps its source, base and shape": Mutant(
        file="db/streams.py",
        old="    if problems := _differences(bound, binding):",
        new="    if problems := []:",
        caught_by=test("tests/postgres/test_lease_and_streams.py", "bound_once"),
    ),
    "an embedded database is started only once": Mutant(
        file="db/embedded.py",
        old="            fcntl.flock(file, fcntl.LOCK_EX)\n",
        new="",
        caught_by=test("tests/postgres/test_embedded.py", "two_starts"),
    ),
}
