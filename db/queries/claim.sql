-- Rows that a run claims, and the held-out files.

-- name: run_insert
-- Insert a new run. Fails if the stream has a live run.
insert into codelupe.runs (stream, parent_version, trunk_run_id, seed, epoch)
values (%(stream)s, %(parent_version)s, %(trunk_run_id)s, %(seed)s, %(epoch)s) returning run_id, created_at;

-- name: run_phase
-- Record the phase whose rows a run claims.
update codelupe.runs set phase = %(phase)s where run_id = %(run_id)s;

-- name: claim_idle_limit
-- Let the server end a claim that is idle for longer than a lease lasts. Its open run would make the claim of the next
-- leader wait.
set local idle_in_transaction_session_timeout = '45s';

-- name: ledger_claim
-- Claim rows that are not in the ledger or were returned. The row count is lower than the number of given rows if
-- another run has one of them.
insert into codelupe.ledger as l (stream, file_id, run_id, disposition, reason, settled_at, mark, settings) values %s
on conflict (stream, file_id) do update
    set run_id = excluded.run_id, disposition = excluded.disposition, reason = excluded.reason,
        not_before = null, claimed_at = now(), settled_at = excluded.settled_at, mark = excluded.mark,
        settings = excluded.settings
    where l.disposition = 'returned';

-- name: run_rows_insert
-- Record the rows of a run.
insert into codelupe.run_rows (run_id, file_id, role, content_sha256, outcome) values %s;

-- name: held_out_insert
-- Store the texts of held-out files. A file stays held out for ever. Its text is replaced at each claim.
insert into codelupe.held_out
    (stream, file_id, run_id, repository, path, language, content, content_sha256, metadata, version) values %s
on conflict (stream, file_id, version) do update
    set run_id = excluded.run_id, repository = excluded.repository, path = excluded.path,
        language = excluded.language, content = excluded.content, content_sha256 = excluded.content_sha256,
        metadata = excluded.metadata;

-- name: held_out_replace
-- Delete earlier texts of the files that a run holds out. The earlier text of another file, which had the same id, stays:
-- its repository and path are still held out.
delete from codelupe.held_out e using codelupe.held_out h
where h.stream = %(stream)s and h.run_id = %(run_id)s and e.stream = h.stream and e.file_id = h.file_id
  and e.version < h.version and e.repository is not distinct from h.repository and e.path is not distinct from h.path;

-- name: held_out_order
-- List the settled held-out files of earlier runs: first all files of the runs in %(trunk)s, then one file of each other
-- run, then a second one of each, and so on. The order within a run depends on the seed only.
select file_id from (
    select h.file_id, h.run_id, md5(%(seed)s::text || ':' || h.file_id::text) as place,
           row_number() over (partition by h.run_id order by md5(%(seed)s::text || ':' || h.file_id::text)) as rank
    from codelupe.held_out h join codelupe.ledger l using (stream, file_id, version)
    where h.stream = %(stream)s and l.disposition = 'held_out'
) files
order by run_id <> all(%(trunk)s::bigint[]), rank, place, file_id;

-- name: held_out_places
-- List repository and path of the held-out files of a stream, with those of earlier versions of rows.
select file_id, repository, path from codelupe.held_out where stream = %(stream)s;

-- name: held_out_texts
-- Select held-out files in the order of the given ids.
select h.file_id, h.repository, h.path, h.language, h.content, h.content_sha256, h.metadata, h.run_id
from unnest(%(files)s::bigint[]) with ordinality as asked (file_id, place)
join codelupe.held_out h on h.stream = %(stream)s and h.file_id = asked.file_id
join codelupe.ledger l on l.stream = h.stream and l.file_id = h.file_id and l.version = h.version
order by place;
