-- Whether the books agree.

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
