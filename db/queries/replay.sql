-- Rows of earlier runs that a run trains on again.

-- name: replay_runs
-- List the runs that the current adapter and its ancestors were trained in, inconclusive ones included, in an order that
-- depends on the seed. After a rollback, the adapters that were left behind are not among them.
with recursive line (version, parent_version, withdrawn_at) as (
    select version, parent_version, withdrawn_at from codelupe.adapters where stream = %(stream)s and is_current
    union all
    select a.version, a.parent_version, a.withdrawn_at
    from codelupe.adapters a join line on a.version = line.parent_version
)
select run_id from (
    select version as run_id from line where withdrawn_at is null
    union all
    select r.run_id from line join codelupe.runs r on r.published_in = line.version where line.withdrawn_at is null
) found
order by md5(%(seed)s || ':' || run_id::text), run_id limit %(limit)s;

-- name: replay_candidates
-- List rows that the given runs were trained on: one of each run, then another one of each, in an order that depends on
-- the seed.
select w.file_id, w.content_sha256, v.run_id
from unnest(%(runs)s::bigint[]) with ordinality as v (run_id, place)
cross join lateral (
    select r.file_id, r.content_sha256,
           row_number() over (order by md5(%(seed)s || ':' || r.file_id::text), r.file_id) as turn
    from codelupe.run_rows r where r.run_id = v.run_id and r.role = 'train' and r.outcome = 'trained'
    order by turn limit %(rows_of_run)s) w
join codelupe.ledger l
  on l.stream = %(stream)s and l.file_id = w.file_id and l.run_id = v.run_id and l.disposition = 'trained'
order by w.turn, v.place;
