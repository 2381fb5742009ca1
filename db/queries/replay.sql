-- Rows of earlier runs that a run trains on again.

-- name: replay_versions
-- List adapters of a stream that were not withdrawn, in an order that depends on the seed.
select version from codelupe.adapters where stream = %(stream)s and withdrawn_at is null
order by md5(%(seed)s || ':' || version::text), version limit %(limit)s;

-- name: replay_candidates
-- List rows that the given runs were trained on: one of each run, then another one of each, in an order that depends on
-- the seed.
select w.file_id, w.content_sha256
from unnest(%(versions)s::bigint[]) with ordinality as v (version, place)
cross join lateral (
    select r.file_id, r.content_sha256,
           row_number() over (order by md5(%(seed)s || ':' || r.file_id::text), r.file_id) as turn
    from codelupe.run_rows r where r.run_id = v.version and r.role = 'train' and r.outcome = 'trained'
    order by turn limit %(rows_of_run)s) w
join codelupe.ledger l
  on l.stream = %(stream)s and l.file_id = w.file_id and l.run_id = v.version and l.disposition = 'trained'
order by w.turn, v.place;
