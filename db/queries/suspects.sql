-- Rows that may have made a run fail, and the search for the one that did.

-- name: suspects_of_run
-- Of the given rows, select those that the run has claimed and those that are held out. Also returns whether each was a
-- suspect before.
select l.file_id, p.file_id is not null
from codelupe.ledger l left join codelupe.suspects p using (stream, file_id)
where l.stream = %(stream)s and l.file_id = any(%(file_ids)s::bigint[])
  and (l.run_id = %(run_id)s and l.disposition = 'claimed' or l.disposition = 'held_out')
order by 1;

-- name: suspects_mark
-- Mark a group of rows as suspects: one of them may have made the run fail.
insert into codelupe.suspects (stream, file_id, run_id)
select %(stream)s, file_id, %(run_id)s from unnest(%(file_ids)s::bigint[]) as file_id
on conflict (stream, file_id) do update set run_id = excluded.run_id;

-- name: suspects_clear
-- Clear the suspects among the rows of a successful run.
delete from codelupe.suspects p using codelupe.run_rows w
where p.stream = %(stream)s and w.run_id = %(run_id)s and w.file_id = p.file_id;

-- name: suspects_release
-- Delete the groups that any of the given rows belongs to.
delete from codelupe.suspects
where stream = %(stream)s and run_id in (
    select p.run_id from codelupe.suspects p where p.stream = %(stream)s and p.file_id = any(%(file_ids)s::bigint[]));

-- name: suspects_waiting
-- List the suspects that a claim could take, newest group first.
select p.file_id, p.run_id
from codelupe.suspects p
join codelupe.ledger l using (stream, file_id)
join {table} s on {id} = p.file_id
where p.stream = %(stream)s and l.disposition = 'returned' and (l.not_before is null or l.not_before <= now())
  and {ineligible} is null
order by p.run_id desc, p.file_id;

-- name: ledger_quarantine
-- Quarantine the row that made a run fail.
update codelupe.ledger set disposition = 'quarantined', reason = %(reason)s, settled_at = now(), not_before = null
where stream = %(stream)s and file_id = %(file_id)s;

-- name: run_row_quarantine
-- Set the outcome of the quarantined row in its run.
update codelupe.run_rows set outcome = 'rejected'
where run_id = %(run_id)s and file_id = %(file_id)s and outcome is null;
