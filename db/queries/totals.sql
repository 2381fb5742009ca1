-- A stream's sums.

-- name: totals_runs
-- Runs by state, and the last published one's end.
select state, count(*), max(ended_at) from codelupe.runs where stream = %(stream)s group by state;

-- name: totals_rows
-- Ledger rows by disposition and reason, with the highest id.
select disposition, reason, count(*), max(file_id) from codelupe.ledger
where stream = %(stream)s group by disposition, reason;

-- name: totals_trained
-- Rows and tokens that went into published adapters (replayed rows count as tokens, not as rows).
select count(*) filter (where w.outcome = 'trained'), coalesce(sum(w.tokens), 0)::bigint
from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.stream = %(stream)s and r.state = 'published' and w.outcome in ('trained', 'replayed');

-- name: totals_last_run_seconds
-- How long the last run with a verdict took, from its first launch.
select extract(epoch from ended_at - started_at)::double precision from codelupe.runs
where stream = %(stream)s and state in ('published', 'refused') and started_at is not null
order by run_id desc limit 1;
