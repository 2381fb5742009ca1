-- Every statement of this folder. {braces} are filled with quoted identifiers or other fragments, %(names)s with values.

-- === connections ===========================================================================================

-- name: backend_is_busy
-- Whether another connection's server process is at a statement, or was a moment ago. One that has been idle for as long
-- as its client waits, or that has been writing to it or reading from it for longer than a statement may take, is not.
select coalesce(bool_or(
    case when state like 'idle%%' then state_change > clock_timestamp() - make_interval(secs => %(idle)s)
         else not (wait_event_type is not distinct from 'Client'
                   and query_start < clock_timestamp() - make_interval(secs => %(overdue)s))
    end is not false), false)
from pg_stat_activity where pid = %(pid)s and backend_start = %(started)s;

-- name: backend_self
-- This connection's server process.
select pid, backend_start from pg_stat_activity where pid = pg_backend_pid();

-- name: backend_end
-- End another connection's server process, if it is still the same.
select count(pg_terminate_backend(pid)) from pg_stat_activity where pid = %(pid)s and backend_start = %(started)s;

-- === migrations ============================================================================================

-- name: migrations_lock
-- One migrating process at a time; the lock ends with the transaction.
select pg_advisory_xact_lock(hashtext('codelupe.migrations'));

-- name: migrations_timeout
-- To rewrite a large table takes as long as it takes.
set local statement_timeout = 0;

-- name: migrations_table
-- Where applied migrations are remembered.
create schema if not exists codelupe;
create table if not exists codelupe.migrations (
    name       text primary key,
    sha256     text not null,
    applied_at timestamptz not null default now()
);

-- name: migrations_known
-- Whether any migration was ever applied.
select to_regclass('codelupe.migrations') is not null;

-- name: migrations_applied
-- Applied migrations with the digest of their files.
select name, sha256 from codelupe.migrations order by name;

-- name: migrations_add
-- Remember an applied migration.
insert into codelupe.migrations (name, sha256) values (%(name)s, %(sha256)s);

-- === lease =================================================================================================

-- name: lease_acquire
-- Take the lease when it is free, expired or already this holder's; no row when another has it.
insert into codelupe.leases as held (stream, holder, epoch, expires_at)
values (%(stream)s, %(holder)s, 1, clock_timestamp() + make_interval(secs => %(ttl)s))
on conflict (stream) do update
    set holder = excluded.holder, epoch = held.epoch + 1,
        expires_at = clock_timestamp() + make_interval(secs => %(ttl)s)
    where held.holder is null or held.holder = excluded.holder or held.expires_at <= clock_timestamp()
returning epoch;

-- name: lease_renew
-- Prolong a lease that is still held; no row when it is lost.
update codelupe.leases set expires_at = clock_timestamp() + make_interval(secs => %(ttl)s)
where stream = %(stream)s and holder = %(holder)s and epoch = %(epoch)s and expires_at > clock_timestamp()
returning epoch;

-- name: lease_release
-- Give a lease back; a lost one stays its new holder's.
update codelupe.leases set holder = null, expires_at = null
where stream = %(stream)s and holder = %(holder)s and epoch = %(epoch)s;

-- name: lease_brief
-- Whoever holds the lease's row is brief: stopped in the middle, the server ends it, and another may take over.
select set_config('idle_in_transaction_session_timeout', '15s', true);

-- name: lease_lock
-- The lease as it is now, kept from changing hands until the transaction ends.
select holder, epoch, expires_at > clock_timestamp() from codelupe.leases where stream = %(stream)s for share;

-- name: lease_exclusive
-- Keep every fenced write of the stream waiting until the transaction ends.
select 1 from codelupe.leases where stream = %(stream)s for update;

-- name: lease_read
-- The lease as this transaction sees it, without a lock.
select holder, epoch, expires_at > clock_timestamp() from codelupe.leases where stream = %(stream)s;

-- name: lease_holder
-- Who holds the stream, and for how many more seconds.
select holder, extract(epoch from expires_at - clock_timestamp())::double precision
from codelupe.leases where stream = %(stream)s and holder is not null and expires_at > clock_timestamp();

-- === streams ===============================================================================================

-- name: stream_create
-- Bind a stream unless it is bound.
insert into codelupe.streams (stream, source, base_model, base_revision, lora)
values (%(stream)s, %(source)s, %(base_model)s, %(base_revision)s, %(lora)s)
on conflict (stream) do nothing;

-- name: stream_get
-- What a stream is bound to.
select source, base_model, base_revision, lora from codelupe.streams where stream = %(stream)s;

-- name: training_request
-- Ask for a run as soon as possible.
insert into codelupe.training_requests (stream) values (%(stream)s)
on conflict (stream) do update set requested_at = now();

-- name: training_requested
-- When a run was last asked for; no row when nobody did since the last claim.
select requested_at from codelupe.training_requests where stream = %(stream)s;

-- name: training_request_clear
-- A claim answers the requests made before it began.
delete from codelupe.training_requests where stream = %(stream)s and requested_at <= %(began)s;

-- === the source table ======================================================================================

-- name: source_columns
-- Columns and types of a table or view; no row when there is none of that name.
select a.attname::text, t.typname::text, t.typcategory::text
from pg_attribute a join pg_type t on t.oid = a.atttypid
where a.attrelid = to_regclass(%(table)s) and a.attnum > 0 and not a.attisdropped;

-- name: source_similar
-- Tables and views whose name differs in case alone.
select quote_ident(n.nspname) || '.' || quote_ident(c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'v', 'm', 'p', 'f') and lower(c.relname) = lower(%(name)s) order by 1;

-- name: source_readable
-- Fails where the user may not read the columns.
select {id}, {content}, {language}, {quality_score}, {repository}, {path}, {license}, {metadata}, {created_at}
from {table} s limit 0;

-- name: source_is_empty
-- Whether the table has no row at all.
select not exists (select from {table});

-- name: ineligible_reason
-- Fragment: why a row may not be trained on; null when it may. CASE keeps the order: octet_length reads no toasted text,
-- and char_length is asked only where bytes leave the answer open (a character takes one to four).
case when {id} is null then 'no_id'
     when {content} is null then 'no_content'
     when {quality_score} is null or {quality_score}::real = 'NaN' then 'no_score'
     when {quality_score}::real < %(quality_threshold)s::real then 'low_score'
     when octet_length({content}) > 4 * %(max_chars)s::bigint then 'too_long'
     when octet_length({content}) < %(min_chars)s then 'too_short'
     when octet_length({content}) <= %(max_chars)s
          and octet_length({content}) >= 4 * %(min_chars)s::bigint then null
     when char_length({content}) < %(min_chars)s then 'too_short'
     when char_length({content}) > %(max_chars)s then 'too_long'
end

-- name: text_bytes
-- Fragment: a text's bytes, in UTF-8 unless the database does not know its own encoding.
convert_to({value}::text, case getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end)

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

-- name: source_claimable
-- A page of eligible rows of a range that no run has, in the order of their ids, with their texts as bytes.
select {id}, {repository_bytes}, {path_bytes}, {language_bytes}, {content_bytes}, {quality_score}::double precision,
       h.file_id is not null, coalesce(l.attempts, 0), {license_bytes}, {metadata_bytes}
from {table} s
left join codelupe.ledger l on l.stream = %(stream)s and l.file_id = {id} and l.file_id between %(first_id)s and %(last_id)s
left join codelupe.held_out h on h.stream = %(stream)s and h.file_id = {id} and h.file_id between %(first_id)s and %(last_id)s
where {id} between %(first_id)s and %(last_id)s
  and (l.file_id is null or l.disposition = 'returned' and (l.not_before is null or l.not_before <= now()))
  and {ineligible} is null
order by {id} limit %(limit)s;

-- name: files_copy
-- New files for the trainer's own source table.
copy code_files (repository, path, language, content, quality_score, license, commit_sha, phase, metadata) from stdin;

-- name: files_notify
-- Tell who waits for new files, at the commit; who does not listen finds them at the next poll.
select pg_notify(%(channel)s, '');

-- name: files_lock
-- Who adds files waits for whoever does so now.
select pg_advisory_xact_lock(hashtext('codelupe.files'));

-- name: files_known
-- Which of a batch are there, by number from 1: files by their text, changes by their commit (arrays side by side).
select a.number
from unnest(%(repositories)s::text[], %(paths)s::text[], %(changes)s::boolean[], %(commits)s::text[],
            %(digests)s::bytea[]) with ordinality as a (repository, path, is_change, commit_sha, digest, number)
cross join lateral (
    select {content_bytes} as content, s.commit_sha, s.metadata ? 'diff' as is_change from code_files s
    where hashtextextended(s.path, hashtextextended(coalesce(s.repository, ''), 0))
            = hashtextextended(a.path, hashtextextended(a.repository, 0))
      and s.path = a.path and coalesce(s.repository, '') = a.repository offset 0
) s
where s.is_change = a.is_change
  and case when a.commit_sha is null then sha256(s.content) = a.digest else s.commit_sha = a.commit_sha end;

-- name: files_paths
-- Paths of a repository.
select distinct path from code_files where repository = %(repository)s and path is not null;

-- === claim =================================================================================================

-- name: run_insert
-- A new run; fails where the stream has a live one.
insert into codelupe.runs (stream, parent_version, seed, epoch)
values (%(stream)s, %(parent_version)s, %(seed)s, %(epoch)s) returning run_id, created_at;

-- name: ledger_claim
-- Take rows that nobody has or that were returned. Counts fewer rows than given where another run has one.
insert into codelupe.ledger as l (stream, file_id, run_id, disposition, reason, settled_at) values %s
on conflict (stream, file_id) do update
    set run_id = excluded.run_id, disposition = excluded.disposition, reason = excluded.reason,
        not_before = null, claimed_at = now(), settled_at = excluded.settled_at
    where l.disposition = 'returned';

-- name: run_rows_insert
-- Which run has which row.
insert into codelupe.run_rows (run_id, file_id, role, content_sha256, outcome) values %s;

-- name: held_out_insert
-- Keep the text of held-out files. The decision stays for ever; the text is that of the latest claim.
insert into codelupe.held_out
    (stream, file_id, run_id, repository, path, language, content, content_sha256, metadata) values %s
on conflict (stream, file_id) do update
    set run_id = excluded.run_id, repository = excluded.repository, path = excluded.path,
        language = excluded.language, content = excluded.content, content_sha256 = excluded.content_sha256,
        metadata = excluded.metadata;

-- name: held_out_order
-- Settled held-out files of earlier runs, in an order that a seed decides.
select h.file_id from codelupe.held_out h join codelupe.ledger l using (stream, file_id)
where h.stream = %(stream)s and l.disposition = 'held_out'
order by md5(%(seed)s::text || ':' || h.file_id::text), h.file_id;

-- name: held_out_places
-- Where a stream's held-out files are.
select file_id, repository, path from codelupe.held_out where stream = %(stream)s;

-- name: held_out_texts
-- Held-out files in the order that is asked for.
select h.file_id, h.repository, h.path, h.language, h.content, h.content_sha256, h.metadata
from unnest(%(files)s::bigint[]) with ordinality as asked (file_id, place)
join codelupe.held_out h on h.stream = %(stream)s and h.file_id = asked.file_id
order by place;

-- name: fingerprints_alike
-- Remembered files that share a band with the given ones; both arrays run side by side.
with asked as (
    select file_id, array_agg(band) as bands
    from unnest(%(files)s::bigint[], %(bands)s::integer[]) as pair (file_id, band) group by file_id
)
select a.file_id, f.exact, f.signature
from asked a cross join lateral (
    select stream, file_id, exact, signature from codelupe.fingerprints where bands && a.bands offset 0
) f
where f.stream = %(stream)s and f.file_id <> a.file_id;

-- name: by_index
-- What a transaction has just written is not in the planner's statistics: it would read it all for each row that asks.
select set_config('enable_seqscan', %(scan)s, true);

-- name: fingerprints_insert
-- Remember files that a claim keeps.
insert into codelupe.fingerprints (stream, file_id, exact, signature, bands) values %s
on conflict (stream, file_id) do update
    set exact = excluded.exact, signature = excluded.signature, bands = excluded.bands;

-- name: fingerprints_incomplete
-- Earlier runs that may have files without a fingerprint.
select run_id from codelupe.runs where stream = %(stream)s and not remembered and run_id <> %(run_id)s;

-- name: fingerprints_missing
-- Files without a fingerprint, with text and metadata as bytes: the kept ones, else the source's. Trained and held-out ones of the
-- given runs, and held-out ones that were returned.
with files as (
    select l.file_id from codelupe.ledger l
    where l.stream = %(stream)s and l.run_id = any(%(runs)s::bigint[]) and l.disposition in ('trained', 'held_out')
    union all
    select l.file_id from codelupe.ledger l join codelupe.held_out h using (stream, file_id)
    where l.stream = %(stream)s and l.disposition = 'returned'
)
select l.file_id, coalesce(convert_to(h.content, 'UTF8'), {content_bytes}),
       coalesce(convert_to(h.metadata::text, 'UTF8'), {metadata_bytes})
from files l
left join codelupe.fingerprints f on f.stream = %(stream)s and f.file_id = l.file_id
left join codelupe.held_out h on h.stream = %(stream)s and h.file_id = l.file_id
left join {table} s on {id} = l.file_id
where f.file_id is null and (h.content is not null or {content} is not null);

-- name: fingerprints_complete
-- Every run has them now, the one whose claim this is included.
update codelupe.runs set remembered = true where stream = %(stream)s and not remembered;

-- === runs ==================================================================================================

-- name: run_get
-- One run.
select run_id, stream, state, parent_version, seed, launches, reason, report, created_at, started_at, ended_at
from codelupe.runs where run_id = %(run_id)s;

-- name: run_live
-- The stream's run that has not ended.
select run_id, stream, state, parent_version, seed, launches, reason, report, created_at, started_at, ended_at
from codelupe.runs where stream = %(stream)s and ended_at is null;

-- name: run_history
-- A stream's runs, newest first.
select run_id, stream, state, parent_version, seed, launches, reason, report, created_at, started_at, ended_at
from codelupe.runs where stream = %(stream)s order by run_id desc limit %(limit)s;

-- name: run_rows_settled
-- What became of each row that a run claimed.
select file_id, outcome, tokens from codelupe.run_rows where run_id = %(run_id)s;

-- name: run_lock
-- A run's state, kept from changing until the transaction ends.
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
-- The run is being looked after.
update codelupe.runs set heartbeat_at = clock_timestamp()
where run_id = %(run_id)s and stream = %(stream)s and ended_at is null returning run_id;

-- name: run_rows_of
-- A run's rows: role, and the outcome where there is one.
select file_id, role, outcome from codelupe.run_rows where run_id = %(run_id)s;

-- name: run_rows_settle
-- Fill in the outcome of rows.
update codelupe.run_rows r set outcome = v.outcome, tokens = v.tokens
from (values %s) as v (run_id, file_id, outcome, tokens)
where r.run_id = v.run_id and r.file_id = v.file_id and r.outcome is null;

-- name: ledger_settle
-- Settle a run's claimed rows.
update codelupe.ledger l
set disposition = v.disposition, reason = v.reason, settled_at = now(), not_before = null
from (values %s) as v (stream, file_id, run_id, disposition, reason)
where l.stream = v.stream and l.file_id = v.file_id and l.run_id = v.run_id and l.disposition = 'claimed';

-- name: ledger_attempts
-- How often each of a run's claimed rows was in a refused candidate.
select file_id, attempts from codelupe.ledger
where stream = %(stream)s and run_id = %(run_id)s and disposition = 'claimed';

-- name: ledger_retry
-- Return rows of a refused candidate: one attempt more, and each time twice as long until the next.
update codelupe.ledger l
set disposition = 'returned', reason = null, settled_at = now(), attempts = l.attempts + 1,
    not_before = now() + make_interval(secs => v.backoff_seconds * power(2, l.attempts))
from (values %s) as v (stream, file_id, run_id, backoff_seconds)
where l.stream = v.stream and l.file_id = v.file_id and l.run_id = v.run_id and l.disposition = 'claimed';

-- name: ledger_no_gain
-- Settle rows whose last attempt was refused.
update codelupe.ledger l
set disposition = 'rejected', reason = 'no_gain', settled_at = now(), attempts = l.attempts + 1, not_before = null
from (values %s) as v (stream, file_id, run_id)
where l.stream = v.stream and l.file_id = v.file_id and l.run_id = v.run_id and l.disposition = 'claimed';

-- name: ledger_give_back
-- Return all that a run has, without counting an attempt.
update codelupe.ledger
set disposition = 'returned', reason = null, settled_at = now(),
    not_before = case when %(delay)s > 0 then now() + make_interval(secs => %(delay)s) end
where stream = %(stream)s and run_id = %(run_id)s and disposition = 'claimed';

-- name: run_rows_give_back
-- The outcome of rows that were given back.
update codelupe.run_rows set outcome = 'returned' where run_id = %(run_id)s and outcome is null;

-- name: suspects_of_run
-- Of some rows those that a run has claimed or was measured on, and whether each was a suspect already.
select l.file_id, p.file_id is not null
from codelupe.ledger l left join codelupe.suspects p using (stream, file_id)
where l.stream = %(stream)s and l.file_id = any(%(file_ids)s::bigint[])
  and (l.run_id = %(run_id)s and l.disposition = 'claimed' or l.disposition = 'held_out')
order by 1;

-- name: suspects_mark
-- The group of rows that one of may have made a run fail.
insert into codelupe.suspects (stream, file_id, run_id)
select %(stream)s, file_id, %(run_id)s from unnest(%(file_ids)s::bigint[]) as file_id
on conflict (stream, file_id) do update set run_id = excluded.run_id;

-- name: suspects_clear
-- Rows of a run that ended well.
delete from codelupe.suspects p using codelupe.run_rows w
where p.stream = %(stream)s and w.run_id = %(run_id)s and w.file_id = p.file_id;

-- name: suspects_release
-- The groups of some rows: the others in them were suspects because of these.
delete from codelupe.suspects
where stream = %(stream)s and run_id in (
    select p.run_id from codelupe.suspects p where p.stream = %(stream)s and p.file_id = any(%(file_ids)s::bigint[]));

-- name: suspects_waiting
-- Suspects that a claim could take, the newest group first.
select p.file_id, p.run_id
from codelupe.suspects p
join codelupe.ledger l using (stream, file_id)
join {table} s on {id} = p.file_id
where p.stream = %(stream)s and l.disposition = 'returned' and (l.not_before is null or l.not_before <= now())
  and {ineligible} is null
order by p.run_id desc, p.file_id;

-- name: ledger_quarantine
-- Settle the row that made a run fail.
update codelupe.ledger set disposition = 'quarantined', reason = %(reason)s, settled_at = now(), not_before = null
where stream = %(stream)s and file_id = %(file_id)s;

-- name: run_row_quarantine
-- Its outcome in that run.
update codelupe.run_rows set outcome = 'rejected'
where run_id = %(run_id)s and file_id = %(file_id)s and outcome is null;

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

-- === adapters ==============================================================================================

-- name: adapter_insert
-- A published adapter; its version is its run's id.
insert into codelupe.adapters (version, stream, parent_version, folder, manifest_sha256, evaluation, is_current)
values (%(version)s, %(stream)s, %(parent_version)s, %(folder)s, %(manifest_sha256)s, %(evaluation)s, true);

-- name: adapter_retire
-- No adapter of the stream is current until another is made so.
update codelupe.adapters set is_current = false where stream = %(stream)s and is_current;

-- name: adapter_make_current
-- Make a version current, if it stands.
update codelupe.adapters set is_current = true
where stream = %(stream)s and version = %(version)s and withdrawn_at is null returning version;

-- name: adapter_current
-- The stream's current adapter.
select version, stream, parent_version, folder, manifest_sha256, evaluation, published_at, is_current
from codelupe.adapters where stream = %(stream)s and is_current;

-- name: adapter_history
-- A stream's adapters, newest first; at most so many, and of some versions alone, where either is given.
select version, stream, parent_version, folder, manifest_sha256, evaluation, published_at, is_current
from codelupe.adapters
where stream = %(stream)s and (%(among)s::bigint[] is null or version = any(%(among)s::bigint[]))
order by version desc limit %(limit)s;

-- === lineage ===============================================================================================

-- name: rows_by_id
-- A row, in the source or in a run.
select {id} from {table} s where {id} = %(file_id)s
union select w.file_id from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.stream = %(stream)s and w.file_id = %(file_id)s;

-- name: rows_by_path
-- Rows of a path, alone or with the repository before it; of held-out ones, where the source has lost them too.
select {id} from {table} s where {path} = %(path)s or {repository} || '/' || {path} = %(path)s
union select file_id from codelupe.held_out
where stream = %(stream)s and (path = %(path)s or repository || '/' || path = %(path)s);

-- name: rows_by_hash
-- Rows that a run had with this text. Those that none had yet are known by it when their turn comes.
select distinct w.file_id from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.stream = %(stream)s and w.content_sha256 = %(sha256)s;

-- name: lineage_uses
-- Runs that had one of some rows.
select w.run_id, r.state, w.file_id, w.role, w.outcome, w.tokens, w.content_sha256, r.created_at
from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.stream = %(stream)s and w.file_id = any(%(file_ids)s::bigint[]) order by w.run_id, w.file_id;

-- name: lineage_adapters
-- Adapters whose run was trained on one of some rows, and all that were trained from those.
with recursive seen (version) as (
    select a.version from codelupe.adapters a join codelupe.run_rows w on w.run_id = a.version
    where a.stream = %(stream)s and w.file_id = any(%(file_ids)s::bigint[]) and w.outcome in ('trained', 'replayed')
    union
    select a.version from codelupe.adapters a join seen on a.parent_version = seen.version
)
select a.version, a.parent_version,
       exists (select from codelupe.run_rows w where w.run_id = a.version
               and w.file_id = any(%(file_ids)s::bigint[]) and w.outcome in ('trained', 'replayed')),
       a.is_current, a.withdrawn_at is not null
from codelupe.adapters a join seen using (version) order by 1;

-- name: lineage_clean_ancestor
-- The newest adapter on the way from the current one to the base that is none of some.
with recursive line (version, parent_version) as (
    select version, parent_version from codelupe.adapters where stream = %(stream)s and is_current
    union all
    select a.version, a.parent_version from codelupe.adapters a join line on a.version = line.parent_version
)
select version from line where version <> all(%(versions)s::bigint[]) order by version desc limit 1;

-- name: revocation_insert
-- A row, or a text, that must not be trained on again.
insert into codelupe.revocations (stream, file_id, content_sha256, reason)
values (%(stream)s, %(file_id)s, %(sha256)s, %(reason)s) on conflict do nothing;

-- name: revocation_reason
-- Why one of some rows must not be trained on.
select reason from codelupe.revocations
where stream = %(stream)s and (file_id = any(%(file_ids)s::bigint[]) or content_sha256 = %(sha256)s) limit 1;

-- name: revocations
-- All that must not be claimed.
select file_id, content_sha256 from codelupe.revocations where stream = %(stream)s;

-- name: revoked_of_run
-- Rows of a live run that must not be trained on; what its claim refused was not.
select w.file_id from codelupe.run_rows w
where w.run_id = %(run_id)s and w.role <> 'held_out' and w.outcome is null and exists (
    select from codelupe.revocations v where v.stream = %(stream)s
    and (v.file_id = w.file_id or v.content_sha256 = w.content_sha256))
order by 1;

-- name: revoked_forget_held_out
-- Held-out texts of revoked rows are not measured on either.
delete from codelupe.held_out where stream = %(stream)s and file_id = any(%(file_ids)s::bigint[]);

-- name: adapters_withdraw
-- Adapters that saw a revoked row.
update codelupe.adapters set withdrawn_at = clock_timestamp()
where stream = %(stream)s and version = any(%(versions)s::bigint[]) and withdrawn_at is null;

-- name: ledger_withdraw
-- What withdrawn adapters alone were trained on waits again; the revoked rows are settled for good.
update codelupe.ledger
set disposition = case when file_id = any(%(file_ids)s::bigint[]) then 'rejected' else 'returned' end,
    reason = case when file_id = any(%(file_ids)s::bigint[]) then 'revoked' end,
    attempts = 0, not_before = null, settled_at = clock_timestamp()
where stream = %(stream)s and run_id = any(%(versions)s::bigint[]) and disposition = 'trained';

-- === audit =================================================================================================

-- name: audit_timeout
-- A full audit reads everything once.
set local statement_timeout = '1h';

-- name: audit_total
-- All rows of the source.
select count(*) from {table};

-- name: audit_classes
-- Every row of the source in one class: ineligible (with its reason), pending, or where the ledger has it.
select case when l.file_id is null or l.disposition = 'returned'
            then case when {ineligible} is null then 'pending' else 'ineligible' end
            else l.disposition end,
       case when l.file_id is null or l.disposition = 'returned' then {ineligible} else l.reason end,
       count(*)
from {table} s left join codelupe.ledger l on l.stream = %(stream)s and l.file_id = {id}
group by 1, 2;

-- name: audit_gone
-- Ledger rows whose source row was deleted.
select count(*) from codelupe.ledger l
where l.stream = %(stream)s and not exists (select from {table} s where {id} = l.file_id);

-- name: audit_claimed_by_ended_run
-- Claimed rows that no live run will ever settle.
select l.file_id from codelupe.ledger l join codelupe.runs r using (run_id)
where l.stream = %(stream)s and l.disposition = 'claimed' and r.ended_at is not null order by 1;

-- name: audit_claimed_without_run_row
-- Claimed rows that their run does not list.
select l.file_id from codelupe.ledger l
left join codelupe.run_rows w on w.run_id = l.run_id and w.file_id = l.file_id
where l.stream = %(stream)s and l.disposition = 'claimed' and w.file_id is null order by 1;

-- name: audit_trained_twice
-- Files that were trained on in more than one published run whose adapter stands.
select w.file_id from codelupe.run_rows w join codelupe.runs r using (run_id)
left join codelupe.adapters a on a.version = r.run_id
where r.stream = %(stream)s and r.state = 'published' and a.withdrawn_at is null
  and w.role = 'train' and w.outcome = 'trained'
group by w.file_id having count(*) > 1 order by 1;

-- name: audit_trained_without_run_row
-- Files that the ledger calls trained and their published run does not.
select l.file_id from codelupe.ledger l
where l.stream = %(stream)s and l.disposition = 'trained' and not exists (
    select from codelupe.run_rows w join codelupe.runs r using (run_id)
    left join codelupe.adapters a on a.version = r.run_id
    where w.run_id = l.run_id and w.file_id = l.file_id and w.outcome = 'trained' and r.state = 'published'
      and a.withdrawn_at is null)
order by 1;

-- name: audit_run_row_without_trained
-- Files that a published run trained on and the ledger does not call trained.
select w.file_id from codelupe.run_rows w join codelupe.runs r using (run_id)
left join codelupe.adapters a on a.version = r.run_id
left join codelupe.ledger l on l.stream = r.stream and l.file_id = w.file_id
where r.stream = %(stream)s and r.state = 'published' and a.withdrawn_at is null and w.outcome = 'trained'
  and l.disposition is distinct from 'trained'
order by 1;

-- name: audit_tokens
-- Published runs whose rows do not sum to the tokens that their report claims.
select r.run_id from codelupe.runs r
left join codelupe.run_rows w on w.run_id = r.run_id and w.outcome in ('trained', 'replayed')
where r.stream = %(stream)s and r.state = 'published'
group by r.run_id, r.report
having coalesce(sum(w.tokens), 0) is distinct from (r.report -> 'train' ->> 'tokens_published')::numeric
order by 1;

-- name: audit_published_without_adapter
-- Published runs without an adapter.
select r.run_id from codelupe.runs r left join codelupe.adapters a on a.version = r.run_id
where r.stream = %(stream)s and r.state = 'published' and a.version is null order by 1;

-- name: audit_held_out_without_text
-- Held-out files whose text was not kept, revoked ones apart.
select l.file_id from codelupe.ledger l left join codelupe.held_out h using (stream, file_id)
where l.stream = %(stream)s and l.disposition = 'held_out' and h.file_id is null
  and not exists (select from codelupe.revocations v where v.stream = l.stream and v.file_id = l.file_id)
order by 1;

-- name: audit_trained_held_out
-- Held-out files that a published run trained on whose adapter stands.
select distinct h.file_id from codelupe.held_out h
join codelupe.run_rows w using (file_id) join codelupe.runs r on r.run_id = w.run_id and r.stream = h.stream
left join codelupe.adapters a on a.version = r.run_id
where h.stream = %(stream)s and r.state = 'published' and a.withdrawn_at is null and w.outcome = 'trained' order by 1;

-- name: audit_fingerprints
-- Fingerprints of files that are neither trained, claimed nor held out.
select f.file_id from codelupe.fingerprints f
left join codelupe.ledger l using (stream, file_id)
where f.stream = %(stream)s and coalesce(l.disposition, '') not in ('claimed', 'trained', 'held_out') order by 1;

-- name: audit_held_out
-- How many held-out texts are kept.
select count(*) from codelupe.held_out where stream = %(stream)s;
