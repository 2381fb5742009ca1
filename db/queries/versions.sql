-- Rows whose text changed after they were settled.

-- name: source_settled
-- Compare the texts of settled rows of a range, up to %(rows)s rows and about %(bytes)s bytes: those whose mark differs,
-- or all of them with %(every)s. Returns the id, the present mark, whether the text is the one that was settled, and a
-- number of rows that is higher than that of the returned ones if some are left.
with found as (
    select {id} as file_id, {mark} as mark, {content} as content, l.run_id
    from {table} s join codelupe.ledger l
      on l.stream = %(stream)s and l.file_id = {id} and l.file_id between %(first_id)s and %(last_id)s
    where {id} between %(first_id)s and %(last_id)s
      and l.disposition in ('trained', 'held_out', 'rejected', 'quarantined')
      and (%(every)s or l.mark is distinct from {mark})
    order by {id} limit %(rows)s + 1
), asked as (
    select *, sum(coalesce(octet_length(content), 0)) over (order by file_id) as bytes,
           row_number() over (order by file_id) as place, count(*) over () as total
    from found
)
select s.file_id, s.mark, encode(sha256({settled_bytes}), 'hex') is not distinct from w.content_sha256, s.total
from asked s join codelupe.run_rows w on w.run_id = s.run_id and w.file_id = s.file_id
where s.place = 1 or s.place <= %(rows)s and s.bytes <= %(bytes)s
order by 1;

-- name: ledger_mark
-- Store the marks of rows whose text is the one that was settled.
update codelupe.ledger l set mark = v.mark
from (values %s) as v (stream, file_id, mark)
where l.stream = v.stream and l.file_id = v.file_id and l.mark is distinct from v.mark;

-- name: supersede_record
-- Record what became of the earlier texts of rows.
insert into codelupe.superseded (stream, file_id, version, run_id, disposition, reason, settled_at)
select stream, file_id, version, run_id, disposition, reason, settled_at from codelupe.ledger
where stream = %(stream)s and file_id = any(%(files)s::bigint[])
  and disposition in ('trained', 'held_out', 'rejected', 'quarantined');

-- name: supersede_forget
-- Delete the fingerprints of earlier held-out texts, which are no longer measured.
delete from codelupe.fingerprints f using codelupe.ledger l
where l.stream = %(stream)s and l.file_id = any(%(files)s::bigint[]) and l.disposition = 'held_out'
  and f.stream = l.stream and f.file_id = l.file_id and f.version = l.version;

-- name: supersede_return
-- Return rows whose text changed, as a new version.
update codelupe.ledger
set version = version + 1, disposition = 'returned', reason = null, settings = null, mark = null, attempts = 0,
    not_before = null, settled_at = now()
where stream = %(stream)s and file_id = any(%(files)s::bigint[])
  and disposition in ('trained', 'held_out', 'rejected', 'quarantined');

-- name: superseded_withdraw
-- Mark earlier texts that only withdrawn adapters were trained on, and forget their fingerprints.
with withdrawn as (
    update codelupe.superseded set disposition = 'withdrawn'
    where stream = %(stream)s and disposition = 'trained' and run_id in (
        select r.run_id from codelupe.runs r where coalesce(r.published_in, r.run_id) = any(%(versions)s::bigint[]))
    returning stream, file_id, version
)
delete from codelupe.fingerprints f using withdrawn w
where f.stream = w.stream and f.file_id = w.file_id and f.version = w.version;
