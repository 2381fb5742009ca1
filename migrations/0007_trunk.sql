-- A verdict may be open: there was too little evidence. The candidate becomes the trunk, on which the next runs train
-- on. The rows that it learned from are `learning` until a later run's verdict settles them.
alter table codelupe.runs drop constraint runs_state_check, drop constraint runs_check;
alter table codelupe.runs
    add constraint runs_state_check check (state in
        ('claimed', 'training', 'judging', 'published', 'refused', 'inconclusive', 'failed', 'returned')),
    add constraint runs_check check ((state in ('published', 'refused', 'inconclusive', 'failed', 'returned'))
                                     = (ended_at is not null)),
    -- The newest run of the trunk that this run was trained on from. Null: it was trained on from `parent_version`.
    add column trunk_run_id bigint references codelupe.runs,
    -- The version that was published with what this inconclusive run had learned.
    add column published_in bigint references codelupe.runs;
create index runs_published_in on codelupe.runs (published_in) where published_in is not null;

alter table codelupe.ledger drop constraint ledger_disposition_check;
alter table codelupe.ledger add constraint ledger_disposition_check check (disposition in
    ('claimed', 'learning', 'trained', 'held_out', 'rejected', 'quarantined', 'returned'));
create index ledger_learning on codelupe.ledger (stream, file_id) where disposition = 'learning';

-- The inconclusive runs that make up the trunk of a stream. They all have the same parent version.
create table codelupe.trunk (
    run_id bigint primary key references codelupe.runs,
    stream text not null references codelupe.streams
);
create index trunk_stream on codelupe.trunk (stream);
