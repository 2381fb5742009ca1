-- Totals that are kept as they change, so that nobody has to read all of the ledger to know them.

-- How many rows a stream's ledger has by disposition and reason: the sum of `rows`. Each statement that changes the ledger
-- adds what it changed, in its own transaction. It changes no row that is there: no writer waits for another one, and a
-- claim, which sees the database as it was at its start, cannot fail because of others. A fold (db/runs.py) adds rows up.
create table codelupe.ledger_totals (
    stream      text not null,
    disposition text not null,
    reason      text,
    rows        bigint not null
);
create index ledger_totals_stream on codelupe.ledger_totals (stream);

create function codelupe.keep_ledger_totals() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        insert into codelupe.ledger_totals (stream, disposition, reason, rows)
        select stream, disposition, reason, count(*) from newer group by 1, 2, 3;
    elsif tg_op = 'DELETE' then
        insert into codelupe.ledger_totals (stream, disposition, reason, rows)
        select stream, disposition, reason, -count(*) from older group by 1, 2, 3;
    elsif tg_op = 'TRUNCATE' then
        delete from codelupe.ledger_totals;
    else
        insert into codelupe.ledger_totals (stream, disposition, reason, rows)
        select stream, disposition, reason, sum(n) from (
            select stream, disposition, reason, 1 as n from newer
            union all select stream, disposition, reason, -1 from older
        ) changed group by 1, 2, 3 having sum(n) <> 0;
    end if;
    return null;
end $$;
create trigger keep_totals_insert after insert on codelupe.ledger
    referencing new table as newer for each statement execute function codelupe.keep_ledger_totals();
create trigger keep_totals_update after update on codelupe.ledger
    referencing new table as newer old table as older for each statement execute function codelupe.keep_ledger_totals();
create trigger keep_totals_delete after delete on codelupe.ledger
    referencing old table as older for each statement execute function codelupe.keep_ledger_totals();
create trigger keep_totals_truncate after truncate on codelupe.ledger
    for each statement execute function codelupe.keep_ledger_totals();

-- What a run has learned from. Outcomes of `run_rows` are filled in once, so these counts only grow.
alter table codelupe.runs
    add column trained_rows bigint not null default 0,
    add column trained_tokens bigint not null default 0,
    add column replayed_rows bigint not null default 0,
    add column replayed_tokens bigint not null default 0,
    add column last_trained_id bigint;

-- A verdict settles the rows, and has locked its run: the update waits for nobody.
create function codelupe.keep_run_totals() returns trigger language plpgsql set enable_seqscan = off as $$
begin
    update codelupe.runs r set
        trained_rows = r.trained_rows + c.trained_rows, trained_tokens = r.trained_tokens + c.trained_tokens,
        replayed_rows = r.replayed_rows + c.replayed_rows, replayed_tokens = r.replayed_tokens + c.replayed_tokens,
        last_trained_id = greatest(r.last_trained_id, c.last_trained_id)
    from (select run_id, count(*) filter (where outcome = 'trained') as trained_rows,
                 coalesce(sum(tokens) filter (where outcome = 'trained'), 0) as trained_tokens,
                 count(*) filter (where outcome = 'replayed') as replayed_rows,
                 coalesce(sum(tokens) filter (where outcome = 'replayed'), 0) as replayed_tokens,
                 max(file_id) filter (where outcome = 'trained') as last_trained_id
          from newer where outcome in ('trained', 'replayed') group by run_id) c
    where r.run_id = c.run_id;
    return null;
end $$;
create trigger keep_totals_insert after insert on codelupe.run_rows
    referencing new table as newer for each statement execute function codelupe.keep_run_totals();
create trigger keep_totals_update after update on codelupe.run_rows
    referencing new table as newer for each statement execute function codelupe.keep_run_totals();

-- Counts all again: once here, and where an audit finds another count, for example after a restore that fired triggers.
-- Nobody else writes meanwhile.
create function codelupe.recount() returns void language plpgsql as $$
begin
    lock table codelupe.runs, codelupe.run_rows, codelupe.ledger in share row exclusive mode;
    delete from codelupe.ledger_totals;
    insert into codelupe.ledger_totals (stream, disposition, reason, rows)
    select stream, disposition, reason, count(*) from codelupe.ledger group by 1, 2, 3;
    update codelupe.runs r set
        trained_rows = coalesce(c.trained_rows, 0), trained_tokens = coalesce(c.trained_tokens, 0),
        replayed_rows = coalesce(c.replayed_rows, 0), replayed_tokens = coalesce(c.replayed_tokens, 0),
        last_trained_id = c.last_trained_id
    from codelupe.runs e left join (
        select run_id, count(*) filter (where outcome = 'trained') as trained_rows,
               sum(tokens) filter (where outcome = 'trained') as trained_tokens,
               count(*) filter (where outcome = 'replayed') as replayed_rows,
               sum(tokens) filter (where outcome = 'replayed') as replayed_tokens,
               max(file_id) filter (where outcome = 'trained') as last_trained_id
        from codelupe.run_rows where outcome in ('trained', 'replayed') group by run_id) c using (run_id)
    where r.run_id = e.run_id
      and (r.trained_rows, r.trained_tokens, r.replayed_rows, r.replayed_tokens, r.last_trained_id) is distinct from
          (coalesce(c.trained_rows, 0), coalesce(c.trained_tokens, 0),
           coalesce(c.replayed_rows, 0), coalesce(c.replayed_tokens, 0), c.last_trained_id);
end $$;
select codelupe.recount();
