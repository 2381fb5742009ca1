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

-- Rows that go back into the queue wait again: their ranges are looked at next.
create function codelupe.look_at_returned() returns trigger language plpgsql as $$
begin
    update codelupe.chunks c set looked_at = null, due_at = '-infinity'
    where (c.stream, c.first_id) in (
        select n.stream, (select max(k.first_id) from codelupe.chunks k
                          where k.stream = n.stream and k.first_id <= n.file_id)
        from changed n where n.disposition = 'returned');
    return null;
end $$;
create trigger look_at_returned after update on codelupe.ledger
    referencing new table as changed for each statement execute function codelupe.look_at_returned();

-- Whether all that a run trains on or holds out has its fingerprint, so that a claim need not look for those without one
-- through all of the ledger.
alter table codelupe.runs add column remembered boolean not null default false;
