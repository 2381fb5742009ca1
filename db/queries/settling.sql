-- What a verdict writes.

-- name: run_rows_of
-- List the rows of a run with their role. The outcome is null for a row that is not settled.
select file_id, role, outcome from codelupe.run_rows where run_id = %(run_id)s;

-- name: run_rows_settle
-- Set the outcome of rows.
update codelupe.run_rows r set outcome = v.outcome, tokens = v.tokens
from (values %s) as v (run_id, file_id, outcome, tokens)
where r.run_id = v.run_id and r.file_id = v.file_id and r.outcome is null;

-- name: ledger_settle
-- Settle claimed rows of a run.
update codelupe.ledger l
set disposition = v.disposition, reason = v.reason, settings = v.settings, settled_at = now(), not_before = null
from (values %s) as v (stream, file_id, run_id, disposition, reason, settings)
where l.stream = v.stream and l.file_id = v.file_id and l.run_id = v.run_id and l.disposition = 'claimed';

-- name: ledger_attempts
-- Select how many refused candidates each claimed row of a run was in.
select file_id, attempts from codelupe.ledger
where stream = %(stream)s and run_id = %(run_id)s and disposition = 'claimed';

-- name: ledger_retry
-- Return rows of a refused candidate. Each attempt doubles the delay before the row can be claimed again.
update codelupe.ledger l
set disposition = 'returned', reason = null, settled_at = now(), attempts = l.attempts + 1,
    not_before = now() + make_interval(secs => v.backoff_seconds * power(2, l.attempts))
from (values %s) as v (stream, file_id, run_id, backoff_seconds)
where l.stream = v.stream and l.file_id = v.file_id and l.run_id = v.run_id and l.disposition = 'claimed';

-- name: ledger_no_gain
-- Reject rows whose last attempt was refused.
update codelupe.ledger l
set disposition = 'rejected', reason = 'no_gain', settled_at = now(), attempts = l.attempts + 1, not_before = null
from (values %s) as v (stream, file_id, run_id)
where l.stream = v.stream and l.file_id = v.file_id and l.run_id = v.run_id and l.disposition = 'claimed';

-- name: ledger_give_back
-- Return all claimed rows of a run without counting an attempt.
update codelupe.ledger
set disposition = 'returned', reason = null, settled_at = now(),
    not_before = case when %(delay)s > 0 then now() + make_interval(secs => %(delay)s) end
where stream = %(stream)s and run_id = %(run_id)s and disposition = 'claimed';

-- name: run_rows_give_back
-- Set the outcome of the returned rows.
update codelupe.run_rows set outcome = 'returned' where run_id = %(run_id)s and outcome is null;

-- name: ledger_void
-- Return up to %(limit)s rows that were rejected for a reason with other settings.
update codelupe.ledger
set disposition = 'returned', reason = null, settings = null, not_before = null, settled_at = now()
where stream = %(stream)s and file_id in (
    select file_id from codelupe.ledger
    where stream = %(stream)s and disposition = 'rejected' and reason = %(reason)s
      and (settings < %(settings)s or settings > %(settings)s) limit %(limit)s);
