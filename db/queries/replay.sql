-- Rows of earlier runs that a run trains on again.

-- name: replay_runs
-- List the runs that the current adapter and its ancestors learned from, in an order that depends on the seed. After a
-- rollback, the runs that were left behind are not among them.
with recursive line (version, parent_version, withdrawn_at) as (
    select version, parent_version, withdrawn_at from codelupe.adapters where stream = %(stream)s and is_current
    union all
    select a.version, a.parent_version, a.withdrawn_at
    from codelupe.adapters a join line on a.version = line.parent_version
)
select r.run_id from line
cross join lateral (select line.version as run_id
                    union all select t.run_id from codelupe.runs t where t.published_in = line.version) r
where line.withdrawn_at is null
order by md5(%(seed)s || ':' || r.run_id::text), r.run_id limit %(limit)s;

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
