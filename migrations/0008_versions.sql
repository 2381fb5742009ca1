-- A row is its id and its text. Another text under an id that is settled is a new version of the row: it is claimed like
-- a new one, and what became of the earlier text moves to `superseded`.
alter table codelupe.ledger
    add column version integer not null default 0,
    -- Changes when the source row may have changed (db/table.py). Null: not known, so the text is compared.
    add column mark bigint,
    -- A digest of the settings that a rejection depends on. It is void when they change. Null: it depends on none.
    add column settings text;
create index ledger_rejected_settings on codelupe.ledger (stream, reason, settings)
    where disposition = 'rejected' and settings is not null;

-- What became of the earlier texts of rows.
create table codelupe.superseded (
    stream        text not null references codelupe.streams,
    file_id       bigint not null,
    version       integer not null,
    run_id        bigint not null references codelupe.runs,
    disposition   text not null check (disposition in ('trained', 'held_out', 'rejected', 'quarantined', 'withdrawn')),
    reason        text,
    settled_at    timestamptz not null,
    superseded_at timestamptz not null default now(),
    primary key (stream, file_id, version)
);
create index superseded_run on codelupe.superseded (run_id);

-- Every text that was claimed, and what became of it.
create view codelupe.standing as
    select stream, file_id, version, run_id, disposition, reason, settled_at from codelupe.ledger
    union all
    select stream, file_id, version, run_id, disposition, reason, settled_at from codelupe.superseded;

-- An earlier text that was trained on is recognised wherever it turns up. An earlier held-out text is no longer
-- measured, but its repository and path stay held out.
alter table codelupe.fingerprints
    add column version integer not null default 0,
    drop constraint fingerprints_pkey,
    add primary key (stream, file_id, version);
alter table codelupe.held_out
    add column version integer not null default 0,
    drop constraint held_out_pkey,
    add primary key (stream, file_id, version);

create or replace function codelupe.forget_fingerprints() returns trigger language plpgsql set enable_seqscan = off as $$
begin
    delete from codelupe.fingerprints f where f.ctid = any (array(
        select k.ctid from changed c cross join lateral (
            select i.ctid from codelupe.fingerprints i
            where i.stream = c.stream and i.file_id = c.file_id and i.version = c.version offset 0) k
        where c.disposition in ('rejected', 'quarantined', 'returned')));
    return null;
end $$;

-- How far the texts of a range have been compared, for a source whose marks do not show every change.
alter table codelupe.chunks add column compared_to bigint;

-- Rejections of earlier releases may be due to a wrong setting. They are decided again once.
update codelupe.ledger set settings = ''
where disposition = 'rejected' and reason in (
    'license', 'no_license', 'too_few_lines', 'long_line', 'long_lines', 'few_letters', 'encoded',
    'too_long', 'too_long_line', 'too_short', 'no_repository', 'no_commit', 'parse_failure');

-- The bytes of a text in UTF-8. A database in an encoding such as WIN1252 may hold bytes that stand for no character. They
-- make the text invalid, so that its row is rejected as `not_utf8`.
create function codelupe.utf8_bytes(value text) returns bytea language plpgsql stable parallel safe as $$
begin
    return convert_to(value, 'UTF8');
exception when untranslatable_character or character_not_in_repertoire then
    return '\xff'::bytea || convert_to(value, getdatabaseencoding());
end $$;
