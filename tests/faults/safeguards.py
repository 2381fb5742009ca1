"""The list of the program's safeguards. Each names the test that fails when the safeguard is removed.

Row 19 removes them one at a time. It matches earlier results by title, so a safeguard with a new title is tried again.

Some safeguards are not listed, because no test can notice their removal:

- the fsyncs: only a power cut shows the difference
- TCP keepalives: the sentinel acts first
- `flock` around the swap of the pointer: only one service writes, and the swap is a single rename
- the index that allows a stream one current adapter: the statement before each insertion retires the old one
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A safeguard, and the test that fails without it."""

    file: str
    old: str
    """The safeguard's source text."""
    new: str
    """The text that replaces it."""
    caught_by: tuple[str, ...]
    """Arguments for pytest, or `row N` for a sample of that row."""


def _test(file: str, words: str = "") -> tuple[str, ...]:
    return (file, "-k", words) if words else (file,)


MUTANTS: dict[str, Mutant] = {
    # --- only one writer ---------------------------------------------------------------------------------------------
    "every write checks the lease": Mutant(
        file="db/lease.py",
        old="    if cursor.fetchone() != (lease.holder, lease.epoch, True):\n",
        new="    if False:\n",
        caught_by=_test("tests/postgres/test_verdicts.py", "every_write_is_fenced"),
    ),
    "only a free, own or expired lease can be taken": Mutant(
        file="db/queries/lease.sql",
        old="    where held.holder is null or held.holder = excluded.holder or held.expires_at <= clock_timestamp()\n",
        new="",
        caught_by=_test("tests/postgres/test_lease_and_streams.py", "one_holder_at_a_time"),
    ),
    "a lost lease is not renewed": Mutant(
        file="db/queries/lease.sql",
        old=" and epoch = %(epoch)s and expires_at > statement_timestamp()\n    for update",
        new="\n    for update",
        caught_by=_test("tests/postgres/test_lease_and_streams.py", "same_holder or expired"),
    ),
    "a lease does not change hands during a write": Mutant(
        file="db/queries/lease.sql",
        old="from codelupe.leases where stream = %(stream)s for share;",
        new="from codelupe.leases where stream = %(stream)s;",
        caught_by=_test("tests/postgres/test_verdicts.py", "cannot_change_hands"),
    ),
    "a process that stops during a write holds the lease row for only a few seconds": Mutant(
        file="db/queries/lease.sql",
        old="select set_config('idle_in_transaction_session_timeout', '15s', true);",
        new="select 1;",
        caught_by=_test("tests/postgres/test_lease_and_streams.py", "stops_during_a_write"),
    ),
    "a claim checks the lease again before its commit": Mutant(
        file="db/claim.py",
        old="            fence(guard, lease)\n",
        new="",
        caught_by=_test("tests/postgres/test_claim.py", "takeover"),
    ),
    "a stream has one live run": Mutant(
        file="migrations/0001_initial.sql",
        old="create unique index runs_one_live on codelupe.runs (stream) where ended_at is null;\n",
        new="",
        caught_by=_test("tests/postgres/test_claim.py", "second_claim"),
    ),
    "only one service runs in a folder": Mutant(
        file="service/settings/home.py",
        old="            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        new="            pass\n",
        caught_by=_test("tests/unit/test_service_parts.py", "one_service_per_folder"),
    ),
    "a trainer holds the lock of its run": Mutant(
        file="trainer/run_dir.py",
        old="                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n                break\n",
        new="                break\n",
        caught_by=_test("tests/unit/test_run_dir.py", "exclusive"),
    ),
    "a trainer ends when its service is gone": Mutant(
        file="trainer/stop.py",
        old="        if _held_open(0):",
        new="        if False:",
        caught_by=_test("tests/unit/test_train.py", "closed_stdin"),
    ),
    "a trainer that does not stop is killed": Mutant(
        file="service/cycle/launch.py",
        old="                    if time.monotonic() > deadline:\n                        process.kill()\n",
        new="",
        caught_by=_test("tests/unit/test_launch.py", "does_not_stop"),
    ),
    "an unsupervised trainer is killed": Mutant(
        file="service/cycle/launch.py",
        old="    except BaseException:\n        process.kill()\n        raise\n    return code",
        new="    except BaseException:\n        raise\n    return code",
        caught_by=_test("tests/unit/test_launch.py", "unwatched"),
    ),
    "only one process migrates at a time": Mutant(
        file="db/migrate.py",
        old='        cursor.execute(QUERIES["migrations_lock"])\n',
        new="",
        caught_by=_test("tests/postgres/test_lease_and_streams.py", "however_many_ask"),
    ),
    "a database of a newer version is left unchanged": Mutant(
        file="db/migrate.py",
        old="    if unknown := sorted(applied.keys() - scripts.keys()):",
        new="    if unknown := []:",
        caught_by=_test("tests/postgres/test_lease_and_streams.py", "refuse_what_they_do_not_know"),
    ),
    "a stream keeps its source, base and shape": Mutant(
        file="db/streams.py",
        old="    if problems := _differences(bound, binding):",
        new="    if problems := []:",
        caught_by=_test("tests/postgres/test_lease_and_streams.py", "bound_once"),
    ),
    "an embedded database is started only once": Mutant(
        file="db/embedded.py",
        old="            fcntl.flock(file, fcntl.LOCK_EX)\n",
        new="",
        caught_by=_test("tests/postgres/test_embedded.py", "two_starts"),
    ),
    # --- no row lost -------------------------------------------------------------------------------------------------
    "every possible id is in a range": Mutant(
        file="db/chunks.py",
        old="LEAST_ID, GREATEST_ID = -(2**63), 2**63 - 1",
        new="LEAST_ID, GREATEST_ID = 1, 2**63 - 1",
        caught_by=_test("tests/postgres/test_chunks.py", "any_id"),
    ),
    "the part cut off a range becomes a range": Mutant(
        file="db/chunks.py",
        old='        self.run("chunk_insert", first_id=end + 1, last_id=chunk.last_id, most_rows=chunk.most_rows)\n',
        new="",
        caught_by=_test("tests/postgres/test_chunks.py", "fills_up"),
    ),
    "a range is checked again for late commits": Mutant(
        file="db/queries/chunks.sql",
        old="  and (due_at <= least(now(), %(due)s::timestamptz) or",
        new="  and (looked_at is null and due_at <= least(now(), %(due)s::timestamptz) or",
        caught_by=_test("tests/postgres/test_chunks.py", "commit_below"),
    ),
    "a range is checked again when rows are returned": Mutant(
        file="migrations/0004_chunks.sql",
        old="where n.disposition = 'returned'));",
        new="where false));",
        caught_by=_test("tests/postgres/test_chunks.py", "are_returned"),
    ),
    "ranges are checked while the service waits": Mutant(
        file="service/cycle/daemon.py",
        old="                swept = self.upkeep.sweep(self.lease)\n                due",
        new="                due",
        caught_by=_test("tests/postgres/test_claim_run.py", "rows_that_wait_anywhere"),
    ),
    "ranges are checked during a run": Mutant(
        file="service/cycle/supervise.py",
        old="            self.upkeep.sweep(lease)\n            self.board.clear",
        new="            self.board.clear",
        caught_by=_test("tests/postgres/test_claim_run.py", "during_a_run"),
    ),
    "counts made under other limits are discarded": Mutant(
        file="db/chunks.py",
        old='        ranges.run("chunks_forget")\n',
        new="",
        caught_by=_test("tests/postgres/test_chunks.py", "other_limits"),
    ),
    "counted rows that are gone start no endless loop": Mutant(
        file="service/cycle/daemon.py",
        old="            chunks.discard_counts(self.pool, self.lease)\n",
        new="",
        caught_by=_test("tests/postgres/test_claim_run.py", "deleted_rows"),
    ),
    "a settled row is not claimed again": Mutant(
        file="db/queries/claim.sql",
        old="        settings = excluded.settings\n    where l.disposition = 'returned';",
        new="        settings = excluded.settings;",
        caught_by=_test("tests/postgres/test_claim.py", "settled_row"),
    ),
    "a claim that inserts fewer rows than it read is rolled back": Mutant(
        file="db/claim.py",
        old="        if self.cursor.rowcount != len(records):",
        new="        if False:",
        caught_by=_test("tests/postgres/test_claim.py", "settled_row"),
    ),
    "a claim reads one snapshot": Mutant(
        file="db/claim.py",
        old='with pool.transaction(isolation="repeatable read") as cursor:\n        fence',
        new="with pool.transaction() as cursor:\n        fence",
        caught_by=_test("tests/postgres/test_claim.py", "one_snapshot"),
    ),
    "a source that repeats an id is refused": Mutant(
        file="db/claim.py",
        old="                if found > 1 and record[0] < first_id:",
        new="                if False:",
        caught_by=_test("tests/postgres/test_claim.py", "repeats_an_id"),
    ),
    "a committed run without a directory returns its rows": Mutant(
        file="service/cycle/daemon.py",
        old="        if not directory.root.exists():\n            self._settling.give_back(",
        new="        if not directory.root.exists():\n            (lambda *_: None)(",
        caught_by=_test("tests/postgres/test_claim_run.py", "without_its_directory"),
    ),
    "folders of an unknown run are moved aside": Mutant(
        file="service/cycle/claim.py",
        old="        set_aside(home, rows.run_id)\n",
        new="",
        caught_by=_test("tests/postgres/test_claim_run.py", "set_aside"),
    ),
    "bytes that are not UTF-8 reject the row and do not stop the service": Mutant(
        file="db/claim.py",
        old="        except UnicodeDecodeError:\n"
        '            self._reject(file_id, held_out, digest(content), "not_utf8", mark)\n',
        new="",
        caught_by=_test("tests/postgres/test_claim.py", "not_utf8"),
    ),
    "metadata that cannot be stored rejects the row and does not stop the service": Mutant(
        file="db/rows.py",
        old="    if _NUL.search(text):\n        raise BadMetadata\n",
        new="",
        caught_by=_test("tests/postgres/test_claim.py", "cannot_be_encoded"),
    ),
    "every row has exactly one outcome": Mutant(
        file="db/settling.py",
        old="        raise SettlementMismatch(run_id, problems)",
        new="        return",
        caught_by=_test("tests/postgres/test_verdicts.py", "do_not_match"),
    ),
    "a run settles only its own rows": Mutant(
        file="db/settling.py",
        old="        if cursor.rowcount != len(batch):",
        new="        if False:",
        caught_by=_test("tests/postgres/test_verdicts.py", "left_the_run"),
    ),
    "a late candidate returns its rows": Mutant(
        file="service/cycle/settle.py",
        old="        except (ParentMoved, RowsRevoked, SettlementMismatch) as error:",
        new="        except SettlementMismatch as error:",
        caught_by=_test("tests/postgres/test_claim_run.py", "came_too_late"),
    ),
    "a run with an unreadable result returns its rows": Mutant(
        file="service/cycle/daemon.py",
        old="        except (OSError, ValueError, TypeError, KeyError, AttributeError, RunDirectoryError) as error:\n",
        new="        except ZeroDivisionError as error:\n",
        caught_by=_test("tests/postgres/test_claim_run.py", "cannot_be_read_is_returned"),
    ),
    "a returned row is not a duplicate of itself": Mutant(
        file="db/queries/fingerprints.sql",
        old="where f.stream = %(stream)s and (f.file_id, f.version) <> (a.file_id, a.version);",
        new="where f.stream = %(stream)s;",
        caught_by=_test("tests/postgres/test_hygiene.py", "duplicates_of_themselves"),
    ),
    "the fingerprint of an untrained row does not block its copies": Mutant(
        file="migrations/0004_chunks.sql",
        old="        where c.disposition in ('rejected', 'quarantined', 'returned')));",
        new="        where false));",
        caught_by=_test("tests/postgres/test_hygiene.py", "returned_row"),
    ),
    "a run makes only legal state transitions": Mutant(
        file="db/runs.py",
        old="    if to not in TRANSITIONS[state]:",
        new="    if False:",
        caught_by=_test("tests/postgres/test_verdicts.py", "legal_transitions"),
    ),
    "a recorded outcome cannot be changed": Mutant(
        file="migrations/0001_initial.sql",
        old="create trigger append_only before update or delete on codelupe.run_rows",
        new="create trigger append_only before delete on codelupe.run_rows",
        caught_by=_test("tests/postgres/test_verdicts.py", "append_only"),
    ),
    "the audit reports rows trained twice": Mutant(
        file="db/audit.py",
        old='    "audit_trained_twice": "{n} files were trained on in more than one published run: files {ids}",\n',
        new="",
        caught_by=_test("tests/postgres/test_verdicts.py", "audit_finds"),
    ),
    "the audit reports an adapter that differs from the published one": Mutant(
        file="service/publish/evidence.py",
        old="        verify_adapter(home, adapter)\n",
        new="",
        caught_by=_test("tests/postgres/test_evidence.py", "mismatches"),
    ),
    # --- no row trained twice, and no forbidden row trained ----------------------------------------------------------
    "only returned rows are claimed again": Mutant(
        file="db/queries/source.sql",
        old="(l.not_before is null or l.not_before <= now()))\n  and {ineligible} is null\norder by {id} limit",
        new="true or true)\n  and {ineligible} is null\norder by {id} limit",
        caught_by=_test("tests/postgres/test_claim.py", "settled_row"),
    ),
    "only the rows seen before the best step are trained": Mutant(
        file="trainer/outcomes.py",
        old="        elif seen[file_id]:",
        new="        elif True:",
        caught_by=_test("tests/unit/test_train.py", "later_steps"),
    ),
    "held-out files stay held out": Mutant(
        file="db/queries/source.sql",
        old="       exists (select from codelupe.held_out h where h.stream",
        new="       false and exists (select from codelupe.held_out h where h.stream",
        caught_by=_test("tests/postgres/test_claim.py", "never_kept"),
    ),
    "a held-out file is not kept for training": Mutant(
        file="db/claim.py",
        old='        if row.held_out and role != "held_out":',
        new="        if False:",
        caught_by=_test("tests/postgres/test_claim.py", "never_kept"),
    ),
    "a held-out file stays held out after it is returned": Mutant(
        file="service/admission/split.py",
        old="        return row.held_out or position <",
        new="        return position <",
        caught_by=_test("tests/unit/test_split.py", "stays_held_out"),
    ),
    "a later version of a held-out file is also held out": Mutant(
        file="service/cycle/claim.py",
        old="Splitter(recipe.data, rows.held_out_places())",
        new="Splitter(recipe.data)",
        caught_by=_test("tests/postgres/test_claim_run.py", "another_version"),
    ),
    "a held-out row cannot have the outcome trained": Mutant(
        file="db/settling.py",
        old="            if outcome.outcome in OUTCOMES_OF_ROLE[role]:",
        new="            if True:",
        caught_by=_test("tests/postgres/test_verdicts.py", "held_out_row_that_was"),
    ),
    "no run starts without held-out files": Mutant(
        file="service/cycle/claim.py",
        old="    if splitter.trained and not splitter.held_out and not before:",
        new="    if False:",
        caught_by=_test("tests/postgres/test_claim_run.py", "without_held_out"),
    ),
    "an exact duplicate is not trained on": Mutant(
        file="service/admission/duplicates.py",
        old="        if one.exact == exact:\n            return DUPLICATE\n",
        new="",
        caught_by=_test("tests/postgres/test_hygiene.py", "first_of_similar"),
    ),
    "a near duplicate of a held-out file is not trained on": Mutant(
        file="service/admission/duplicates.py",
        old="        if self._near is not None and similarity(one.signature, signature) >= self._near:",
        new="        if False:",
        caught_by=_test("tests/postgres/test_hygiene.py", "near_duplicate"),
    ),
    "later runs know the files already trained on": Mutant(
        file="service/admission/duplicates.py",
        old="        self._known.remember(kept)\n        return list",
        new="        return list",
        caught_by=_test("tests/postgres/test_hygiene.py", "remembered_in_later_runs"),
    ),
    "benchmark files are refused": Mutant(
        file="service/admission/admission.py",
        old="            or self._benchmarks.reason(row.content)\n",
        new="",
        caught_by=_test("tests/postgres/test_hygiene.py", "benchmark_is_refused"),
    ),
    "secrets are replaced by placeholders": Mutant(
        file="service/admission/admission.py",
        old='        if self._hygiene.secrets == "keep":\n            return row, found\n',
        new="        return row, found\n",
        caught_by=_test("tests/postgres/test_hygiene.py", "secret"),
    ),
    "a revoked row is not claimed": Mutant(
        file="service/admission/admission.py",
        old="        if row.file_id in self._revoked_ids or row.sha256 in self._revoked_texts:",
        new="        if False:",
        caught_by=_test("tests/postgres/test_revocations.py", "claim_refuses"),
    ),
    "a run with a revoked row is not published": Mutant(
        file="db/settling.py",
        old="    if found := revoked_among(cursor, stream, run_id) + trunk.revoked(cursor, stream):",
        new="    if found := trunk.revoked(cursor, stream):",
        caught_by=_test("tests/postgres/test_revocations.py", "revoked_row_is_not_published"),
    ),
    "a revocation waits for a write in progress": Mutant(
        file="db/revocations.py",
        old='        cursor.execute(QUERIES["lease_exclusive"], {"stream": stream})\n',
        new="",
        caught_by=_test("tests/postgres/test_revocations.py", "under_way"),
    ),
    "an adapter trained on a revoked row is no longer current": Mutant(
        file="db/revocations.py",
        old="        if begin_anew and any(adapter.is_current for adapter in found.adapters):",
        new="        if False:",
        caught_by=_test("tests/postgres/test_revocations.py", "beginning_anew"),
    ),
    "a withdrawn adapter cannot become current again": Mutant(
        file="db/queries/adapters.sql",
        old="where stream = %(stream)s and version = %(version)s and withdrawn_at is null returning version;",
        new="where stream = %(stream)s and version = %(version)s returning version;",
        caught_by=_test("tests/postgres/test_revocations.py", "beginning_anew"),
    ),
    "a revoked text is not used for evaluation": Mutant(
        file="db/revocations.py",
        old='        cursor.execute(QUERIES["revoked_forget_held_out"], parameters)\n',
        new="",
        caught_by=_test("tests/postgres/test_revocations.py", "text_is_forgotten"),
    ),
    "concurrent drops insert each file once": Mutant(
        file="db/files.py",
        old='        cursor.execute(QUERIES["files_lock"])\n',
        new="",
        caught_by=_test("tests/postgres/test_drop_twice.py", "many_drops"),
    ),
    "a claimed row matches its manifest": Mutant(
        file="trainer/check.py",
        old="        manifest = verify_manifest(directory.root)\n",
        new="        manifest = __import__('json').loads((directory.root / MANIFEST).read_text())\n",
        caught_by=_test("tests/unit/test_train.py", "tampered"),
    ),
    "a file occurs only once in a run": Mutant(
        file="trainer/reading.py",
        old="    if twice := [str(file_id) for file_id, times in Counter(file_ids).items() if times > 1]:",
        new="    if twice := []:",
        caught_by=_test("tests/unit/test_train.py", "occurs_twice"),
    ),
    "a finished run is not trained again": Mutant(
        file="trainer/__main__.py",
        old="    if directory.report.exists():",
        new="    if False:",
        caught_by=_test("tests/unit/test_train.py", "finished_run"),
    ),
    # --- every retry has a limit -------------------------------------------------------------------------------------
    "the last allowed attempt settles a row": Mutant(
        file="db/settling.py",
        old="            last = attempts.get(outcome.file_id, 0) + 1 >= max_attempts\n",
        new="            last = False\n",
        caught_by=_test("tests/postgres/test_verdicts.py", "refused_rows_wait"),
    ),
    "rows of a refused candidate wait longer after each refusal": Mutant(
        file="db/queries/settling.sql",
        old="    not_before = now() + make_interval(secs => v.backoff_seconds * power(2, l.attempts))\n",
        new="    not_before = null\n",
        caught_by=_test("tests/postgres/test_verdicts.py", "refused_rows_wait"),
    ),
    "a waiting row is not claimed": Mutant(
        file="db/queries/source.sql",
        old="(l.file_id is null or l.disposition = 'returned' and (l.not_before is null or l.not_before <= now()))",
        new="(l.file_id is null or l.disposition = 'returned')",
        caught_by=_test("tests/postgres/test_claim.py", "wait_for_their_time"),
    ),
    "a run whose trainer keeps crashing is abandoned": Mutant(
        file="service/cycle/daemon.py",
        old="            if self._crashes < MAX_CRASHES:",
        new="            if True:",
        caught_by=_test("tests/postgres/test_claim_run.py", "crashes_each_time"),
    ),
    "the trainer's suspects are recorded": Mutant(
        file="service/cycle/daemon.py",
        old=" if code in STEP_FAILED_CODES else None",
        new=" if False else None",
        caught_by=_test("tests/postgres/test_claim_run.py", "row_that_makes_steps_fail"),
    ),
    "a claim takes half of the suspects": Mutant(
        file="db/suspects.py",
        old="    return frozenset(file_id for file_id, _ in waiting[(newest + 1) // 2 :])",
        new="    return frozenset()",
        caught_by=_test("tests/postgres/test_bisection.py", "takes_half"),
    ),
    "the last suspect is quarantined": Mutant(
        file="db/suspects.py",
        old="    if len(named) != 1:",
        new="    if True:",
        caught_by=_test("tests/postgres/test_bisection.py", "only_suspect"),
    ),
    "earlier suspects are blamed before other rows": Mutant(
        file="db/suspects.py",
        old="    named = again or [file_id for file_id, _ in found]",
        new="    named = [file_id for file_id, _ in found]",
        caught_by=_test("tests/postgres/test_bisection.py", "finds_the_rows"),
    ),
    "a successful run clears its rows of suspicion": Mutant(
        file="db/suspects.py",
        old='    cursor.execute(QUERIES["suspects_clear"], {"stream": stream, "run_id": run_id})\n',
        new="    return\n",
        caught_by=_test("tests/postgres/test_bisection.py", "takes_half"),
    ),
    "each sample of a failed step is tried alone": Mutant(
        file="trainer/fit/suspects.py",
        old="        found = [sample for sample in samples if fails(sample)]\n",
        new="",
        caught_by=_test("tests/unit/test_suspects.py", "single_bad_row"),
    ),
    "no row is blamed for broken weights": Mutant(
        file="trainer/fit/suspects.py",
        old="            return None\n        found",
        new="            pass\n        found",
        caught_by=_test("tests/unit/test_suspects.py", "no_row_is_suspected"),
    ),
    "a failing trainer records its suspects": Mutant(
        file="trainer/train.py",
        old="        if failed.suspects is not None:",
        new="        if False:",
        caught_by=_test("tests/unit/test_suspects.py", "leaves_its_suspects"),
    ),
    "out of memory leads to a smaller micro-batch": Mutant(
        file="trainer/fit/loop.py",
        old="                if not is_out_of_memory(error):\n                    raise\n            # The",
        new="                raise\n            # The",
        caught_by=_test("tests/unit/test_loop.py", "out_of_memory"),
    ),
    "a non-finite loss ends the run": Mutant(
        file="trainer/fit/loop.py",
        old='            if not math.isfinite(value):\n                self.context.events.emit("non_finite"',
        new='            if False:\n                self.context.events.emit("non_finite"',
        caught_by=_test("tests/unit/test_loop.py", "not_finite"),
    ),
    # --- the live adapter can always be loaded -----------------------------------------------------------------------
    "a publication requires its parent to be current": Mutant(
        file="db/settling.py",
        old="    _check_parent(cursor, stream, run_id, parent_version)\n",
        new="",
        caught_by=_test("tests/postgres/test_verdicts.py", "moved_parent"),
    ),
    "the pointer is updated from the database": Mutant(
        file="service/cycle/upkeep.py",
        old="            if sync_pointer(self.home, self.stream, current):\n",
        new="            if False:\n",
        caught_by=_test("tests/postgres/test_claim_run.py", "left_behind"),
    ),
    "the pointer is swapped by a rename": Mutant(
        file="service/publish/folders.py",
        old="            temporary.symlink_to(wanted)\n            temporary.replace(pointer)\n",
        new="            pointer.unlink(missing_ok=True)\n            pointer.symlink_to(wanted)\n"
        "            (pointer.parent / 'adapters').mkdir(exist_ok=True)\n",
        caught_by=_test("tests/unit/test_publish.py", "swap_that_fails"),
    ),
    "a candidate is verified before it is copied": Mutant(
        file="service/publish/folders.py",
        old="    verify_manifest(run.adapter, beat)\n",
        new="",
        caught_by=_test("tests/unit/test_publish.py", "damaged_candidate"),
    ),
    "a copy that differs from its original is not published": Mutant(
        file="service/publish/folders.py",
        old="        if {name: copies[name] for name in originals} != originals:",
        new="        if False:",
        caught_by=_test("tests/unit/test_publish.py", "copy_that_differs"),
    ),
    "the pointer never names a missing folder": Mutant(
        file="service/publish/folders.py",
        old="    if current is not None and not home.adapter(current.version).is_dir():",
        new="    if False:",
        caught_by=_test("tests/unit/test_publish.py", "never_names"),
    ),
    "a folder in place of the pointer is left unchanged": Mutant(
        file="service/publish/folders.py",
        old="    if pointer.exists() and not pointer.is_symlink():",
        new="    if False:",
        caught_by=_test("tests/unit/test_publish.py", "not_touched"),
    ),
    "retention keeps the current adapter": Mutant(
        file="service/publish/folders.py",
        old=" | {a.version for a in history if a.is_current}",
        new="",
        caught_by=_test("tests/unit/test_publish.py", "retention"),
    ),
    "a rollback waits for a publication in progress": Mutant(
        file="db/adapters.py",
        old='        cursor.execute(QUERIES["lease_exclusive"], {"stream": stream})\n',
        new="",
        caught_by=_test("tests/postgres/test_verdicts.py", "rollback_waits"),
    ),
    "no run starts from a damaged adapter": Mutant(
        file="service/cycle/upkeep.py",
        old="                verify_adapter(self.home, current, self.board.beat)\n",
        new="                pass\n",
        caught_by=_test("tests/postgres/test_claim_run.py", "damaged_adapter"),
    ),
    "no run starts from an adapter of another history": Mutant(
        file="service/publish/folders.py",
        old="    if (found := sha256_file(folder / MANIFEST)) != adapter.manifest_sha256:",
        new="    if (found := adapter.manifest_sha256) != found:",
        caught_by=_test("tests/postgres/test_claim_run.py", "damaged_adapter"),
    ),
    "a trainer checks its parent": Mutant(
        file="trainer/check.py",
        old="        verify_manifest(folder)\n",
        new="        pass\n",
        caught_by=_test("tests/unit/test_train.py", "parent_that_changed"),
    ),
    "a worse candidate is refused": Mutant(
        file="service/gate/rules.py",
        old="    if found.low > 0:\n",
        new="    if False:\n",
        caught_by=_test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "an uncertain gain is not promoted": Mutant(
        file="service/gate/rules.py",
        old="    if found.high < -limit:\n",
        new="    if found.difference < -limit:\n",
        caught_by=_test("tests/unit/test_judge.py", "too_little_evidence"),
    ),
    "a gain on too few files is not promoted": Mutant(
        file="service/gate/rules.py",
        old="    if found is None or files < least:",
        new="    if found is None:",
        caught_by=_test("tests/unit/test_judge.py", "too_little_evidence"),
    ),
    "each look at the same files needs more certainty": Mutant(
        file="service/gate/evidence.py",
        old="        return 1 - (1 - self.gate.confidence) / (self.looks * (self.looks + 1))",
        new="        return self.gate.confidence",
        caught_by=_test("tests/unit/test_judge.py", "further_look"),
    ),
    "a candidate that forgets is refused": Mutant(
        file="service/gate/rules.py",
        old="    if found.low > 0 and found.difference > limit:",
        new="    if False:",
        caught_by=_test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "a loss in one language is refused": Mutant(
        file="service/gate/rules.py",
        old="if one.low > 0 and one.difference > limit}",
        new="if False}",
        caught_by=_test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "weights that are not finite are refused": Mutant(
        file="service/gate/rules.py",
        old='    if names := examination["weights"]["not_finite"]:',
        new="    if names := []:",
        caught_by=_test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "an adapter that measures differently is refused": Mutant(
        file="service/gate/rules.py",
        old="    if not difference <= SAME_LOSS:",
        new="    if False:",
        caught_by=_test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "a leaked control token is refused": Mutant(
        file="service/gate/rules.py",
        old='    if ours["leaking"] > base["leaking"]:',
        new="    if False:",
        caught_by=_test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "a judged row that was trained on is refused": Mutant(
        file="service/gate/rules.py",
        old="    if evidence.leaks:",
        new="    if False:",
        caught_by=_test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "an open candidate's rows wait for a later verdict": Mutant(
        file="db/settling.py",
        old='            plan.add_kept(outcome, role, learned="learning")',
        new='            plan.add_kept(outcome, role, learned="trained")',
        caught_by=_test("tests/postgres/test_trunk.py", "keeps_its_rows"),
    ),
    "a run counts only on the trunk that it started from": Mutant(
        file="db/settling.py",
        old="    trunk.check_head(cursor, stream, run_id)\n",
        new="",
        caught_by=_test("tests/postgres/test_trunk.py", "trunk_was_given_up"),
    ),
    "a refusal settles the trunk": Mutant(
        file="db/settling.py",
        old="        if with_trunk and trunk.is_start_of(cursor, lease.stream, run_id):",
        new="        if False:",
        caught_by=_test("tests/postgres/test_trunk.py", "refusal_settles"),
    ),
    "a revoked row gives the trunk up": Mutant(
        file="db/revocations.py",
        old="        if trunk.revoked(cursor, stream):",
        new="        if False:",
        caught_by=_test("tests/postgres/test_trunk.py", "revoked_row_of_the_trunk"),
    ),
    "a candidate without a numeric loss is refused": Mutant(
        file="service/gate/rules.py",
        old="    if missing := [name for name, loss in evidence.losses.items() if not math.isfinite(loss)]:",
        new="    if missing := []:",
        caught_by=_test("tests/unit/test_judge.py", "not_a_number"),
    ),
    "a report of another run is refused": Mutant(
        file="service/gate/rules.py",
        old='    if report.get("run_id") != evidence.run_id:',
        new="    if False:",
        caught_by=_test("tests/unit/test_judge.py", "every_reason"),
    ),
    "a folder appears only when it is complete": Mutant(
        file="trainer/run_dir.py",
        old='    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")\n    shutil.rmtree(temporary',
        new="    temporary = path\n    shutil.rmtree(temporary",
        caught_by=_test("tests/unit/test_run_dir.py", "appears_whole"),
    ),
    "a file is replaced atomically": Mutant(
        file="trainer/run_dir.py",
        old='    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")\n    with temporary.open("w"',
        new='    temporary = path\n    with temporary.open("w"',
        caught_by=_test("tests/unit/test_run_dir.py", "replaced_whole"),
    ),
    "the report is written last": Mutant(
        file="trainer/train.py",
        old="    write_outcomes(directory.rows_outcome, outcomes)\n    report",
        new="    write_json(directory.report, {})\n    write_outcomes(directory.rows_outcome, outcomes)\n    report",
        caught_by=_test("tests/unit/test_train.py", "report_comes_last"),
    ),
    "a checkpoint is verified before use": Mutant(
        file="trainer/fit/checkpoint.py",
        old="    verify_manifest(path)\n    try:\n        state",
        new="    try:\n        state",
        caught_by=_test("tests/unit/test_checkpoint.py", "is_skipped"),
    ),
    "a damaged checkpoint is skipped for the one before it": Mutant(
        file="trainer/fit/checkpoint.py",
        old="            on_damaged(path, str(error))\n",
        new="            on_damaged(path, str(error))\n            return None\n",
        caught_by=_test("tests/unit/test_checkpoint.py", "is_skipped"),
    ),
    "a checkpoint with a damaged best step is not used": Mutant(
        file="trainer/fit/checkpoint.py",
        old="                verify_manifest(best)\n",
        new="                pass\n",
        caught_by=_test("tests/unit/test_checkpoint.py", "best_step"),
    ),
    "the best weights are verified before they become the result": Mutant(
        file="trainer/fit/checkpoint.py",
        old="    verify_manifest(path)\n    return load_file",
        new="    return load_file",
        caught_by=_test("tests/unit/test_checkpoint.py", "become_the_result"),
    ),
    "a trainer saves its steps when it is stopped": Mutant(
        file="trainer/fit/loop.py",
        old="        if self.progress.step > 0:\n            self._save()\n        raise",
        new="        raise",
        caught_by=_test("tests/unit/test_checkpoint.py", "same_bits"),
    ),
    "content is encoded without control tokens": Mutant(
        file="trainer/data/encoder.py",
        old='    description |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}\n',
        new='    description |= {"post_processor": None, "truncation": None, "padding": None}\n',
        caught_by=_test("tests/unit/test_tokenize.py"),
    ),
    "an adapter that fails its test is not served": Mutant(
        file="service/publish/serving.py",
        old="        server.check(name)\n",
        new="        pass\n",
        caught_by=_test("tests/serving/test_serving.py", "answers_nan"),
    ),
    "a failed move of the served name is undone": Mutant(
        file="service/publish/serving.py",
        old="            _load_quietly(server, ALIAS, before)\n",
        new="            pass\n",
        caught_by=_test("tests/serving/test_serving.py", "restores_the_alias"),
    ),
    # --- /health answers, and the service keeps running --------------------------------------------------------------
    "a hanging loop ends the process": Mutant(
        file="service/cycle/watchdog.py",
        old="                end()\n",
        new="",
        caught_by=_test("tests/unit/test_watchdog.py", "stands_still"),
    ),
    "activity of other threads does not count as a heartbeat": Mutant(
        file="service/web/board.py",
        old="        self._change(lambda now: replace(now, **changes))\n",
        new="        self.update(**changes)\n",
        caught_by=_test("tests/unit/test_watchdog.py", "other_threads"),
    ),
    "a hanging loop is reported": Mutant(
        file="service/web/board.py",
        old="        if age > STALE_HEARTBEAT_SECONDS:",
        new="        if False:",
        caught_by=_test("tests/unit/test_http.py", "stale"),
    ),
    "slow clients do not use up the connections": Mutant(
        file="service/web/http.py",
        old="            connection_limit=1000,\n",
        new="",
        caught_by=_test("tests/unit/test_http.py", "half_open"),
    ),
    "an unavailable database gives an error answer, not a traceback": Mutant(
        file="service/web/http.py",
        old="    @app.errorhandler(DatabaseError)\n",
        new="",
        caught_by=_test("tests/unit/test_http.py", "errors_are_json"),
    ),
    "changes require the token": Mutant(
        file="service/web/http.py",
        old="        if not hmac.compare_digest(given",
        new="        if False and not hmac.compare_digest(given",
        caught_by=_test("tests/unit/test_http.py", "need_the_token"),
    ),
    "troubles of several threads do not overwrite each other": Mutant(
        file="service/web/board.py",
        old="        with self._lock:\n",
        new="        if True:\n",
        caught_by=_test("tests/serving/test_serving.py", "do_not_overwrite"),
    ),
    "an unwritable log does not end the service": Mutant(
        file="service/logs.py",
        old="        if not self._reported:\n",
        new="        raise\n        if not self._reported:\n",
        caught_by=_test("tests/unit/test_service_parts.py", "full_disk"),
    ),
    "no claim starts when the disk may be too small": Mutant(
        file="service/cycle/upkeep.py",
        old="        if free < needed:",
        new="        if False:",
        caught_by=_test("tests/postgres/test_claim_run.py", "without_disk_space"),
    ),
    "an error pauses the service and does not end it": Mutant(
        file="service/cycle/daemon.py",
        old="            except (DatabaseError, RunDirectoryError, OSError) as error:",
        new="            except ZeroDivisionError as error:",
        caught_by=_test("tests/postgres/test_claim_run.py", "standby_service_pauses"),
    ),
    "the reason for a pause is on the board": Mutant(
        file="service/cycle/pausing.py",
        old="        self._board.trouble(cause, reason)\n",
        new="",
        caught_by=_test("tests/postgres/test_claim_run.py", "standby_service_pauses"),
    ),
    "a pointer that cannot be updated is reported on the board": Mutant(
        file="service/cycle/upkeep.py",
        old='            self.board.trouble("pointer", f"{self.home.pointer(self.stream)} '
        'cannot be updated: {error}")\n',
        new="",
        caught_by=_test("tests/postgres/test_claim_run.py", "pointer_that_cannot"),
    ),
    "the trainer sees no database and no token": Mutant(
        file="service/cycle/launch.py",
        old="if name in PASSED_ON and value}",
        new="if value}",
        caught_by=_test("tests/unit/test_service_parts.py", "allow_list"),
    ),
    # --- the database becomes unavailable, and comes back ------------------------------------------------------------
    "the service waits for an unavailable database": Mutant(
        file="service/cycle/daemon.py",
        old="            except Unavailable as error:\n                database_failures += 1",
        new="            except ZeroDivisionError as error:\n                database_failures += 1",
        caught_by=_test("tests/faults/test_lost_commit.py"),
    ),
    "after a lost COMMIT the service rereads its state from the database": Mutant(
        file="service/cycle/daemon.py",
        old="                if self.state in WRITING:",
        new="                if False:",
        caught_by=_test("tests/faults/test_lost_commit.py"),
    ),
    "training continues while the database is unavailable": Mutant(
        file="service/cycle/supervise.py",
        old="            self.leadership.put_off()\n            self.upkeep.note_database_trouble(error)\n",
        new="            raise\n",
        caught_by=_test("tests/postgres/test_claim_run.py", "training_goes_on_while"),
    ),
    "a dead embedded database is restarted": Mutant(
        file="service/cycle/daemon.py",
        old="                self.upkeep.restart_database()\n",
        new="",
        caught_by=_test("tests/postgres/test_claim_run.py", "embedded_database"),
    ),
    "an error without a code counts as a lost connection": Mutant(
        file="db/classify.py",
        old="    if connection.closed or lost or isinstance",
        new="    if connection.closed or isinstance",
        caught_by=_test("tests/faults/test_silent_server.py", "error_of_another"),
    ),
    "a broken connection returns its slot to the pool": Mutant(
        file="db/pool.py",
        old="            with self._free:\n                self._in_use -= 1\n                self._free.notify()\n",
        new="            pass\n",
        caught_by=_test("tests/postgres/test_pool.py", "leaks_no_slot"),
    ),
    "a broken connection is also returned to psycopg2's pool": Mutant(
        file="db/pool.py",
        old="            self._sentinel.terminate_later(connection)\n        self._put_back(connection, close=True)\n",
        new="            self._sentinel.terminate_later(connection)\n",
        caught_by=_test("tests/postgres/test_pool.py", "leaks_no_slot"),
    ),
    "a connection is checked before it is handed out": Mutant(
        file="db/pool.py",
        old="            if connection.answers():",
        new="            if True:",
        caught_by=_test("tests/postgres/test_pool.py", "killed_while_idle"),
    ),
    "a long-idle connection is tested with a round trip": Mutant(
        file="db/connection.py",
        old="        if time.monotonic() - self.idle_since < ROUND_TRIP_AFTER_SECONDS:",
        new="        if True:",
        caught_by=_test("tests/postgres/test_pool.py", "long_idle"),
    ),
    "a full pool waits for a free slot": Mutant(
        file="db/pool.py",
        old="self._in_use < self._limit, self._wait_seconds)",
        new="self._in_use < self._limit, 0)",
        caught_by=_test("tests/postgres/test_pool.py", "full_pool"),
    ),
    "a statement has a timeout": Mutant(
        file="db/connection.py",
        old='"statement": "300s"',
        new='"statement": "0s"',
        caught_by=_test("tests/postgres/test_pool.py", "have_limits"),
    ),
    "an idle transaction ends after a timeout": Mutant(
        file="db/connection.py",
        old='"idle": "600s"',
        new='"idle": "0s"',
        caught_by=_test("tests/postgres/test_lease_and_streams.py", "stops_during_a_write"),
    ),
    "a silent server is probed": Mutant(
        file="db/sentinel.py",
        old="                        self._probe(connection, now - since[connection])\n",
        new="",
        caught_by=_test("tests/faults/test_silent_server.py", "no_connection_left"),
    ),
    "the wait for a silent server is ended": Mutant(
        file="db/sentinel.py",
        old="        connection.give_up(reason)\n",
        new="",
        caught_by=_test("tests/faults/test_silent_server.py", "black_hole"),
    ),
    "two silent connections are waited for once": Mutant(
        file="db/pool.py",
        old="            if self._sentinel.given_up == connection.given_up_before:",
        new="            if True:",
        caught_by=_test("tests/faults/test_silent_server.py", "two_silent_connections"),
    ),
    "an orphaned transaction in the server is ended": Mutant(
        file="db/sentinel.py",
        old="                self._terminate_orphans()\n        finally",
        new="        finally",
        caught_by=_test("tests/faults/test_silent_server.py", "orphaned_transaction"),
    ),
    "a long statement on a responsive server is not ended": Mutant(
        file="db/sentinel.py",
        old='                if probe.value(QUERIES["backend_is_busy"], {"pid": pid, "started": started, **limits}):',
        new="                if False:",
        caught_by=_test("tests/faults/test_silent_server.py", "a_long_statement"),
    ),
    "a connection that breaks at once counts as an unavailable database": Mutant(
        file="db/sentinel.py",
        old='            raise psycopg2.OperationalError(f"the connection broke at once: {error}") from error',
        new="            raise",
        caught_by=_test("tests/faults/test_silent_server.py", "breaks_at_once"),
    ),
    # --- very long texts ---------------------------------------------------------------------------------------------
    "long texts are checked a few at a time, and the lease is renewed between them": Mutant(
        file="service/cycle/claim.py",
        old="        if len(batch) == BATCH_ROWS or chars >= BATCH_CHARS:\n",
        new="        if len(batch) == BATCH_ROWS:\n",
        caught_by=_test("tests/postgres/test_claim_run.py", "between_long_texts"),
    ),
    "long held-out texts are written a few at a time": Mutant(
        file="db/claim.py",
        old=" or self._held_out_chars >= BATCH_CHARS:\n",
        new=":\n",
        caught_by=_test("tests/postgres/test_claim.py", "long_held_out"),
    ),
    "long held-out texts are read a few at a time": Mutant(
        file="db/claim.py",
        old="islice(order, min(HELD_OUT_ROWS, self.most_texts()))",
        new="islice(order, HELD_OUT_ROWS)",
        caught_by=_test("tests/postgres/test_claim.py", "long_held_out"),
    ),
    "missing fingerprints of long texts are computed a few at a time": Mutant(
        file="service/admission/duplicates.py",
        old=" or chars >= CATCH_UP_CHARS:\n",
        new=":\n",
        caught_by=_test("tests/unit/test_fingerprints.py", "long_old_rows"),
    ),
    # --- a row is its id and its text ---------------------------------------------------------------------------------
    "a settled row whose mark differs is looked at": Mutant(
        file="db/queries/chunks.sql",
        old="       or l.mark is distinct from {mark} and l.disposition in",
        new="       or false and l.disposition in",
        caught_by=_test("tests/postgres/test_versions.py", "another_text_is_trained"),
    ),
    "a mark shows every write of a row": Mutant(
        file="db/table.py",
        old='            return sql.SQL("((s.xmin::text::bigint << 32) | octet_length({}))").format(content)',
        new='            return sql.SQL("octet_length({})::bigint").format(content)',
        caught_by=_test("tests/postgres/test_versions.py", "another_text_is_trained"),
    ),
    "only another text is a new version": Mutant(
        file="db/versions.py",
        old="    changed = [file_id for file_id, _, same, _ in found if not same]",
        new="    changed = [file_id for file_id, _, same, _ in found]",
        caught_by=_test("tests/postgres/test_versions.py", "same_text_is_not_trained"),
    ),
    "what became of an earlier text is recorded": Mutant(
        file="db/versions.py",
        old='("supersede_record", "supersede_forget", "supersede_return")',
        new='("supersede_forget", "supersede_return")',
        caught_by=_test("tests/postgres/test_versions.py", "another_text_is_trained"),
    ),
    "without xmin, texts are compared in turn": Mutant(
        file="db/chunks.py",
        old="        if not self._source.has_xmin:",
        new="        if False:",
        caught_by=_test("tests/postgres/test_versions.py", "compared_in_turn"),
    ),
    "texts that could not be compared are compared soon": Mutant(
        file="db/queries/chunks.sql",
        old="case when %(compare_on)s then now() end",
        new="cast(null as timestamptz)",
        caught_by=_test("tests/postgres/test_versions.py", "in_an_older_range"),
    ),
    "an emptied table is noticed at the next poll": Mutant(
        file="db/chunks.py",
        old='            ranges.run("chunks_begin_anew")',
        new="            pass",
        caught_by=_test("tests/postgres/test_versions.py", "emptied_table"),
    ),
    "a new version of a held-out file is held out": Mutant(
        file="db/queries/source.sql",
        old="h.version = coalesce(l.version, 0) or h.repository is not distinct",
        new="h.version = coalesce(l.version, 0) or false and h.repository is not distinct",
        caught_by=_test("tests/postgres/test_versions.py", "new_version_of_a_held_out"),
    ),
    "a text that comes back under its id is not trained on again": Mutant(
        file="service/admission/admission.py",
        old="        if row.sha256 in row.trained_texts:",
        new="        if False:",
        caught_by=_test("tests/postgres/test_hygiene.py", "comes_back_under_its_id"),
    ),
    "the fingerprint of an earlier text stays": Mutant(
        file="migrations/0008_versions.sql",
        old=" and i.version = c.version offset 0",
        new=" offset 0",
        caught_by=_test("tests/postgres/test_hygiene.py", "under_another_id"),
    ),
    "an edited row is no near duplicate of itself": Mutant(
        file="service/admission/duplicates.py",
        old="                if found == DUPLICATE or not other.is_own:",
        new="                if True:",
        caught_by=_test("tests/postgres/test_hygiene.py", "near_duplicate_of_itself"),
    ),
    "a row that was trained on is not held out to fill up a run": Mutant(
        file="service/admission/split.py",
        old="        if row.trained_texts:",
        new="        if False:",
        caught_by=_test("tests/unit/test_split.py", "earlier_text_was_trained"),
    ),
    # --- a wrong setting burns no rows --------------------------------------------------------------------------------
    "a rejection is void when its setting changes": Mutant(
        file="service/cycle/daemon.py",
        old="        self.upkeep.void(self.lease, self.recipe, self._beat_and_renew)\n",
        new="",
        caught_by=_test("tests/postgres/test_wrong_settings.py", "void_when"),
    ),
    "a claim that a setting would reject whole is given back": Mutant(
        file="service/cycle/claim.py",
        old="        if not reject_all and (problem := wrong_setting(rejected, decided_rows, recipe)):",
        new="        if (problem := None):",
        caught_by=_test("tests/postgres/test_wrong_settings.py", "reject_whole"),
    ),
    "a run of which the trainer rejects nearly all is given back": Mutant(
        file="service/cycle/daemon.py",
        old="        if problem := self._wrong_setting(outcomes, recipe):",
        new="        if problem := None:",
        caught_by=_test("tests/postgres/test_wrong_settings.py", "trainer_rejects_nearly_all"),
    ),
    "a rejection carries the settings of its run": Mutant(
        file="db/settling.py",
        old='disposition, reason, self.settings.get(reason or ""))',
        new="disposition, reason, None)",
        caught_by=_test("tests/postgres/test_wrong_settings.py", "some_are_rejected"),
    ),
    # --- odd values in the source's columns ---------------------------------------------------------------------------
    "a score is compared in a type that can hold it": Mutant(
        file="db/queries/source.sql",
        old="a score that the other type cannot hold.\n{value}\n",
        new="a score that the other type cannot hold.\n{value}::real\n",
        caught_by=_test("tests/postgres/test_columns.py", "quality_score"),
    ),
    "a score is read as text": Mutant(
        file="db/queries/source.sql",
        old="{quality_score}::text,\n       exists (select from codelupe.held_out h where",
        new="{quality_score}::double precision,\n       exists (select from codelupe.held_out h where",
        caught_by=_test("tests/postgres/test_columns.py", "quality_score"),
    ),
    "no threshold is out of range": Mutant(
        file="db/queries/source.sql",
        old="round(least(greatest(cast(%(quality_threshold)s as numeric), -3.4e38), 3.4e38), 30)::real",
        new="%(quality_threshold)s::real",
        caught_by=_test("tests/postgres/test_columns.py", "any_threshold"),
    ),
    "a time that cannot be represented counts as unknown": Mutant(
        file="db/queries/source.sql",
        old="case when {value} between '4713-01-01 BC' and '294276-12-30' then {value}::timestamptz end",
        new="{value}::timestamptz",
        caught_by=_test("tests/postgres/test_columns.py", "created_at"),
    ),
    "a long name is not read": Mutant(
        file="db/queries/source.sql",
        old="case when {too_long} then '\\x00'::bytea else {bytes} end",
        new="{bytes}",
        caught_by=_test("tests/postgres/test_columns.py", "repository"),
    ),
    "large metadata is not read": Mutant(
        file="db/queries/source.sql",
        old="case when octet_length({value}::text) > {limit} then ''::bytea else {bytes} end",
        new="{bytes}",
        caught_by=_test("tests/postgres/test_columns.py", "metadata"),
    ),
    "the lowest id can be settled": Mutant(
        file="db/settling.py",
        old='BIGINT = "cast(%s as bigint)"',
        new='BIGINT = "%s::bigint"',
        caught_by=_test("tests/postgres/test_columns.py", "key"),
    ),
    "a domain counts as the type below it": Mutant(
        file="db/queries/source.sql",
        old=" where t.typtype = 'd'\n)",
        new=" where false\n)",
        caught_by=_test("tests/postgres/test_columns.py", "key"),
    ),
    # --- what is said -------------------------------------------------------------------------------------------------
    "a verdict is told after it is settled": Mutant(
        file="service/cycle/daemon.py",
        old="        self._judged = verdict\n",
        new="        self._announce(verdict)\n",
        caught_by=_test("tests/postgres/test_pauses.py", "cannot_be_settled"),
    ),
    "a verdict whose COMMIT got no answer is told": Mutant(
        file="service/cycle/daemon.py",
        old="        self._recall_verdict()\n        if run is None:\n",
        new="        if run is None:\n",
        caught_by=_test("tests/postgres/test_pauses.py", "got_no_answer"),
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
        caught_by=_test("tests/postgres/test_pauses.py", "announced_files"),
    ),
    "a pause that asks for files looks for them": Mutant(
        file="service/cycle/pausing.py",
        old="        if self._cause in ENDED_BY_FILES and self._has_more_rows():\n",
        new="        if False:\n",
        caught_by=_test("tests/postgres/test_pauses.py", "nobody_announces"),
    ),
    "a pause for space ends when there is space": Mutant(
        file="service/cycle/pausing.py",
        old='        if self._cause == "disk" and self._has_space():\n',
        new="        if False:\n",
        caught_by=_test("tests/postgres/test_pauses.py", "space_ends"),
    ),
    "a request for a run wakes a service that waits": Mutant(
        file="db/streams.py",
        old='        cursor.execute(QUERIES["files_notify"], {"channel": CHANNEL})\n',
        new="",
        caught_by=_test("tests/postgres/test_pauses.py", "request_wakes"),
    ),
    # --- commands -----------------------------------------------------------------------------------------------------
    "`codelupe gc` does not run beside a service": Mutant(
        file="service/cli/adapters.py",
        old="    with database(settings) as pool, only_service(home):",
        new="    with database(settings) as pool:",
        caught_by=_test("tests/postgres/test_gc.py", "meanwhile"),
    ),
    # --- others on the same server ------------------------------------------------------------------------------------
    "the limits of a transaction end with it": Mutant(
        file="db/queries/connections.sql",
        old="set local statement_timeout = %(statement)s;",
        new="set statement_timeout = %(statement)s;",
        caught_by=_test("tests/faults/test_pooler.py", "sets_anything"),
    ),
    "behind a pooler the service does not listen": Mutant(
        file="db/pool.py",
        old="        if self.is_pooled():\n            yield _not_notified\n            return\n",
        new="",
        caught_by=_test("tests/postgres/test_pool.py", "does_not_listen"),
    ),
    "a start without outstanding migrations creates nothing": Mutant(
        file="db/migrate.py",
        old="    if not pending(pool, source):\n        return []\n",
        new="    with pool.transaction() as cursor:\n        cursor.execute('create schema if not exists codelupe')\n",
        caught_by=_test("tests/postgres/test_rights.py", "where_nothing_is_outstanding"),
    ),
    "the source table is made only where it is the source": Mutant(
        file="db/migrate.py",
        old="    if source.name not in OUR_SOURCES:\n        return []\n",
        new="",
        caught_by=_test("tests/postgres/test_rights.py", "nothing_is_made_elsewhere"),
    ),
    "new tables are granted to the roles of services": Mutant(
        file="db/migrate.py",
        old="                rights.extend(cursor)\n",
        new="                pass\n",
        caught_by=_test("tests/postgres/test_rights.py", "later_migration"),
    ),
    "drop checks the right to insert before it reads": Mutant(
        file="service/cli/data.py",
        old="        check_may_insert(pool, settings)\n",
        new="",
        caught_by=_test("tests/postgres/test_rights.py", "drop_is_refused"),
    ),
    "a lease lasts less than a minute": Mutant(
        file="service/cycle/leadership.py",
        old="LEASE_SECONDS = 45.0",
        new="LEASE_SECONDS = 180.0",
        caught_by=_test("tests/postgres/test_leadership.py", "times_add_up"),
    ),
    "a busy leader keeps its lease": Mutant(
        file="service/cycle/leadership.py",
        old="            if lease is None or lease is self._lost or not late",
        new="            if True or lease is self._lost or not late",
        caught_by=_test("tests/postgres/test_leadership.py", "loop_is_busy"),
    ),
    "a leader whose loop hangs loses its lease": Mutant(
        file="service/cycle/leadership.py",
        old=" or not self._is_alive():",
        new=":",
        caught_by=_test("tests/postgres/test_leadership.py", "loop_hangs"),
    ),
    "a leader that writes for longer than its lease keeps it": Mutant(
        file="db/lease.py",
        old="            if cursor.fetchone() is None:\n                return None\n",
        new="",
        caught_by=_test("tests/postgres/test_leadership.py", "longer_than_the_lease"),
    ),
    "a stopped claim does not hold up the next leader": Mutant(
        file="db/claim.py",
        old='        cursor.execute(QUERIES["claim_idle_limit"])\n',
        new="",
        caught_by=_test("tests/postgres/test_leadership.py", "hold_up"),
    ),
    "the server hears of a claim while it lasts": Mutant(
        file="service/cycle/claim.py",
        old="            rows.keep_alive()\n",
        new="",
        caught_by=_test("tests/postgres/test_claim_run.py", "hears_of_a_claim"),
    ),
}
"""The safeguards by title."""
