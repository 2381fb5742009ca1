"""Row 17: random operations on the database, compared with a short model of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from oracle import Broken
from rows import Done, Row, Trials
from scene import new_database, server

from db import adapters, audit, chunks, migrate, runs, settling, streams
from db import lease as leases
from db.adapters import NewAdapter
from db.claim import claim
from db.errors import DatabaseError, LeaseLost, ParentMoved, RowsRevoked
from db.pool import Pool
from db.revocations import Subject, revoke, revoked
from db.table import Eligibility, Source
from db.void import void
from trainer.records import Outcome, RowOutcome

STREAM = "machine"
INSERT = "insert into code_files (content, quality_score) values (%s, %s) returning id"
UPSERT = """insert into code_files (id, content, quality_score) overriding system value values (%s, %s, 90)
on conflict (id) do update set content = excluded.content, quality_score = excluded.quality_score"""
RESTART = "select setval(pg_get_serial_sequence('code_files', 'id'), coalesce(max(id), 0) + 1, false) from code_files \
where id between 1 and 1000000"
TEXTS = st.sampled_from(["x", "y", "another text"])
SETTLED = ("trained", "held_out", "rejected", "quarantined")
ELIGIBLE = Eligibility(quality_threshold=70, min_chars=1, max_chars=1000)
SOURCE = Source()
MAX_ATTEMPTS = 3
ADAPTER = NewAdapter(folder="v", manifest_sha256="0" * 64, evaluation={})
EXAMPLES, STEPS = 50, 50
"""Sequences per full trial, and steps per sequence."""


SCORES = st.lists(st.sampled_from([90.0, 90.0, 90.0, 10.0, None]), min_size=4, max_size=16)
WORDS: tuple[Outcome, ...] = ("trained", "trained", "trained", "unused", "rejected")
RUNS = {
    "limit": st.integers(1, 12),
    "held_out": st.integers(2, 6),
    "refused": st.integers(3, 9),
    "ends": st.sampled_from("cccux"),
    "salt": st.integers(1, 7),
    "verdict": st.sampled_from(["publish", "publish", "publish", "refuse", "returned", "failed", "failed"]),
    "blamed": st.sampled_from([1, 1, 2, 3]),
}
"""`ends` says how a claim ends, see `claim`. A failed run blames the ids that `blamed` divides."""
ENDED: Counter[str] = Counter()
"""The number of runs by verdict, over all sequences so far."""
NOTICED: Counter[str] = Counter()
"""The number of rows with a new text, and of rejections that became void."""


@dataclass
class File:
    """The model's state of a row."""

    score: float | None
    text: str = "x"
    """The text in the table."""
    claimed_text: str | None = None
    """The text that the last run with this row had."""
    state: str = "new"
    """new, claimed, trained, held_out, rejected, quarantined or returned."""
    settings: str | None = None
    """The settings that a rejection was made with."""
    versions: int = 0
    """The number of earlier texts that were settled."""
    trained: list[tuple[str, int]] = field(default_factory=list)
    """The texts that published runs trained on, each with its run."""
    attempts: int = 0
    is_held_out: bool = False
    """A file that was held out once stays held out."""
    is_gone: bool = False
    run: int = 0
    """The last run that claimed it."""

    @property
    def waits(self) -> bool:
        return self.state in ("new", "returned") and self.is_eligible

    @property
    def is_eligible(self) -> bool:
        return not self.is_gone and self.score is not None and self.score >= 70

    @property
    def has_another_text(self) -> bool:
        """Whether the text is not the one that was settled."""
        return not self.is_gone and self.state in SETTLED and self.text != self.claimed_text


@dataclass
class Run:
    """The live run."""

    run_id: int
    parent: int | None
    files: dict[int, str]
    """Role by id."""
    seen: list[int]
    """The ids that the claim read, including the refused ones."""


class Books(RuleBasedStateMachine):
    """Compares the database with a model made of a few dictionaries."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(self.url, max_connections=3)
        empty(self.pool)
        self.lease: leases.Lease = self.taken("one")
        self.old_lease: leases.Lease | None = None
        self.files: dict[int, File] = {}
        self.revoked: set[int] = set()
        self.suspects: dict[int, int] = {}
        """The failed run that made each file a suspect."""
        self.parents: dict[int, int | None] = {}
        self.withdrawn: set[int] = set()
        self.current: int | None = None
        self.live: Run | None = None
        self.settings = "a"
        self.dump: dict[int, tuple[float | None, str]] = {}

    def teardown(self) -> None:
        try:
            found = audit.audit(self.pool, SOURCE, ELIGIBLE, STREAM)
            assert found.problems == [], found.problems
            files = self.files.values()
            assert found.pending == sum(f.waits or (f.has_another_text and f.is_eligible) for f in files)
            assert found.changed == sum(file.has_another_text for file in files)
            assert sum(found.superseded.values()) == sum(file.versions for file in files)
        finally:
            self.pool.close()

    def taken(self, holder: str) -> leases.Lease:
        found = leases.acquire(self.pool, STREAM, holder, 600)
        assert found is not None
        return found

    def sql(self, statement: str, *values: Any) -> list[Any]:
        with self.pool.transaction() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def pick_file(self, number: int) -> int | None:
        """Return the file that a drawn number selects."""
        ids = sorted(self.files)
        return ids[number % len(ids)] if ids else None

    # --- producers ---------------------------------------------------------------------------------------------

    @initialize(scores=SCORES)
    def first_files(self, scores: list[float | None]) -> None:
        self.insert(scores, "x")

    @rule(scores=SCORES, text=TEXTS)
    def insert_some(self, scores: list[float | None], text: str) -> None:
        self.insert(scores, text)

    def insert(self, scores: list[float | None], text: str) -> None:
        for score in scores:
            [(file_id,)] = self.sql(INSERT, text, score)
            self.written(file_id, score, text)

    def written(self, file_id: int, score: float | None, text: str) -> None:
        """Note that a row was written. Its id may have been another row's before."""
        file = self.files.setdefault(file_id, File(score=score))
        file.score, file.text, file.is_gone = score, text, False

    @rule(number=st.integers(0, 1000), text=TEXTS)
    def upsert(self, number: int, text: str) -> None:
        file_id = self.pick_file(number)
        if file_id is not None:
            self.sql(UPSERT, file_id, text)
            self.sql(RESTART)
            self.written(file_id, 90.0, text)

    @rule(odds=st.integers(0, 3), scores=SCORES, text=TEXTS)
    def truncate(self, odds: int, scores: list[float | None], text: str) -> None:
        """The ids begin anew, with other texts."""
        if not odds:
            self.sql("truncate code_files restart identity")
            for file in self.files.values():
                file.is_gone = True
            self.insert(scores, text)

    @rule()
    def take_a_dump(self) -> None:
        self.dump = {n: (f.score, f.text) for n, f in self.files.items() if not f.is_gone}

    @rule()
    def restore_the_dump(self) -> None:
        if not self.dump:
            return
        self.sql("truncate code_files")
        for file in self.files.values():
            file.is_gone = True
        for file_id, (score, text) in self.dump.items():
            self.sql("insert into code_files (id, content, quality_score) values (%s, %s, %s)", file_id, text, score)
            self.written(file_id, score, text)
        self.sql(RESTART)

    @rule(file_id=st.integers(-(2**62), 2**62))
    def insert_by_id(self, file_id: int) -> None:
        if file_id in self.files or 0 < file_id < 10**6:  # the sequence uses these ids
            return
        self.sql("insert into code_files (id, content, quality_score) values (%s, 'x', 90)", file_id)
        self.files[file_id] = File(score=90.0)

    @rule(number=st.integers(0, 1000), score=st.sampled_from([None, 10.0, 70.0, 90.0]))
    def score(self, number: int, score: float | None) -> None:
        file_id = self.pick_file(number)
        if file_id is not None:
            self.sql("update code_files set quality_score = %s where id = %s", score, file_id)
            self.files[file_id].score = score

    @rule(number=st.integers(0, 1000))
    def delete(self, number: int) -> None:
        file_id = self.pick_file(number)
        if file_id is not None:
            self.sql("delete from code_files where id = %s", file_id)
            self.files[file_id].is_gone = True

    # --- runs --------------------------------------------------------------------------------------------------

    def run_on(self, limit: int, held_out: int, refused: int, ends: str, salt: int, verdict: str, blamed: int) -> None:
        """Claim a run if there is none, or finish the live one."""
        if self.live is None:
            self.claim(limit, held_out, refused, ends)
        else:
            self.finish(salt, verdict, blamed)

    one_run = rule(**RUNS)(run_on)
    another_run = rule(**RUNS)(run_on)
    a_third_run = rule(**RUNS)(run_on)
    a_fourth_run = rule(**RUNS)(run_on)
    a_fifth_run = rule(**RUNS)(run_on)
    """Hypothesis leaves some rules out of each sequence. With five copies, it rarely leaves out all of them."""

    def claim(self, limit: int, held_out: int, refused: int, ends: str) -> None:
        """Claim rows in the order of their ids. `ends` is c to commit, u to cancel, or x to fail in the middle."""
        if limit % 2:
            self.the_poll_counts_what_waits()
        wanted = sorted({file_id for file_id, file in self.files.items() if file.waits} - self.left_alone())[:limit]
        seen: dict[int, str] = {}
        options = {"limit": limit, "parent_version": self.current, "seed": 1}
        try:
            with claim(self.pool, self.lease, SOURCE, ELIGIBLE, **options) as made:  # type: ignore[arg-type]
                ids, _ = revoked(made.cursor, STREAM)
                assert ids == self.revoked
                for row in made.rows():
                    assert row.held_out == self.files[row.file_id].is_held_out or row.file_id in self.revoked
                    assert (row.content, row.version) == (
                        self.files[row.file_id].text,
                        self.files[row.file_id].versions,
                    )
                    if row.file_id in ids or row.sha256 in row.trained_texts:
                        assert row.file_id in ids or self.was_trained(row.file_id)
                        made.reject(row, "revoked" if row.file_id in ids else "duplicate")
                        seen[row.file_id] = "rejected"
                    elif row.file_id % refused == 0 and not row.held_out:
                        made.reject(row, "refused", settings=self.settings)
                        seen[row.file_id] = "rejected"
                    else:
                        role = "held_out" if row.held_out or row.file_id % held_out == 0 else "train"
                        made.keep(row, role)  # type: ignore[arg-type]
                        seen[row.file_id] = role
                if ends == "x":
                    raise Interrupted
                if ends == "u" or not seen:
                    made.cancel()
                run_id = made.run_id
        except Interrupted:
            return
        assert list(seen) == wanted
        if ends == "u" or not seen:
            return
        for file_id, role in seen.items():
            file = self.files[file_id]
            file.state, file.run = ("rejected" if role == "rejected" else "claimed"), run_id
            file.claimed_text = file.text
            final = file_id in self.revoked or self.was_trained(file_id)
            file.settings = self.settings if role == "rejected" and not final else None
            if role == "held_out":
                file.is_held_out = True
        self.live = Run(run_id, self.current, {n: r for n, r in seen.items() if r != "rejected"}, list(seen))

    def was_trained(self, file_id: int) -> bool:
        """Whether a live adapter was trained on the present text of a row."""
        file = self.files[file_id]
        return any(text == file.text and run_id not in self.withdrawn for text, run_id in file.trained)

    def finish(self, salt: int, verdict: str, blamed: int) -> None:
        assert self.live is not None
        run, outcomes = self.live, []
        ENDED[verdict] += 1
        for file_id, role in run.files.items():
            word = WORDS[(abs(file_id) + salt) % len(WORDS)]
            word = "held_out" if role == "held_out" and word != "rejected" else word
            reason = "why" if word == "rejected" else None
            outcomes.append(RowOutcome(file_id=file_id, outcome=word, reason=reason, tokens=1))
        report = {"train": {"tokens_published": sum(o.outcome == "trained" for o in outcomes)}}
        if verdict in ("publish", "refuse"):
            for state in ("training", "judging"):
                runs.advance(self.pool, self.lease, run.run_id, state)  # type: ignore[arg-type]
        if verdict == "publish":
            moved = run.parent != self.current
            hit = {n for n, role in run.files.items() if role == "train"} & self.revoked
            try:
                digests = {"why": self.settings}
                settling.publish(self.pool, self.lease, run.run_id, outcomes, ADAPTER, report, settings=digests)
                assert not moved and not hit
                self.cleared(run)
                self.published(run, outcomes)
                return
            except (ParentMoved, RowsRevoked):
                assert moved or hit
                verdict = "returned"
        if verdict == "refuse":
            settling.refuse(self.pool, self.lease, run.run_id, outcomes, reason="worse", report=report,
                        max_attempts=MAX_ATTEMPTS, backoff_seconds=0, settings={"why": self.settings})  # fmt: skip
            self.cleared(run)
            self.refused(outcomes)
            return
        measured = {file_id for file_id, file in self.files.items() if file.state == "held_out"}
        suspects = sorted(n for n in {*run.files, *measured} if verdict == "failed" and abs(n) % blamed == 0)
        single = self.blame(run, suspects)
        assert single == settling.give_back(self.pool, self.lease, run.run_id, state=verdict, reason="why", cause="x",
                                        suspects=suspects)  # type: ignore[arg-type]  # fmt: skip
        for file_id in run.files:
            self.files[file_id].state = "returned"
        if single is not None:
            self.files[single].state = "quarantined"
        self.live = None

    # --- rows that make runs fail ------------------------------------------------------------------------------

    def left_alone(self) -> set[int]:
        """Return the suspects that the next claim leaves out: half of the newest group, and all older groups."""
        waiting = sorted((-run_id, n) for n, run_id in self.suspects.items()
                         if self.files[n].state == "returned" and self.files[n].waits)  # fmt: skip
        newest = sum(run_id == waiting[0][0] for run_id, _ in waiting)
        return {n for _, n in waiting[(newest + 1) // 2 :]}

    def blame(self, run: Run, named: list[int]) -> int | None:
        """Blame the named files that were already suspects, or else all named files.

        The earlier groups of the blamed files are cleared. If only one file is blamed, it is the culprit and returned.
        """
        named = [n for n in named if n in self.suspects] or named
        groups = {self.suspects[n] for n in named if n in self.suspects}
        self.suspects = {n: run_id for n, run_id in self.suspects.items() if run_id not in groups}
        if len(named) == 1:
            return named[0]
        self.suspects |= dict.fromkeys(named, run.run_id)
        return None

    def cleared(self, run: Run) -> None:
        """Clear the suspects of a successful run."""
        self.suspects = {n: run_id for n, run_id in self.suspects.items() if n not in run.seen}

    def published(self, run: Run, outcomes: list[RowOutcome]) -> None:
        for outcome in outcomes:
            self.settled(outcome)
            if outcome.outcome == "trained":
                file = self.files[outcome.file_id]
                file.trained.append((file.claimed_text or "", run.run_id))
        self.parents[run.run_id] = run.parent
        self.current, self.live = run.run_id, None

    def refused(self, outcomes: list[RowOutcome]) -> None:
        for outcome in outcomes:
            file = self.files[outcome.file_id]
            if outcome.outcome == "trained":
                file.attempts += 1
                file.state = "rejected" if file.attempts >= MAX_ATTEMPTS else "returned"
            else:
                self.settled(outcome)
        self.live = None

    def settled(self, outcome: RowOutcome) -> None:
        file = self.files[outcome.file_id]
        file.state = {"unused": "returned"}.get(outcome.outcome, outcome.outcome)
        file.settings = self.settings if outcome.outcome == "rejected" else None

    # --- operators ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.parents)
    @rule(number=st.integers(0, 1000))
    def roll_back(self, number: int) -> None:
        version = sorted(self.parents)[number % len(self.parents)]
        try:
            adapters.roll_back(self.pool, STREAM, version)
            assert version not in self.withdrawn
            self.current = version
        except DatabaseError:
            assert version in self.withdrawn

    @rule(number=st.integers(0, 1000), begin_anew=st.booleans(), odds=st.integers(0, 3))
    def revoke(self, number: int, begin_anew: bool, odds: int) -> None:
        file_id = self.pick_file(number)
        if file_id is None or odds:
            return
        try:
            found = revoke(self.pool, SOURCE, STREAM, Subject(file_id=file_id), reason="x", begin_anew=begin_anew)
        except DatabaseError:
            assert self.files[file_id].is_gone  # a deleted file that was never claimed is unknown
            return
        self.revoked.add(file_id)
        saw = self.trained_on(file_id)
        assert {adapter.version for adapter in found.adapters} == saw
        if begin_anew:
            self.withdraw(file_id, saw)

    def trained_on(self, file_id: int) -> set[int]:
        """Return the adapters that were trained on a file, and their descendants."""
        rows = self.sql("select run_id from codelupe.run_rows where file_id = %s and outcome = 'trained'", file_id)
        found = {run_id for (run_id,) in rows} & set(self.parents)
        for version in sorted(self.parents):
            if self.parents[version] in found:
                found.add(version)
        return found

    def withdraw(self, file_id: int, saw: set[int]) -> None:
        self.withdrawn |= saw
        while self.current in saw:
            self.current = self.parents[self.current]
        for other, file in self.files.items():
            if file.state == "trained" and file.run in saw:
                file.state, file.attempts = ("rejected" if other == file_id else "returned"), 0

    @rule(settings=st.sampled_from("ab"))
    def restart_with_settings(self, settings: str) -> None:
        """Rejections that were made with other settings are void."""
        self.settings = settings
        digests = {"why": settings, "refused": settings}
        count = sum(void(self.pool, self.lease, digests, lambda: None).values())
        found = [f for f in self.files.values() if f.state == "rejected" and f.settings not in (None, settings)]
        assert count == len(found)
        NOTICED["rejections void"] += count
        for file in found:
            file.state, file.settings = "returned", None

    @rule()
    def take_the_lease(self) -> None:
        """Restart the same service. Its old lease becomes invalid."""
        self.old_lease, self.lease = self.lease, self.taken("one")

    @precondition(lambda self: self.old_lease is not None and self.live is not None)
    @rule()
    def write_under_the_old_lease(self) -> None:
        assert self.old_lease is not None and self.live is not None
        try:
            settling.give_back(self.pool, self.old_lease, self.live.run_id, state="failed", reason="late")
        except LeaseLost:
            return
        raise Broken("a write under an old lease succeeded")

    # --- invariants --------------------------------------------------------------------------------------------

    @invariant()
    def the_ledger_is_as_the_model_says(self) -> None:
        found = dict(self.sql("select file_id, disposition from codelupe.ledger"))
        assert found == {file_id: file.state for file_id, file in self.files.items() if file.state != "new"}

    @invariant()
    def the_suspects_are_as_the_model_says(self) -> None:
        assert dict(self.sql("select file_id, run_id from codelupe.suspects")) == self.suspects

    @invariant()
    def the_current_adapter_is_as_the_model_says(self) -> None:
        current = adapters.current(self.pool, STREAM)
        assert (current.version if current else None) == self.current

    @rule()
    def the_poll_counts_what_waits(self) -> None:
        changed = [file for file in self.files.values() if file.has_another_text]
        for file in changed:
            file.state, file.attempts, file.settings, file.versions = "returned", 0, None, file.versions + 1
        NOTICED["new texts"] += len(changed)
        waits = sum(file.waits for file in self.files.values())
        found = chunks.poll(self.pool, self.lease, SOURCE, ELIGIBLE)
        assert (found.rows, found.changed) == (waits, len(changed))
        assert chunks.count(self.pool, SOURCE, ELIGIBLE, STREAM) == waits


class Interrupted(Exception):
    """Ends a claim early."""


def empty(pool: Pool) -> None:
    """Empty every table, and bind the stream again."""
    with pool.transaction() as cursor:
        cursor.execute(
            "select format('truncate %s restart identity cascade', string_agg(c.oid::regclass::text, ', ')) "
            "from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'r' and "
            "(n.nspname = 'codelupe' and c.relname <> 'migrations' or c.relname = 'code_files')"
        )
        cursor.execute(cursor.fetchone()[0])  # type: ignore[index]
    streams.bind(pool, STREAM, streams.Binding(source="code_files", base_model="m", base_revision="r", lora={}))


@contextmanager
def state_machine(folder: Path, sample: bool) -> Iterator[Trials]:
    with server(folder / "postgres") as url:
        Books.url = new_database(url, "machine")
        pool = Pool(Books.url)
        migrate.apply(pool)
        pool.close()

        def trial(number: int) -> Done:
            examples = int(os.environ.get("FAULTS_EXAMPLES", "6" if sample else str(EXAMPLES)))
            options = settings(
                max_examples=examples, stateful_step_count=20 if sample and examples < EXAMPLES else STEPS,
                deadline=None, database=None,
                suppress_health_check=list(HealthCheck), verbosity=Verbosity.normal,
                phases=[Phase.generate] if sample else [Phase.generate, Phase.shrink],  # shrinking can take minutes
            )  # fmt: skip
            ENDED.clear()
            NOTICED.clear()
            run_state_machine_as_test(seed(number)(Books), settings=options)
            ended, noticed = (
                ", ".join(f"{count:,} {name}" for name, count in sorted(counted.items()))
                for counted in (ENDED, NOTICED)
            )
            if not sample and (ENDED.total() < examples // 5 or not NOTICED.total()):
                raise Broken(f"too little happened. Runs: {ended}. Also: {noticed}")
            return Done(count=examples, note=f"runs: {ended}; {noticed}")

        yield Trials(number=1 if sample else 1000 // EXAMPLES, run=trial)


ROWS = {
    17: Row(fault=f"random operations compared with a model of the database, {STEPS} steps each", unit="sequences",
            passes="ledger, audit and counts match the model", prepare=state_machine),
}  # fmt: skip
