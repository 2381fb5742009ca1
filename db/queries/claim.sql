-- Rows that a run claims, and the held-out files.

-- name: run_insert
-- A new run; fails where the stream has a live one.
insert into codelupe.runs (stream, parent_version, seed, epoch)
values (%(stream)s, %(parent_version)s, %(seed)s, %(epoch)s) returning run_id, created_at;

-- name: ledger_claim
-- Take rows that nobody has or that were returned. Counts fewer rows than given where another run has one.
insert into codelupe.ledger as l (stream, file_id, run_id, disposition, reason, settled_at) values %s
on conflict (stream, file_id) do update
    set run_id = excluded.run_id, disposition = excluded.disposition, reason = excluded.reason,
        not_before = null, claimed_at = now(), settled_at = excluded.settled_at
    where l.disposition = 'returned';

-- name: run_rows_insert
-- Which run has which row.
insert into codelupe.run_rows (run_id, file_id, role, content_sha256, outcome) values %s;

-- name: held_out_insert
-- Keep the text of held-out files. The decision stays for ever; the text is that of the latest claim.
insert into codelupe.held_out
    (stream, file_id, run_id, repository, path, language, content, content_sha256, metadata) values %s
on conflict (stream, file_id) do update
    set run_id = excluded.run_id, repository = excluded.repository, path = excluded.path,
        language = excluded.language, content = excluded.content, content_sha256 = excluded.content_sha256,
        metadata = excluded.metadata;

-- name: held_out_order
-- Settled held-out files of earlier runs, in an order that a seed decides.
select h.file_id from codelupe.held_out h join codelupe.ledger l using (stream, file_id)
where h.stream = %(stream)s and l.disposition = 'held_out'
order by md5(%(seed)s::text || ':' || h.file_id::text), h.file_id;

-- name: held_out_places
-- Where a stream's held-out files are.
select file_id, repository, path from codelupe.held_out where stream = %(stream)s;

-- name: held_out_texts
-- Held-out files in the order that is asked for.
select h.file_id, h.repository, h.path, h.language, h.content, h.content_sha256, h.metadata
from unnest(%(files)s::bigint[]) with ordinality as asked (file_id, place)
join codelupe.held_out h on h.stream = %(stream)s and h.file_id = asked.file_id
order by place;
