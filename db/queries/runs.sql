-- The states of a run.

-- name: run_get
-- Select a run by its id.
select run_id, stream, state, parent_version, seed, launches, reason, report, created_at, started_at, ended_at,
       trunk_run_id, published_in, phase
from codelupe.runs where run_id = %(run_id)s;

-- name: run_live
-- Select the run of the stream that has not ended.
select run_id, stream, state, parent_version, seed, launches, reason, report, created_at, started_at, ended_at,
       trunk_run_id, published_in, phase
from codelupe.runs where stream = %(stream)s and ended_at is null;

-- name: run_history
-- List the runs of a stream, newest first.
select run_id, stream, state, parent_version, seed, launches, reason, report, created_at, started_at, ended_at,
       trunk_run_id, published_in, phase
from codelupe.runs where stream = %(stream)s order by run_id desc limit %(limit)s;

-- name: run_rows_settled
-- List the outcome of each row of a run.
select file_id, outcome, tokens from codelupe.run_rows where run_id = %(run_id)s;

-- name: run_lock
-- Read a run's state and lock it until the transaction ends.
select state, parent_version from codelupe.runs where run_id = %(run_id)s and stream = %(stream)s for update;

-- name: run_move
-- Put a run into another state.
update codelupe.runs
set state = %(state)s, reason = coalesce(%(reason)s, reason), report = coalesce(%(report)s, report),
    started_at = case when %(state)s = 'training' then coalesce(started_at, now()) else started_at end,
    ended_at = case when %(ended)s then now() end
where run_id = %(run_id)s;

-- name: run_launch
-- Count one start of the trainer.
update codelupe.runs set launches = launches + 1
where run_id = %(run_id)s and stream = %(stream)s and ended_at is null returning launches;

-- name: run_heartbeat
-- Record that a service is supervising the run.
update codelupe.runs set heartbeat_at = clock_timestamp()
where run_id = %(run_id)s and stream = %(stream)s and ended_at is null returning run_id;
