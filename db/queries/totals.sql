-- Totals of a stream.

-- name: totals_runs
-- Count the runs by state, with the time when the last one of each state ended.
select state, count(*), max(ended_at) from codelupe.runs where stream = %(stream)s group by state;

-- name: totals_rows
-- Count the ledger rows by disposition and reason, with the highest id of each.
select disposition, reason, count(*), max(file_id) from codelupe.ledger
where stream = %(stream)s group by disposition, reason;

-- name: totals_last_trained
-- Select the highest id with an earlier text that was trained on.
select max(file_id) from codelupe.superseded where stream = %(stream)s and disposition = 'trained';

-- name: totals_trained
-- Count the rows and tokens that published adapters were trained on, and those of them that were replayed. Replayed rows
-- add tokens but are not counted as trained rows.
select count(*) filter (where w.outcome = 'trained'), coalesce(sum(w.tokens), 0)::bigint,
       count(*) filter (where w.outcome = 'replayed'),
       coalesce(sum(w.tokens) filter (where w.outcome = 'replayed'), 0)::bigint
from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.stream = %(stream)s and (r.state = 'published' or r.published_in is not null) and w.outcome in ('trained', 'replayed');

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
