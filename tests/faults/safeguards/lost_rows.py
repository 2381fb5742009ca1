"""Safeguards: no row lost."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "every possible id is in a range": Mutant(
        file="db/chunks.py",
        old="LEAST_ID, GREATEST_ID = -(2**63), 2**63 - 1",
        new="LEAST_ID, GREATEST_ID = 1, 2**63 - 1",
        caught_by=test("tests/postgres/test_chunks.py", "any_id"),
    ),
    "the part cut off a range becomes a range": Mutant(
        file="db/chunks.py",
        old='        self.run("chunk_insert", first_id=end + 1, last_id=chunk.last_id, most_rows=chunk.most_rows)\n',
        new="",
        caught_by=test("tests/postgres/test_chunks.py", "fills_up"),
    ),
    "a range is checked again for late commits": Mutant(
        file="db/queries/chunks.sql",
        old="  and (due_at <= least(now(), %(due)s::timestamptz) or",
        new="  and (looked_at is null and due_at <= least(now(), %(due)s::timestamptz) or",
        caught_by=test("tests/postgres/test_chunks.py", "commit_below"),
    ),
    "a range is checked again when rows are returned": Mutant(
        file="migrations/0004_chunks.sql",
        old="where n.disposition = 'returned'));",
        new="where false));",
        caught_by=test("tests/postgres/test_chunks.py", "are_returned"),
    ),
    "ranges are checked while the service waits": Mutant(
        file="service/cycle/daemon.py",
        old="                swept = self.upkeep.sweep(self.lease)\n                due",
        new="                due",
        caught_by=test("tests/postgres/test_claim_run.py", "rows_that_wait_anywhere"),
    ),
    "ranges are checked during a run": Mutant(
        file="service/cycle/supervise.py",
        old="            self.upkeep.sweep(lease)\n            self.board.clear",
        new="            self.board.clear",
        caught_by=test("tests/postgres/test_claim_run.py", "during_a_run"),
    ),
    "counts made under other limits are discarded": Mutant(
        file="db/chunks.py",
        old='        ranges.run("chunks_forget")\n',
        new="",
        caught_by=test("tests/postgres/test_chunks.py", "other_limits"),
    ),
    "counted rows that are gone start no endless loop": Mutant(
        file="service/cycle/daemon.py",
        old="            chunks.discard_counts(self.pool, self.lease)\n",
        new="",
        caught_by=test("tests/postgres/test_claim_run.py", "deleted_rows"),
    ),
    "a settled row is not claimed again": Mutant(
        file="db/queries/claim.sql",
        old="        settings = excluded.settings\n    where l.disposition = 'returned';",
        new="        settings = excluded.settings;",
        caught_by=test("tests/postgres/test_claim.py", "settled_row"),
    ),
    "a claim that inserts fewer rows than it read is rolled back": Mutant(
        file="db/claim.py",
        old="        if self.cursor.rowcount != len(records):",
        new="        if False:",
        caught_by=test("tests/postgres/test_claim.py", "settled_row"),
    ),
    "a claim reads one snapshot": Mutant(
        file="db/claim.py",
        old='with pool.transaction(isolation="repeatable read") as cursor:\n        fence',
        new="with pool.transaction() as cursor:\n        fence",
        caught_by=test("tests/postgres/test_claim.py", "one_snapshot"),
    ),
    "a source that repeats an id is refused": Mutant(
        file="db/claim.py",
        old="                if found > 1 and record[0] < first_id:",
        new="                if False:",
        caught_by=test("tests/postgres/test_claim.py", "repeats_an_id"),
    ),
    "a committed run without a directory returns its rows": Mutant(
        file="service/cycle/daemon.py",
        old="        if not directory.root.exists():\n            self._settling.give_back(",
        new="        if not directory.root.exists():\n            (lambda *_: None)(",
        caught_by=test("tests/postgres/test_claim_run.py", "without_its_directory"),
    ),
    "folders of an unknown run are moved aside": Mutant(
        file="service/cycle/claim.py",
        old="        set_aside(home, rows.run_id)\n",
        new="",
        caught_by=test("tests/postgres/test_claim_run.py", "set_aside"),
    ),
    "bytes that are not UTF-8 reject the row and do not stop the service": Mutant(
        file="db/claim.py",
        old="        except UnicodeDecodeError:\n"
        '            self._reject(file_id, held_out, digest(content), "not_utf8", mark)\n',
        new="",
        caught_by=test("tests/postgres/test_claim.py", "not_utf8"),
    ),
    "metadata that cannot be stored rejects the row and does not stop the service": Mutant(
        file="db/rows.py",
        old="    if _NUL.search(text) or _is_too_deep(found, text):\n",
        new="    if _is_too_deep(found, text):\n",
        caught_by=test("tests/postgres/test_claim.py", "cannot_be_encoded"),
    ),
    "every row has exactly one outcome": Mutant(
        file="db/settling.py",
        old="        raise SettlementMismatch(run_id, problems)",
        new="        return",
        caught_by=test("tests/postgres/test_verdicts.py", "do_not_match"),
    ),
    "a run settles only its own rows": Mutant(
        file="db/settling.py",
        old="        if cursor.rowcount != len(batch):",
        new="        if False:",
        caught_by=test("tests/postgres/test_verdicts.py", "left_the_run"),
    ),
    "a late candidate returns its rows": Mutant(
        file="service/cycle/settle.py",
        old="        except (ParentMoved, RowsRevoked, SettlementMismatch) as error:",
        new="        except SettlementMismatch as error:",
        caught_by=test("tests/postgres/test_claim_run.py", "came_too_late"),
    ),
    "a run with an unreadable result returns its rows": Mutant(
        file="service/cycle/judging.py",
        old="    except (OSError, ValueError, TypeError, KeyError, AttributeError, RunDirectoryError) as error:\n",
        new="    except ZeroDivisionError as error:\n",
        caught_by=test("tests/postgres/test_claim_run.py", "cannot_be_read_is_returned"),
    ),
    "a returned row is not a duplicate of itself": Mutant(
        file="db/queries/fingerprints.sql",
        old="where f.stream = %(stream)s and (f.file_id, f.version) <> (a.file_id, a.version);",
        new="where f.stream = %(stream)s;",
        caught_by=test("tests/postgres/test_hygiene.py", "duplicates_of_themselves"),
    ),
    "the fingerprint of an untrained row does not block its copies": Mutant(
        file="migrations/0004_chunks.sql",
        old="        where c.disposition in ('rejected', 'quarantined', 'returned')));",
        new="        where false));",
        caught_by=test("tests/postgres/test_hygiene.py", "returned_row"),
    ),
    "a run makes only legal state transitions": Mutant(
        file="db/runs.py",
        old="    if to not in TRANSITIONS[state]:",
        new="    if False:",
        caught_by=test("tests/postgres/test_verdicts.py", "legal_transitions"),
    ),
    "a recorded outcome cannot be changed": Mutant(
        file="migrations/0001_initial.sql",
        old="create trigger append_only before update or delete on codelupe.run_rows",
        new="create trigger append_only before delete on codelupe.run_rows",
        caught_by=test("tests/postgres/test_verdicts.py", "append_only"),
    ),
    "the audit reports rows trained twice": Mutant(
        file="db/audit.py",
        old='    "audit_trained_twice": "{n} files were trained on in more than one published run: files {ids}",\n',
        new="",
        caught_by=test("tests/postgres/test_verdicts.py", "audit_finds"),
    ),
    "the audit reports an adapter that differs from the published one": Mutant(
        file="service/publish/evidence.py",
        old="        verify_adapter(home, adapter)\n",
        new="",
        caught_by=test("tests/postgres/test_evidence.py", "mismatches"),
    ),
}
