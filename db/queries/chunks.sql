-- Counts the rows that wait in the source table, one range of ids at a time.

-- name: source_nth_newest
-- Select the id of the nth row from the end of a range. Returns no row if the range has fewer rows.
select {id} from {table} s where {id} between %(first_id)s and %(last_id)s
order by {id} desc offset %(rows)s - 1 limit 1;

-- name: source_nth
-- Select the id of the nth row of a range. Returns no row if the range has fewer rows.
select {id} from {table} s where {id} between %(first_id)s and %(last_id)s order by {id} offset %(rows)s - 1 limit 1;

-- name: source_count_range
-- Count the rows of a range that no run has, by ineligibility reason ('' = pending), and as 'changed' the settled rows
-- whose mark differs. Also returns the creation time of the oldest row, and the time when the next row in its retry
-- delay can be claimed. The join repeats the id range for the ledger, because the planner does not infer it.
select case when l.disposition <> 'returned' then 'changed' else coalesce({ineligible}, '') end,
       count(*) filter (where not rests),
       min({created}) filter (where not rests)::text,
       min(not_before) filter (where rests)::text
from {table} s
left join codelupe.ledger l
  on l.stream = %(stream)s and l.file_id = {id} and l.file_id between %(first_id)s and %(last_id)s
cross join lateral (select coalesce(l.not_before > now(), false) as rests) r
where {id} between %(first_id)s and %(last_id)s
  and (l.file_id is null or l.disposition = 'returned'
       or l.mark is distinct from {mark} and l.disposition in ('trained', 'held_out', 'rejected', 'quarantined'))
group by 1;

-- name: source_phases
-- Count the claimable rows of a range by phase.
select {phase_text}, count(*) from {table} s
left join codelupe.ledger l
  on l.stream = %(stream)s and l.file_id = {id} and l.file_id between %(first_id)s and %(last_id)s
where {id} between %(first_id)s and %(last_id)s
  and (l.file_id is null or l.disposition = 'returned' and not coalesce(l.not_before > now(), false))
  and {ineligible} is null
group by 1;

-- name: chunks_forget
-- Discard counts that were made with other eligibility limits.
update codelupe.chunks set pending = 0, ineligible = '{}', oldest = null, looked_at = null, due_at = '-infinity'
where stream = %(stream)s and eligibility <> %(eligibility)s and looked_at is not null;

-- name: chunks_discard
-- Discard the counts of every range with pending rows, so that these ranges are counted again.
update codelupe.chunks set pending = 0, oldest = null, looked_at = null, due_at = '-infinity'
where stream = %(stream)s and pending > 0;

-- name: chunks_begin_anew
-- Delete all ranges of a stream.
delete from codelupe.chunks where stream = %(stream)s;

-- name: chunk_newest
-- Select the newest range, which has no upper bound.
select first_id, most_rows, compared_to from codelupe.chunks
where stream = %(stream)s order by first_id desc limit 1;

-- name: chunk_insert
-- Insert a range that was never counted.
insert into codelupe.chunks (stream, first_id, last_id, most_rows)
values (%(stream)s, %(first_id)s, %(last_id)s, %(most_rows)s);

-- name: chunk_begin_at
-- Raise the first id of a range.
update codelupe.chunks set first_id = %(begin)s where stream = %(stream)s and first_id = %(first_id)s;

-- name: chunk_end_at
-- Lower the last id of a range.
update codelupe.chunks set last_id = %(end)s where stream = %(stream)s and first_id = %(first_id)s;

-- name: chunk_extend
-- Extend the range that ends at %(before)s to %(end)s. Returns no row if there is no such range.
update codelupe.chunks
set last_id = %(end)s, most_rows = least(most_rows, %(most_rows)s), looked_at = null, due_at = '-infinity'
where stream = %(stream)s and last_id = %(before)s returning first_id;

-- name: chunk_due
-- Select the range that is most overdue for a count, the newest range excluded. If %(confirm)s is given, ranges are
-- also due if they have pending rows that were counted before that time.
select first_id, last_id, most_rows, compared_to from codelupe.chunks
where stream = %(stream)s and last_id < %(greatest)s
  and (due_at <= least(now(), %(due)s::timestamptz) or pending > 0 and looked_at < %(confirm)s::timestamptz)
order by due_at limit 1;

-- name: chunk_store
-- Store the counts of a range and the time of its next count. The next count is due after %(interval)s seconds, or
-- earlier if a retry delay ends earlier, or at once if not all texts could be compared. The most recent ranges use a
-- shorter interval, because late commits occur there.
update codelupe.chunks c
set most_rows = %(most_rows)s, pending = %(pending)s, ineligible = %(ineligible)s,
    oldest = %(oldest)s::timestamptz, eligibility = %(eligibility)s, looked_at = now(),
    compared_to = %(compared_to)s,
    due_at = least(%(rests_until)s::timestamptz, case when %(compare_on)s then now() end, now() + make_interval(secs => %(interval)s / case when
        (select count(*) from (select from codelupe.chunks n where n.stream = c.stream and n.first_id > c.first_id
                               limit %(recent)s) newer) < %(recent)s then %(recent_factor)s else 1 end))
where stream = %(stream)s and first_id = %(first_id)s;

-- name: chunks_sum
-- Add up the counts of all ranges. %(without)s excludes the range that starts at this id.
select coalesce(sum(pending), 0)::bigint, extract(epoch from now() - min(oldest))::double precision,
       extract(epoch from now() - min(looked_at))::double precision, count(*) filter (where looked_at is null), now()
from codelupe.chunks where stream = %(stream)s and first_id is distinct from cast(%(without)s as bigint);

-- name: chunks_ineligible
-- Add up the ineligible rows of all ranges by reason.
select reason, sum(rows::bigint)::bigint from codelupe.chunks, jsonb_each_text(ineligible) as found (reason, rows)
where stream = %(stream)s group by reason;

-- name: chunks_to_claim
-- List the ranges that have pending rows or were not counted, and the newest range. Uncounted ranges come last.
select first_id, last_id from codelupe.chunks
where stream = %(stream)s and (pending > 0 or looked_at is null or last_id = %(greatest)s)
order by looked_at is null and last_id < %(greatest)s, first_id;

-- name: chunks_claimed_from
-- Discard the counts of ranges from which a claim took rows.
update codelupe.chunks set pending = 0, oldest = null, looked_at = null, due_at = '-infinity'
where stream = %(stream)s and first_id = any(%(ranges)s);
