-- Rows one of which may have made a run fail, until a run with them ends well or one of them is singled out. Those of one
-- failed run are a group; each claim takes half of the newest one.
create table codelupe.suspects (
    stream  text not null references codelupe.streams,
    file_id bigint not null,
    run_id  bigint not null references codelupe.runs,
    primary key (stream, file_id)
);
