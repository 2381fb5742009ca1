-- What waits in the source table, counted range by range.

-- name: source_nth_newest
-- The id of the row that is the so-many-th from the end of a range; no row where the range has fewer.
select {id} from {table} s where {id} between %(first_id)s and %(last_id)s order by {id} desc offset %(rows)s - 1 limit 1;

-- name: source_nth
-- The id of the so-many-th row of a range; no row where it has fewer.
select {id} from {table} s where {id} between %(first_id)s and %(last_id)s order by {id} offset %(rows)s - 1 limit 1;

-- name: source_look
-- Rows of a range that no run has, by reason ('' = pending): how many, the oldest one's time, and when the next of those
-- that rest may be claimed. The ledger's range is named too: the planner does not infer it from the join.
select coalesce({ineligible}, ''), count(*) filter (where not rests),
       min({created_at}::timestamptz) filter (where not rests and isfinite({created_at}::timestamptz))::text,
       min(not_before) filter (where rests)::text
from {table} s
left join codelupe.ledger l on l.stream = %(stream)s and l.file_id = {id} and l.file_id between %(first_id)s and %(last_id)s
cross join lateral (select coalesce(l.not_before > now(), false) as rests) r
where {id} between %(first_id)s and %(last_id)s and (l.file_id is null or l.disposition = 'returned')
group by 1;

-- name: chunks_forget
-- What was counted with other limits says nothing.
update codelupe.chunks set pending = 0, ineligible = '{}', oldest = null, looked_at = null, due_at = '-infinity'
where stream = %(stream)s and eligibility <> %(eligibility)s and looked_at is not null;

-- name: chunks_distrust
-- What was counted is not there: count again.
update codelupe.chunks set pending = 0, oldest = null, looked_at = null, due_at = '-infinity'
where stream = %(stream)s and pending > 0;

-- name: chunk_newest
-- The range that has no end.
select first_id, most_rows from codelupe.chunks where stream = %(stream)s order by first_id desc limit 1;

-- name: chunk_insert
-- A range that was never looked at.
insert into codelupe.chunks (stream, first_id, last_id, most_rows) values (%(stream)s, %(first_id)s, %(last_id)s, %(most_rows)s);

-- name: chunk_begin_at
-- Let a range begin later.
update codelupe.chunks set first_id = %(begin)s where stream = %(stream)s and first_id = %(first_id)s;

-- name: chunk_end_at
-- Let a range end earlier.
update codelupe.chunks set last_id = %(end)s where stream = %(stream)s and first_id = %(first_id)s;

-- name: chunk_extend
-- Let the range that ends at %(before)s end at %(end)s; no row where there is none.
update codelupe.chunks set last_id = %(end)s, most_rows = least(most_rows, %(most_rows)s), looked_at = null, due_at = '-infinity'
where stream = %(stream)s and last_id = %(before)s returning first_id;

-- name: chunk_due
-- The range to look at next, most overdue first, the newest left out. With %(confirm)s also where rows were counted before.
select first_id, last_id, most_rows from codelupe.chunks
where stream = %(stream)s and last_id < %(greatest)s
  and (due_at <= least(now(), %(due)s::timestamptz) or pending > 0 and looked_at < %(confirm)s::timestamptz)
order by due_at limit 1;

-- name: chunk_store
-- What a look found, and when the next is due: when a row that rests may be claimed, or after %(interval)s; sooner among
-- the newest, where commits come late.
update codelupe.chunks c
set most_rows = %(most_rows)s, pending = %(pending)s, ineligible = %(ineligible)s, oldest = %(oldest)s::timestamptz, eligibility = %(eligibility)s, looked_at = now(),
    due_at = least(%(rests_until)s::timestamptz, now() + make_interval(secs => %(interval)s / case when
        (select count(*) from (select from codelupe.chunks n where n.stream = c.stream and n.first_id > c.first_id
                               limit %(recent)s) newer) < %(recent)s then %(recent_factor)s else 1 end))
where stream = %(stream)s and first_id = %(first_id)s;

-- name: chunks_sum
-- What is known of the whole source, but for a range that is counted otherwise.
select coalesce(sum(pending), 0)::bigint, extract(epoch from now() - min(oldest))::double precision,
       extract(epoch from now() - min(looked_at))::double precision, count(*) filter (where looked_at is null), now()
from codelupe.chunks where stream = %(stream)s and first_id is distinct from cast(%(without)s as bigint);

-- name: chunks_ineligible
-- Ineligible rows by reason.
select reason, sum(rows::bigint)::bigint from codelupe.chunks, jsonb_each_text(ineligible) as found (reason, rows)
where stream = %(stream)s group by reason;

-- name: chunks_to_claim
-- The ranges in which rows wait, as far as is known; those that nobody has looked at come last.
select first_id, last_id from codelupe.chunks
where stream = %(stream)s and (pending > 0 or looked_at is null or last_id = %(greatest)s)
order by looked_at is null and last_id < %(greatest)s, first_id;

-- name: chunks_claimed_from
-- A claim took rows of these ranges: what waits there now is unknown.
update codelupe.chunks set pending = 0, oldest = null, looked_at = null, due_at = '-infinity'
where stream = %(stream)s and first_id = any(%(ranges)s);
