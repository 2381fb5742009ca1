-- The schema of all that the trainer owns. The source table is in source/code_files.sql.

-- A lineage of adapters and what it is bound to; nothing here changes after the first binding.
create table codelupe.streams (
    stream        text primary key,
    source        text not null,
    base_model    text not null,
    base_revision text not null,
    lora          jsonb not null,
    created_at    timestamptz not null default now()
);

-- The one service that may write to a stream. The epoch grows with each acquisition.
create table codelupe.leases (
    stream     text primary key,
    holder     text,
    epoch      bigint not null,
    expires_at timestamptz,
    check ((holder is null) = (expires_at is null))
);

-- Somebody asked for a run before the minimum of new files is there; the next claim clears it.
create table codelupe.training_requests (
    stream       text primary key,
    requested_at timestamptz not null default now()
);

create table codelupe.runs (
    run_id         bigint generated always as identity primary key,
    stream         text not null references codelupe.streams,
    state          text not null default 'claimed'
                   check (state in ('claimed', 'training', 'judging', 'published', 'refused', 'failed', 'returned')),
    parent_version bigint,
    seed           bigint not null,
    epoch          bigint not null,
    launches       integer not null default 0,
    reason         text,
    report         jsonb,
    created_at     timestamptz not null default now(),
    started_at     timestamptz,
    heartbeat_at   timestamptz,
    ended_at       timestamptz,
    check ((state in ('published', 'refused', 'failed', 'returned')) = (ended_at is not null))
);
-- One live run a stream: a second claim while one is open is a bug, and the database says so.
create unique index runs_one_live on codelupe.runs (stream) where ended_at is null;

-- Where each file stands in one stream.
create table codelupe.ledger (
    stream      text not null references codelupe.streams,
    file_id     bigint not null,
    run_id      bigint not null references codelupe.runs,
    disposition text not null
                check (disposition in ('claimed', 'trained', 'held_out', 'rejected', 'quarantined', 'returned')),
    reason      text,
    attempts    integer not null default 0,
    not_before  timestamptz,
    claimed_at  timestamptz not null default now(),
    settled_at  timestamptz,
    primary key (stream, file_id),
    check ((disposition = 'claimed') = (settled_at is null)),
    check (disposition not in ('rejected', 'quarantined') or reason is not null)
);
create index ledger_run on codelupe.ledger (run_id);
create index ledger_returned on codelupe.ledger (stream, file_id) where disposition = 'returned';

-- Which run had which row: never deleted; an outcome is filled in once.
create table codelupe.run_rows (
    run_id         bigint not null references codelupe.runs,
    file_id        bigint not null,
    role           text not null check (role in ('train', 'held_out', 'replay')),
    content_sha256 text not null,
    outcome        text check (outcome in ('trained', 'unused', 'rejected', 'held_out', 'replayed', 'returned')),
    tokens         bigint,
    primary key (run_id, file_id)
);
create index run_rows_file on codelupe.run_rows (file_id);

create function codelupe.run_rows_append_only() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or old.outcome is not null
       or (old.run_id, old.file_id, old.role, old.content_sha256)
          is distinct from (new.run_id, new.file_id, new.role, new.content_sha256) then
        raise exception 'codelupe.run_rows is append-only (run %, file %)', old.run_id, old.file_id;
    end if;
    return new;
end $$;
create trigger append_only before update or delete on codelupe.run_rows
    for each row execute function codelupe.run_rows_append_only();

-- Held-out files, decided once, with their text, so that later runs can be measured on them.
create table codelupe.held_out (
    stream         text not null references codelupe.streams,
    file_id        bigint not null,
    run_id         bigint not null references codelupe.runs,
    repository     text,
    path           text,
    language       text not null,
    content        text not null,
    content_sha256 text not null,
    primary key (stream, file_id)
);

-- Published adapters; an adapter's version is the id of the run that made it.
create table codelupe.adapters (
    version         bigint primary key references codelupe.runs,
    stream          text not null references codelupe.streams,
    parent_version  bigint references codelupe.adapters,
    folder          text not null,
    manifest_sha256 text not null,
    evaluation      jsonb not null,
    published_at    timestamptz not null default now(),
    is_current      boolean not null
);
create unique index adapters_one_current on codelupe.adapters (stream) where is_current;
