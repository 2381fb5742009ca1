"""Held-out files are read for an evaluation, settled ones only, in a seeded order."""

from __future__ import annotations

from world import STREAM, claim_all, fill

from db.held_out import read_held_out


def test_settled_held_out_files_are_read_in_seeded_order(pool, lease, query):
    fill(pool, 80)
    files = [file_id for (file_id,) in query("select id from code_files order by id")]
    claim_all(pool, lease, held_out=tuple(files[:60]))
    assert list(read_held_out(pool, STREAM, seed=1, limit=100)) == [], "their run has not ended"
    query("update codelupe.ledger set disposition = 'held_out', settled_at = now() where file_id = any(%s)", files[:55])
    read = list(read_held_out(pool, STREAM, seed=1, limit=100))
    assert sorted(row.file_id for row in read) == files[:55]
    assert all(row.content.startswith("# ") and row.language == "python" for row in read)
    assert list(read_held_out(pool, STREAM, seed=1, limit=53)) == read[:53]
    assert [row.file_id for row in read_held_out(pool, STREAM, seed=2, limit=100)] != [row.file_id for row in read]
    assert list(read_held_out(pool, "another", seed=1, limit=9)) == []
