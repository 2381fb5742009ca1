-- The trunk: inconclusive runs, on whose last candidate the next run trains on.

-- name: trunk_get
-- List the runs of the stream's trunk, oldest first, with the version that each was trained on from.
select t.run_id, r.parent_version from codelupe.trunk t join codelupe.runs r using (run_id)
where t.stream = %(stream)s order by t.run_id;

-- name: trunk_of_run
-- Select the trunk run that a run was trained on from, and the newest run of the trunk now.
select r.trunk_run_id, (select max(t.run_id) from codelupe.trunk t where t.stream = %(stream)s)
from codelupe.runs r where r.run_id = %(run_id)s;

-- name: trunk_add
-- Add an inconclusive run to the trunk.
insert into codelupe.trunk (stream, run_id) values (%(stream)s, %(run_id)s);

-- name: trunk_publish_runs
-- Record that what the trunk's runs had learned was published as a version.
update codelupe.runs set published_in = %(version)s
where run_id in (select run_id from codelupe.trunk where stream = %(stream)s);

-- name: trunk_publish_rows
-- Settle all rows that the trunk has learned as trained.
update codelupe.ledger set disposition = 'trained', settled_at = now()
where stream = %(stream)s and disposition = 'learning';

-- name: trunk_refuse_rows
-- Return the rows that a refused trunk has learned, as rows of a refused candidate. The last of %(max_attempts)s
-- attempts rejects them.
update codelupe.ledger
set disposition = case when attempts + 1 >= %(max_attempts)s then 'rejected' else 'returned' end,
    reason = case when attempts + 1 >= %(max_attempts)s then 'no_gain' end,
    not_before = case when attempts + 1 < %(max_attempts)s
                      then now() + make_interval(secs => %(backoff_seconds)s * power(2, attempts)) end,
    attempts = attempts + 1, settled_at = now()
where stream = %(stream)s and disposition = 'learning';

-- name: trunk_return_rows
-- Return the rows that the trunk has learned without counting an attempt.
update codelupe.ledger set disposition = 'returned', reason = null, not_before = null, settled_at = now()
where stream = %(stream)s and disposition = 'learning';

-- name: trunk_clear
-- Remove the trunk.
delete from codelupe.trunk where stream = %(stream)s;

-- name: trunk_revoked
-- Find rows of the trunk that were revoked.
select w.file_id from codelupe.trunk t
join codelupe.run_rows w on w.run_id = t.run_id and w.role <> 'held_out' and w.outcome in ('trained', 'replayed')
where t.stream = %(stream)s and exists (
    select from codelupe.revocations v where v.stream = %(stream)s
    and (v.file_id = w.file_id or v.content_sha256 = w.content_sha256))
order by 1;
