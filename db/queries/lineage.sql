-- Which runs used a file, and which files must not be trained on again.

-- name: rows_by_id
-- Find a row by its id, in the source or in a run.
select {id} from {table} s where {id} = %(file_id)s
union select w.file_id from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.stream = %(stream)s and w.file_id = %(file_id)s;

-- name: rows_by_path
-- Find rows by path, or by repository/path, in the source and in the held-out files. A held-out file is found even if
-- its source row was deleted. The lengths are compared first, so that long names are not read.
select {id} from {table} s
where {path_text} = %(path)s
   or case when octet_length({repository_text}) + octet_length({path_text}) = octet_length(%(path)s::text) - 1
           then {repository_text} || '/' || {path_text} = %(path)s end
union select file_id from codelupe.held_out
where stream = %(stream)s and (path = %(path)s or repository || '/' || path = %(path)s);

-- name: rows_by_hash
-- Find rows that a run used with this text. Rows that no run has used are checked against the hash when they are
-- claimed.
select distinct w.file_id from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.stream = %(stream)s and w.content_sha256 = %(sha256)s;

-- name: lineage_uses
-- List the runs that used any of the given rows.
select w.run_id, r.state, w.file_id, w.role, w.outcome, w.tokens, w.content_sha256, r.created_at
from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.stream = %(stream)s and w.file_id = any(%(file_ids)s::bigint[]) order by w.run_id, w.file_id;

-- name: lineage_adapters
-- List the adapters that were trained on any of the given rows, and all adapters descended from them.
with recursive seen (version) as (
    select a.version from codelupe.run_rows w join codelupe.runs r using (run_id)
    join codelupe.adapters a on a.version = coalesce(r.published_in, r.run_id)
    where a.stream = %(stream)s and w.file_id = any(%(file_ids)s::bigint[]) and w.outcome in ('trained', 'replayed')
    union
    select a.version from codelupe.adapters a join seen on a.parent_version = seen.version
)
select a.version, a.parent_version,
       exists (select from codelupe.run_rows w join codelupe.runs r using (run_id)
               where a.version = coalesce(r.published_in, r.run_id) and w.file_id = any(%(file_ids)s::bigint[]) and w.outcome in ('trained', 'replayed')),
       a.is_current, a.withdrawn_at is not null
from codelupe.adapters a join seen using (version) order by 1;

-- name: lineage_clean_ancestor
-- Select the newest version among the current adapter and its ancestors that is not one of %(versions)s.
with recursive line (version, parent_version) as (
    select version, parent_version from codelupe.adapters where stream = %(stream)s and is_current
    union all
    select a.version, a.parent_version from codelupe.adapters a join line on a.version = line.parent_version
)
select version from line where version <> all(%(versions)s::bigint[]) order by version desc limit 1;

-- name: revocation_insert
-- Revoke a row or a text, so that it is not trained on again.
insert into codelupe.revocations (stream, file_id, content_sha256, reason)
values (%(stream)s, %(file_id)s, %(sha256)s, %(reason)s) on conflict do nothing;

-- name: revocation_reason
-- Select the reason why any of the given rows, or the given text, was revoked.
select reason from codelupe.revocations
where stream = %(stream)s and (file_id = any(%(file_ids)s::bigint[]) or content_sha256 = %(sha256)s) limit 1;

-- name: revocations
-- List all revoked rows and texts of a stream.
select file_id, content_sha256 from codelupe.revocations where stream = %(stream)s;

-- name: revoked_of_run
-- List the revoked rows of a live run. Rows that the claim rejected are not included, because the run does not train on
-- them.
select w.file_id from codelupe.run_rows w
where w.run_id = %(run_id)s and w.role <> 'held_out' and w.outcome is null and exists (
    select from codelupe.revocations v where v.stream = %(stream)s
    and (v.file_id = w.file_id or v.content_sha256 = w.content_sha256))
order by 1;

-- name: revoked_forget_held_out
-- Delete the held-out texts of revoked rows, so that they are not used for evaluation either.
delete from codelupe.held_out where stream = %(stream)s and file_id = any(%(file_ids)s::bigint[]);

-- name: adapters_withdraw
-- Withdraw adapters that were trained on a revoked row.
update codelupe.adapters set withdrawn_at = clock_timestamp()
where stream = %(stream)s and version = any(%(versions)s::bigint[]) and withdrawn_at is null;

-- name: ledger_withdraw
-- Return the rows that the withdrawn adapters were trained on, so that they are claimed again. Reject the revoked rows.
update codelupe.ledger
set disposition = case when file_id = any(%(file_ids)s::bigint[]) then 'rejected' else 'returned' end,
    reason = case when file_id = any(%(file_ids)s::bigint[]) then 'revoked' end,
    attempts = 0, not_before = null, settled_at = clock_timestamp()
where stream = %(stream)s and disposition = 'trained' and run_id in (
    select r.run_id from codelupe.runs r where coalesce(r.published_in, r.run_id) = any(%(versions)s::bigint[]));
