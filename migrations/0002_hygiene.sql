-- What is needed to know a file again: fingerprints of everything that is trained, claimed or held out.

-- A held-out row keeps what its producer knew about it, as rows that are trained on do.
alter table codelupe.held_out add column metadata jsonb not null default '{}';

-- One row a file: written by the claim that keeps it, in the claim's transaction.
create table codelupe.fingerprints (
    stream    text not null references codelupe.streams,
    file_id   bigint not null,
    exact     bytea not null,
    signature bytea not null,
    bands     integer[] not null,
    primary key (stream, file_id)
);
-- Two files are compared where they share a band. Without fastupdate: each claim looks up what it has just written.
create index fingerprints_bands on codelupe.fingerprints using gin (bands) with (fastupdate = off);

-- A row that is settled as rejected, or that goes back into the queue, is nothing that others repeat. A held-out file
-- stays one whatever becomes of its run: the next claim remembers it again, from the text that is kept.
create function codelupe.forget_fingerprints() returns trigger language plpgsql as $$
begin
    delete from codelupe.fingerprints f using changed c
    where f.stream = c.stream and f.file_id = c.file_id
      and c.disposition in ('rejected', 'quarantined', 'returned');
    return null;
end $$;
create trigger forget_fingerprints after update on codelupe.ledger
    referencing new table as changed for each statement execute function codelupe.forget_fingerprints();
