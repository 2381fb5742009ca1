-- Totals of a stream.

-- name: totals_runs
-- Count the runs by state, with the time when the last one of each state ended.
select state, count(*), max(ended_at) from codelupe.runs where stream = %(stream)s group by state;

-- name: totals_rows
-- Select the kept counts of the ledger rows by disposition and reason.
select disposition, reason, sum(rows)::bigint from codelupe.ledger_totals
where stream = %(stream)s group by disposition, reason having sum(rows) <> 0;

-- name: totals_fold
-- Add up the counts of a stream: one row for each disposition and reason. Rows that another fold has are left to it.
with old as (
    delete from codelupe.ledger_totals where ctid = any(array(
        select ctid from codelupe.ledger_totals where stream = %(stream)s for update skip locked))
    returning disposition, reason, rows
)
insert into codelupe.ledger_totals (stream, disposition, reason, rows)
select %(stream)s, disposition, reason, sum(rows) from old group by disposition, reason having sum(rows) <> 0;

-- name: totals_unfolded
-- Count the rows that a fold would add up.
select count(*) from codelupe.ledger_totals where stream = %(stream)s;

-- name: totals_trained
-- Select the kept counts of rows and tokens that published adapters were trained on, those of them that were replayed, and
-- the highest id of a trained row. Replayed rows add tokens but are not counted as trained rows. A withdrawn adapter still
-- counts, but its rows wait again, so that none of them is the highest trained one.
select coalesce(sum(r.trained_rows), 0)::bigint, coalesce(sum(r.trained_tokens + r.replayed_tokens), 0)::bigint,
       coalesce(sum(r.replayed_rows), 0)::bigint, coalesce(sum(r.replayed_tokens), 0)::bigint,
       max(r.last_trained_id) filter (where a.withdrawn_at is null)
from codelupe.runs r left join codelupe.adapters a on a.version = coalesce(r.published_in, r.run_id)
where r.stream = %(stream)s and (r.state = 'published' or r.published_in is not null);

-- name: totals_last_run_seconds
-- Compute the duration of the last run with a verdict, from its first launch.
select extract(epoch from ended_at - started_at)::double precision from codelupe.runs
where stream = %(stream)s and state in ('published', 'refused', 'inconclusive') and started_at is not null
order by run_id desc limit 1;

-- name: totals_refusals_in_a_row
-- Count the runs that were refused since the last run with another verdict. Failed and returned runs have none.
select count(*) from codelupe.runs
where stream = %(stream)s and state = 'refused' and run_id > coalesce((
    select max(run_id) from codelupe.runs where stream = %(stream)s and state in ('published', 'inconclusive')
), 0);
