-- Checks that the ledger, the runs and the adapters agree.

-- name: audit_timeout
-- Allow one hour for each statement, because a full audit reads every row.
set local statement_timeout = '1h';

-- name: audit_total
-- Count all rows of the source.
select count(*) from {table};

-- name: audit_classes
-- Count the rows of the source by class and reason, and of these the settled rows with another text than the one that was
-- settled. The class is the ledger's disposition. A row that is not in the ledger, was returned, or has another text by
-- now is 'pending' or 'ineligible'.
select class, case class when 'ineligible' then ineligible when 'pending' then null else reason end, count(*),
       count(*) filter (where other_text)
from (
    select case when l.file_id is null or l.disposition = 'returned' or t.other_text
                then case when i.reason is null then 'pending' else 'ineligible' end
                else l.disposition end as class,
           i.reason as ineligible, l.reason, t.other_text
    from {table} s left join codelupe.ledger l on l.stream = %(stream)s and l.file_id = {id}
    left join codelupe.run_rows w
      on w.run_id = l.run_id and w.file_id = l.file_id
      and l.disposition in ('trained', 'held_out', 'rejected', 'quarantined')
    cross join lateral (select w.file_id is not null
        and encode(sha256({content_bytes}), 'hex') is distinct from w.content_sha256 as other_text) t
    cross join lateral (select case when l.file_id is null or l.disposition = 'returned' or t.other_text
                                    then {ineligible} end as reason) i
) rows
group by 1, 2;

-- name: audit_superseded
-- Count the earlier texts of rows by disposition.
select disposition, count(*) from codelupe.superseded where stream = %(stream)s group by 1 order by 1;

-- name: audit_unseen_text
-- Find settled rows with another text than the one that was settled, but with the same mark. No look would find them.
-- Without xmin, the looks compare the texts themselves in turn.
select l.file_id from {table} s join codelupe.ledger l on l.stream = %(stream)s and l.file_id = {id}
join codelupe.run_rows w on w.run_id = l.run_id and w.file_id = l.file_id
where %(has_xmin)s and l.disposition in ('trained', 'held_out', 'rejected', 'quarantined') and l.mark = {mark}
  and encode(sha256({content_bytes}), 'hex') is distinct from w.content_sha256
order by 1;

-- name: audit_versions
-- Find rows whose earlier texts are not all recorded: each version before the present one must be there once.
select l.file_id from codelupe.ledger l
left join (select stream, file_id, count(*) as texts, max(version) as last from codelupe.superseded group by 1, 2) p
  using (stream, file_id)
where l.stream = %(stream)s and (coalesce(p.texts, 0) <> l.version or coalesce(p.last, -1) <> l.version - 1)
union
select p.file_id from codelupe.superseded p left join codelupe.ledger l using (stream, file_id)
where p.stream = %(stream)s and l.file_id is null
order by 1;

-- name: audit_gone
-- Count the ledger rows whose source row was deleted.
select count(*) from codelupe.ledger l
where l.stream = %(stream)s and not exists (select from {table} s where {id} = l.file_id);

-- name: audit_claimed_by_ended_run
-- Find claimed rows whose run has ended. No run will settle them.
select l.file_id from codelupe.ledger l join codelupe.runs r using (run_id)
where l.stream = %(stream)s and l.disposition = 'claimed' and r.ended_at is not null order by 1;

-- name: audit_claimed_without_run_row
-- Find claimed rows that are missing from the rows of their run.
select l.file_id from codelupe.ledger l
left join codelupe.run_rows w on w.run_id = l.run_id and w.file_id = l.file_id
where l.stream = %(stream)s and l.disposition = 'claimed' and w.file_id is null order by 1;

-- name: audit_trained_twice
-- Find files that more than one published run trained on with the same text, or that more runs trained on than the file
-- had texts. Runs with a withdrawn adapter do not count.
select w.file_id from codelupe.run_rows w join codelupe.runs r using (run_id)
left join codelupe.adapters a on a.version = coalesce(r.published_in, r.run_id)
where r.stream = %(stream)s and (r.state = 'published' or r.published_in is not null) and a.withdrawn_at is null
  and w.role = 'train' and w.outcome = 'trained'
group by w.file_id having count(*) > 1 and (count(*) > count(distinct w.content_sha256) or count(*) > (
    select count(*) from codelupe.standing t
    where t.stream = %(stream)s and t.file_id = w.file_id and t.disposition = 'trained'))
order by 1;

-- name: audit_trained_without_run_row
-- Find files that are trained in the ledger, but not in a published run whose adapter is not withdrawn.
select l.file_id from codelupe.standing l
where l.stream = %(stream)s and l.disposition = 'trained' and not exists (
    select from codelupe.run_rows w join codelupe.runs r using (run_id)
    left join codelupe.adapters a on a.version = coalesce(r.published_in, r.run_id)
    where w.run_id = l.run_id and w.file_id = l.file_id and w.outcome = 'trained'
      and (r.state = 'published' or r.published_in is not null) and a.withdrawn_at is null)
order by 1;

-- name: audit_run_row_without_trained
-- Find files that a published run trained on, but that are not trained in the ledger. Runs with a withdrawn adapter do
-- not count.
select w.file_id from codelupe.run_rows w join codelupe.runs r using (run_id)
left join codelupe.adapters a on a.version = coalesce(r.published_in, r.run_id)
left join codelupe.standing l
  on l.stream = r.stream and l.file_id = w.file_id and l.run_id = w.run_id and l.disposition = 'trained'
where r.stream = %(stream)s and (r.state = 'published' or r.published_in is not null) and a.withdrawn_at is null
  and w.outcome = 'trained' and l.file_id is null
order by 1;

-- name: audit_learning_without_trunk
-- Find rows that are learning, but not in a run of the trunk.
select l.file_id from codelupe.ledger l
where l.stream = %(stream)s and l.disposition = 'learning' and not exists (
    select from codelupe.trunk t join codelupe.run_rows w using (run_id)
    where t.stream = l.stream and t.run_id = l.run_id and w.file_id = l.file_id and w.outcome = 'trained')
order by 1;

-- name: audit_trunk
-- Find runs of the trunk that are not inconclusive, or whose parent is not the current version.
select t.run_id from codelupe.trunk t join codelupe.runs r using (run_id)
where t.stream = %(stream)s and (r.state <> 'inconclusive' or r.published_in is not null
    or (select max(o.parent_version) from codelupe.trunk u join codelupe.runs o using (run_id)
        where u.stream = t.stream) is distinct from r.parent_version)
order by 1;

-- name: audit_tokens
-- Find published runs whose rows do not add up to the token count in their report.
select r.run_id from codelupe.runs r
left join codelupe.run_rows w on w.run_id = r.run_id and w.outcome in ('trained', 'replayed')
where r.stream = %(stream)s and (r.state = 'published' or r.published_in is not null)
group by r.run_id, r.report
having coalesce(sum(w.tokens), 0) is distinct from (r.report -> 'train' ->> 'tokens_published')::numeric
order by 1;

-- name: audit_trained
-- Count the rows and tokens that published adapters were trained on, and those of them that were replayed.
select count(*) filter (where w.outcome = 'trained'), coalesce(sum(w.tokens), 0)::bigint,
       count(*) filter (where w.outcome = 'replayed'),
       coalesce(sum(w.tokens) filter (where w.outcome = 'replayed'), 0)::bigint
from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.stream = %(stream)s and (r.state = 'published' or r.published_in is not null) and w.outcome in ('trained', 'replayed');

-- name: audit_kept_rows
-- Find dispositions and reasons whose kept count is not the number of their rows in the ledger.
select concat_ws(':', disposition, reason) || ' (' || sum(kept) || ', not ' || sum(found) || ')' from (
    select disposition, reason, rows as kept, 0 as found from codelupe.ledger_totals where stream = %(stream)s
    union all
    select disposition, reason, 0, count(*) from codelupe.ledger where stream = %(stream)s group by 1, 2
) counts
group by disposition, reason having sum(kept) <> sum(found) order by 1;

-- name: audit_kept_runs
-- Find runs whose kept counts are not those of their rows.
select r.run_id from codelupe.runs r left join codelupe.run_rows w
  on w.run_id = r.run_id and w.outcome in ('trained', 'replayed')
where r.stream = %(stream)s
group by r.run_id
having (r.trained_rows, r.trained_tokens, r.replayed_rows, r.replayed_tokens, r.last_trained_id) is distinct from
       (count(*) filter (where w.outcome = 'trained'),
        coalesce(sum(w.tokens) filter (where w.outcome = 'trained'), 0)::bigint,
        count(*) filter (where w.outcome = 'replayed'),
        coalesce(sum(w.tokens) filter (where w.outcome = 'replayed'), 0)::bigint,
        max(w.file_id) filter (where w.outcome = 'trained'))
order by 1;

-- name: audit_published_without_adapter
-- Find published runs without an adapter.
select r.run_id from codelupe.runs r left join codelupe.adapters a on a.version = coalesce(r.published_in, r.run_id)
where r.stream = %(stream)s and (r.state = 'published' or r.published_in is not null) and a.version is null order by 1;

-- name: audit_held_out_without_text
-- Find held-out files without a stored text. Revoked files have none by design, so they do not count.
select l.file_id from codelupe.ledger l left join codelupe.held_out h using (stream, file_id, version)
where l.stream = %(stream)s and l.disposition = 'held_out' and h.file_id is null
  and not exists (select from codelupe.revocations v where v.stream = l.stream and v.file_id = l.file_id)
order by 1;

-- name: audit_trained_held_out
-- Find held-out files that a published run trained on: with the text or the version that is held out, or as the same file
-- by repository and path. Runs with a withdrawn adapter do not count.
select distinct h.file_id from codelupe.held_out h
join codelupe.run_rows w using (file_id) join codelupe.runs r on r.run_id = w.run_id and r.stream = h.stream
left join codelupe.adapters a on a.version = coalesce(r.published_in, r.run_id)
left join codelupe.run_rows o on o.run_id = h.run_id and o.file_id = h.file_id
left join codelupe.standing v on v.stream = h.stream and v.file_id = h.file_id and v.run_id = w.run_id
left join codelupe.ledger l on l.stream = h.stream and l.file_id = h.file_id and l.run_id = w.run_id
left join {table} s on {id} = h.file_id
where h.stream = %(stream)s and (r.state = 'published' or r.published_in is not null) and a.withdrawn_at is null
  and w.outcome in ('trained', 'replayed')
  and (o.content_sha256 = w.content_sha256 or v.version = h.version
       or l.file_id is not null and h.repository is not distinct from {repository}::text
                                and h.path is not distinct from {path}::text)
order by 1;

-- name: audit_replay_untrained
-- Find files that a run replays, but that no earlier published run had trained on with the same text.
select distinct w.file_id from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.stream = %(stream)s and w.role = 'replay' and not exists (
    select from codelupe.run_rows e join codelupe.runs p using (run_id)
    where e.file_id = w.file_id and e.content_sha256 = w.content_sha256 and e.run_id < w.run_id
      and e.role = 'train' and e.outcome = 'trained' and p.stream = r.stream
      and (p.state = 'published' or p.published_in < w.run_id))
order by 1;

-- name: audit_replay_revoked
-- Find files that a published run replayed although they had been revoked before its claim.
select distinct w.file_id from codelupe.run_rows w join codelupe.runs r using (run_id)
join codelupe.revocations v
  on v.stream = r.stream and v.revoked_at < r.created_at
  and (v.file_id = w.file_id or v.content_sha256 = w.content_sha256)
where r.stream = %(stream)s and (r.state = 'published' or r.published_in is not null) and w.outcome = 'replayed'
order by 1;

-- name: audit_fingerprints
-- Find fingerprints of files that are neither trained, learning, claimed nor held out. A returned file may be held out.
select f.file_id from codelupe.fingerprints f
left join codelupe.standing l using (stream, file_id, version)
left join codelupe.held_out h using (stream, file_id, version)
where f.stream = %(stream)s and coalesce(l.disposition, '') not in ('claimed', 'learning', 'trained', 'held_out')
  and not (l.disposition = 'returned' and h.file_id is not null)
order by 1;

-- name: audit_held_out
-- Count the stored held-out texts.
select count(*) from codelupe.held_out where stream = %(stream)s;
