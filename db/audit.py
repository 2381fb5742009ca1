"""Audits a stream: every row of the source must be in exactly one class, and rows, tokens and adapters must agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from psycopg2 import extensions

from db.pool import Pool
from db.statements import QUERIES
from db.table import Eligibility, Source, resolved

IDS_SHOWN = 10
COUNT_AGAIN = "To count again, run this SQL: select codelupe.recount()"

CHECKS = {
    "audit_claimed_by_ended_run": "{n} rows are claimed by a run that has ended: files {ids}",
    "audit_claimed_without_run_row": "{n} rows are claimed, but their run does not list them: files {ids}",
    "audit_unseen_text": "{n} rows have another text than the one that was settled, and no look finds it: files {ids}",
    "audit_versions": "{n} rows have earlier texts that are not recorded, or not in the ledger: files {ids}",
    "audit_trained_twice": "{n} files were trained on in more than one published run: files {ids}",
    "audit_trained_without_run_row": "{n} files are trained in the ledger, but not in a published run: files {ids}",
    "audit_run_row_without_trained": "{n} files are trained in a published run, but not in the ledger: files {ids}",
    "audit_learning_without_trunk": "{n} rows are learning, but no open run has them: files {ids}",
    "audit_trunk": "{n} open runs have another state or another parent than the others: runs {ids}",
    "audit_tokens": "{n} published runs have rows that do not add up to the tokens of their report: runs {ids}",
    "audit_kept_rows": "{n} kept counts differ from the ledger: {ids}. " + COUNT_AGAIN,
    "audit_kept_runs": "{n} runs keep other counts than those of their rows: runs {ids}. " + COUNT_AGAIN,
    "audit_published_without_adapter": "{n} published runs have no adapter: runs {ids}",
    "audit_held_out_without_text": "{n} held-out files have no text to evaluate on: files {ids}",
    "audit_trained_held_out": "{n} held-out files were trained on: files {ids}",
    "audit_replay_untrained": "{n} files were replayed, but no earlier published run had trained on them: files {ids}",
    "audit_replay_revoked": "{n} files were replayed after they had been revoked: files {ids}",
    "audit_fingerprints": "{n} files have a fingerprint, but are neither trained, claimed nor held out: files {ids}",
}
"""The problem that each query reports if it returns rows."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The counts of one snapshot: total = pending + claimed + ineligible + settled."""

    total: int
    """Rows in the source."""
    pending: int
    """Rows that can be claimed now or later, returned rows included."""
    claimed: int
    ineligible: dict[str, int]
    """Rows by reason."""
    settled: dict[str, int]
    """Rows by disposition, followed by the reason if there is one (`rejected:no_gain`)."""
    changed: int
    """Settled rows that have another text by now. They are counted as pending or ineligible."""
    superseded: dict[str, int]
    """Earlier texts of rows, by what became of them. The counts above do not include them."""
    gone: int
    """Ledger rows whose source row was deleted. The counts above do not include them."""
    held_out: int
    """Stored held-out texts."""
    published_runs: int
    trained_rows: int
    trained_tokens: int
    """Of published runs, replayed rows included."""
    replayed_rows: int
    """How often published runs trained on a row again."""
    replayed_tokens: int
    problems: list[str]
    """One sentence for each problem. Empty if everything agrees."""


def audit(pool: Pool, source: Source, eligibility: Eligibility, stream: str) -> Audit:
    """Read everything in one snapshot and check that it agrees."""
    with pool.transaction(isolation="repeatable read", read_only=True) as cursor:
        cursor.execute(QUERIES["audit_timeout"])
        source = resolved(cursor, source)
        parameters = {"stream": stream, **eligibility.parameters()}
        total = _count(cursor, source, "audit_total", parameters)
        cursor.execute(source.statement("audit_classes"), parameters)
        classes: list[tuple[str, str | None, int]] = []
        changed = 0
        for name, reason, count, with_other_text in cursor.fetchall():
            classes.append((name, reason, count))
            changed += with_other_text
        cursor.execute(QUERIES["audit_superseded"], parameters)
        superseded: dict[str, int] = dict(cursor.fetchall())
        cursor.execute(QUERIES["totals_runs"], parameters)
        runs = {state: count for state, count, _ in cursor.fetchall()}
        cursor.execute(QUERIES["audit_trained"], parameters)
        trained = cursor.fetchone()
        assert trained is not None
        counted = sum(count for *_, count in classes)
        problems = list(_problems(cursor, source, parameters))
        if counted != total:
            repeated = f"the classes have {counted} rows, but the source has {total}: an id occurs more than once"
            problems.insert(0, repeated)
        return Audit(
            total=total,
            pending=sum(count for name, _, count in classes if name == "pending"),
            claimed=sum(count for name, _, count in classes if name == "claimed"),
            ineligible={reason: count for name, reason, count in classes if name == "ineligible" and reason},
            settled={
                name if reason is None else f"{name}:{reason}": count
                for name, reason, count in classes
                if name not in ("pending", "claimed", "ineligible")
            },
            changed=changed,
            superseded=superseded,
            gone=_count(cursor, source, "audit_gone", parameters),
            held_out=_count(cursor, source, "audit_held_out", parameters),
            published_runs=runs.get("published", 0),
            trained_rows=trained[0],
            trained_tokens=trained[1],
            replayed_rows=trained[2],
            replayed_tokens=trained[3],
            problems=problems,
        )


def _problems(cursor: extensions.cursor, source: Source, parameters: dict[str, object]) -> Iterator[str]:
    for name, sentence in CHECKS.items():
        cursor.execute(source.statement(name), {**parameters, "has_xmin": source.has_xmin})
        ids = [row[0] for row in cursor.fetchall()]
        if ids:
            shown = ", ".join(str(item) for item in ids[:IDS_SHOWN])
            yield sentence.format(n=len(ids), ids=shown + (", …" if len(ids) > IDS_SHOWN else ""))


def _count(cursor: extensions.cursor, source: Source, name: str, parameters: dict[str, object]) -> int:
    cursor.execute(source.statement(name), parameters)
    row = cursor.fetchone()
    assert row is not None
    return int(row[0])
