-- What must never be trained on again: a row, or a text wherever it turns up.
create table codelupe.revocations (
    stream         text not null references codelupe.streams,
    file_id        bigint,
    content_sha256 text,
    reason         text not null,
    revoked_at     timestamptz not null default now(),
    check (num_nonnulls(file_id, content_sha256) = 1)
);
create unique index revocations_file on codelupe.revocations (stream, file_id) where file_id is not null;
create unique index revocations_text on codelupe.revocations (stream, content_sha256) where content_sha256 is not null;

-- An adapter that learned from a revoked row, once its lineage was begun anew from before it: it is nobody's parent
-- any more, and what it alone was trained on waits to be trained on again.
alter table codelupe.adapters add column withdrawn_at timestamptz;
