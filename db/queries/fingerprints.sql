-- Fingerprints of texts, for near duplicates.

-- name: fingerprints_alike
-- Find stored files that share a band with the given files, and whether each is an earlier version of the same row. The
-- three arrays run in parallel.
with asked as (
    select file_id, version, array_agg(band) as bands
    from unnest(%(files)s::bigint[], %(versions)s::integer[], %(bands)s::integer[]) as pair (file_id, version, band)
    group by file_id, version
)
select a.file_id, f.exact, f.signature, f.file_id = a.file_id
from asked a cross join lateral (
    select stream, file_id, version, exact, signature from codelupe.fingerprints where bands && a.bands offset 0
) f
where f.stream = %(stream)s and (f.file_id, f.version) <> (a.file_id, a.version);

-- name: set_seqscan
-- Turn sequential scans off or on for this transaction. The planner has no statistics for rows that the transaction has
-- just written. Without this, it would scan the whole table for each row.
select set_config('enable_seqscan', %(scan)s, true);

-- name: fingerprints_insert
-- Store the fingerprints of files that a claim keeps.
insert into codelupe.fingerprints (stream, file_id, version, exact, signature, bands) values %s
on conflict (stream, file_id, version) do update
    set exact = excluded.exact, signature = excluded.signature, bands = excluded.bands;

-- name: fingerprints_incomplete
-- List earlier runs that may have files without a fingerprint.
select run_id from codelupe.runs where stream = %(stream)s and not remembered and run_id <> %(run_id)s;

-- name: fingerprints_missing
-- Select files without a fingerprint, with text and metadata as bytes. These are the trained, learning and held-out files
-- of the given runs, and returned files that are held out. The stored held-out text is preferred to the text in the
-- source, which counts only if it is still the one that was settled. A text that has become too long is not read.
-- The name of the subquery must not be that of a source.
with codelupe_wanted as (
    select l.file_id, l.version, l.run_id from codelupe.ledger l
    where l.stream = %(stream)s and l.run_id = any(%(runs)s::bigint[])
      and l.disposition in ('trained', 'learning', 'held_out')
    union all
    select l.file_id, l.version, l.run_id from codelupe.ledger l join codelupe.held_out h using (stream, file_id, version)
    where l.stream = %(stream)s and l.disposition = 'returned'
)
select l.file_id, l.version, coalesce(convert_to(h.content, 'UTF8'), {content_bytes}),
       coalesce(convert_to(h.metadata::text, 'UTF8'), {metadata_bytes}),
       case when h.file_id is null then w.content_sha256 end
from codelupe_wanted l
left join codelupe.run_rows w on w.run_id = l.run_id and w.file_id = l.file_id
left join codelupe.fingerprints f on f.stream = %(stream)s and f.file_id = l.file_id and f.version = l.version
left join codelupe.held_out h on h.stream = %(stream)s and h.file_id = l.file_id and h.version = l.version
left join {table} s on {id} = l.file_id
where f.file_id is null and (h.content is not null or octet_length({content}) <= 4 * %(max_chars)s::bigint);

-- name: fingerprints_complete
-- Mark every run of the stream as complete, the run of this claim included.
update codelupe.runs set remembered = true where stream = %(stream)s and not remembered;
