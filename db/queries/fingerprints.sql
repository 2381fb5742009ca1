-- Fingerprints of texts, for near duplicates.

-- name: fingerprints_alike
-- Remembered files that share a band with the given ones; both arrays run side by side.
with asked as (
    select file_id, array_agg(band) as bands
    from unnest(%(files)s::bigint[], %(bands)s::integer[]) as pair (file_id, band) group by file_id
)
select a.file_id, f.exact, f.signature
from asked a cross join lateral (
    select stream, file_id, exact, signature from codelupe.fingerprints where bands && a.bands offset 0
) f
where f.stream = %(stream)s and f.file_id <> a.file_id;

-- name: by_index
-- What a transaction has just written is not in the planner's statistics: it would read it all for each row that asks.
select set_config('enable_seqscan', %(scan)s, true);

-- name: fingerprints_insert
-- Remember files that a claim keeps.
insert into codelupe.fingerprints (stream, file_id, exact, signature, bands) values %s
on conflict (stream, file_id) do update
    set exact = excluded.exact, signature = excluded.signature, bands = excluded.bands;

-- name: fingerprints_incomplete
-- Earlier runs that may have files without a fingerprint.
select run_id from codelupe.runs where stream = %(stream)s and not remembered and run_id <> %(run_id)s;

-- name: fingerprints_missing
-- Files without a fingerprint, with text and metadata as bytes: the kept ones, else the source's. Trained and held-out ones of the
-- given runs, and held-out ones that were returned.
with files as (
    select l.file_id from codelupe.ledger l
    where l.stream = %(stream)s and l.run_id = any(%(runs)s::bigint[]) and l.disposition in ('trained', 'held_out')
    union all
    select l.file_id from codelupe.ledger l join codelupe.held_out h using (stream, file_id)
    where l.stream = %(stream)s and l.disposition = 'returned'
)
select l.file_id, coalesce(convert_to(h.content, 'UTF8'), {content_bytes}),
       coalesce(convert_to(h.metadata::text, 'UTF8'), {metadata_bytes})
from files l
left join codelupe.fingerprints f on f.stream = %(stream)s and f.file_id = l.file_id
left join codelupe.held_out h on h.stream = %(stream)s and h.file_id = l.file_id
left join {table} s on {id} = l.file_id
where f.file_id is null and (h.content is not null or {content} is not null);

-- name: fingerprints_complete
-- Every run has them now, the one whose claim this is included.
update codelupe.runs set remembered = true where stream = %(stream)s and not remembered;
