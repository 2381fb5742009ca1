-- Somebody paused a stream: its service claims nothing until the row is gone. `stops_training`: the run in progress saves a
-- checkpoint and waits too.
create table codelupe.holds (
    stream         text primary key references codelupe.streams,
    stops_training boolean not null,
    held_at        timestamptz not null default now()
);
