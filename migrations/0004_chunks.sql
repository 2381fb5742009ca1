-- What a stream knows of its source, so that no poll has to look at all of it: the ids in ranges, each with what the
-- last look at it found. A stream's ranges have no gaps and no overlaps, and the last one has no end.
create table codelupe.chunks (
    stream      text not null references codelupe.streams,
    first_id    bigint not null,
    last_id     bigint not null,
    most_rows   integer not null check (most_rows > 0),
    pending     bigint not null default 0,
    ineligible  jsonb not null default '{}',
    oldest      timestamptz,
    eligibility jsonb,
    looked_at   timestamptz,
    due_at      timestamptz not null default '-infinity',
    primary key (stream, first_id),
    unique (stream, last_id),
    check (first_id <= last_id)
);

-- Rows that go back into the queue wait again: their ranges are looked at next. A session plans this once, perhaps when
-- nothing has changed and the tables are empty: lateral and no sequential scans keep it to a search for each changed row.
create function codelupe.look_at_returned() returns trigger language plpgsql set enable_seqscan = off as $$
begin
    update codelupe.chunks c set looked_at = null, due_at = '-infinity'
    where c.ctid = any (array(
        select distinct k.ctid from changed n cross join lateral (
            select i.ctid from codelupe.chunks i where i.stream = n.stream and i.first_id <= n.file_id
            order by i.first_id desc limit 1) k
        where n.disposition = 'returned'));
    return null;
end $$;
create trigger look_at_returned after update on codelupe.ledger
    referencing new table as changed for each statement execute function codelupe.look_at_returned();

-- Whether all that a run trains on or holds out has its fingerprint, so that a claim need not look for those without one
-- through all of the ledger.
alter table codelupe.runs add column remembered boolean not null default false;

-- As before, and planned in the same way: all fingerprints were compared with all changed rows.
create or replace function codelupe.forget_fingerprints() returns trigger language plpgsql set enable_seqscan = off as $$
begin
    delete from codelupe.fingerprints f where f.ctid = any (array(
        select k.ctid from changed c cross join lateral (
            select i.ctid from codelupe.fingerprints i where i.stream = c.stream and i.file_id = c.file_id offset 0) k
        where c.disposition in ('rejected', 'quarantined', 'returned')));
    return null;
end $$;
