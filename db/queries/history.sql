-- What the page and /api/v1 show of earlier runs.

-- name: history_runs
-- List runs without their reports, newest first. %(before)s may be null.
select run_id, state, phase, reason, parent_version, published_in, launches, created_at, started_at, ended_at,
       (report #>> '{evaluation,anchor,loss}')::double precision,
       (report #>> '{evaluation,current,loss}')::double precision,
       (report #>> '{evaluation,candidate,loss}')::double precision
from codelupe.runs
where stream = %(stream)s and (%(before)s::bigint is null or run_id < %(before)s::bigint)
order by run_id desc limit %(limit)s;

-- name: history_quality
-- List what judged runs measured, newest first, between two run ids.
select run_id, state, ended_at, report -> 'evaluation', report -> 'verdict' -> 'quality'
from codelupe.runs
where stream = %(stream)s and run_id > %(after)s and run_id < %(before)s and ended_at is not null and report is not null
order by run_id desc limit %(limit)s;

-- name: history_files
-- List the files of a run by id, with what became of each. The text is not selected.
select w.file_id, w.role, w.outcome, w.tokens, l.disposition, l.reason
from codelupe.run_rows w
left join codelupe.ledger l on l.stream = %(stream)s and l.file_id = w.file_id and l.run_id = w.run_id
where w.run_id = %(run_id)s and w.file_id > %(after)s
order by w.file_id limit %(limit)s;

-- name: history_file_counts
-- Count the files of a run by role and outcome.
select role, coalesce(outcome, 'in progress'), count(*) from codelupe.run_rows
where run_id = %(run_id)s group by 1, 2 order by 1, 2;

-- name: history_rows
-- List settled rows of a disposition, the highest id first. %(reason)s may be null.
select file_id, disposition, reason, run_id, version, attempts, settled_at from codelupe.ledger
where stream = %(stream)s and disposition = %(disposition)s and file_id < %(before)s
  and (%(reason)s::text is null or reason = %(reason)s)
order by file_id desc limit %(limit)s;

-- name: history_row
-- Select where a row stands.
select file_id, disposition, reason, run_id, version, attempts, settled_at from codelupe.ledger
where stream = %(stream)s and file_id = %(file_id)s;

-- name: history_text
-- Select a row of the source by its id, with its texts as bytes. The content is null if it is longer than
-- %(most_bytes)s, and is cut after %(bytes)s.
select {repository_bytes}, {path_bytes}, {language_bytes}, {quality_score}::text, octet_length({content}),
       case when octet_length({content}) <= %(most_bytes)s then substr({content_bytes}, 1, %(bytes)s) end
from {table} s where {id} = %(file_id)s;

-- name: history_limit
-- Let this transaction's statements take a few seconds at most.
set local statement_timeout = '3s';
