-- Makes the ledger a table of partitions by ranges of ids, while services work. It is no migration of every database: a
-- person runs it, as the owner of the tables, when the ledger is large (docs/scaling.md):
--
--   psql "$DATABASE_URL" -v first=200000000 -v rows=100000000 -v count=20 -f migrations/by_hand/partition_ledger.sql
--
-- The present table stays as it is, and becomes the partition of all ids below `first`, which must be higher than every
-- id that is in the source. Then `count` partitions follow, each of `rows` ids, and one for all ids above them. No row is
-- moved. The long step reads the ledger once and lets others write. The last step needs the ledger, the runs and the
-- streams for itself for some milliseconds. It tries 50 times to get them. If it fails, the ledger is as it was. If the
-- script itself is ended in the middle, a limit may stay, and claims of ids from `first` on fail: run it again, or
-- `alter table codelupe.ledger drop constraint if exists ledger_below`.
\set ON_ERROR_STOP on
set statement_timeout = 0;
set lock_timeout = '5s';
set client_min_messages = warning;
\if :{?first}
\else
\set first ''
\endif
\if :{?rows}
\else
\set rows ''
\endif
\if :{?count}
\else
\set count ''
\endif
select set_config('codelupe.first', :'first', false), set_config('codelupe.rows', :'rows', false),
       set_config('codelupe.count', :'count', false) \g /dev/null

do $$
declare
    name text;
    least bigint := (select coalesce(max(file_id), 0) from codelupe.ledger);
    of_source bigint := 0;
begin
    foreach name in array array['first', 'rows', 'count'] loop
        if current_setting('codelupe.' || name) !~ '^0*[1-9][0-9]{0,17}$' then
            raise exception '% is "%", but must be a whole number from 1 on: give it with -v %=…',
                name, current_setting('codelupe.' || name), name;
        end if;
    end loop;
    if (select relkind from pg_class where oid = 'codelupe.ledger'::regclass) = 'p' then
        raise exception 'the ledger has partitions already';
    end if;
    if to_regclass('code_files') is not null then
        execute 'select coalesce(max(id), 0) from code_files' into of_source;
    end if;
    if current_setting('codelupe.first')::bigint <= greatest(least, of_source) then
        raise exception 'ids up to % are in use: give a first far above it', greatest(least, of_source);
    end if;
end $$;

-- From here on, no row can be in the old table that the partition would not hold.
alter table codelupe.ledger drop constraint if exists ledger_below;
do $$
begin
    execute format('alter table codelupe.ledger add constraint ledger_below check (file_id < %s) not valid',
                   current_setting('codelupe.first')::bigint);
end $$;
-- Reads all of the ledger. Others read and write meanwhile.
alter table codelupe.ledger validate constraint ledger_below;

\set ON_ERROR_STOP off
begin;
-- Attaching a partition with foreign keys needs the tables they refer to for itself, too. A transaction of a service may hold
-- one of the three and wait for another. So give up before Postgres ends one of the two (deadlock_timeout, usually 1 s).
do $$
begin
    set local lock_timeout = '400ms';
    for attempt in 1..50 loop
        begin
            lock table codelupe.streams, codelupe.runs, codelupe.ledger in access exclusive mode;
            return;
        exception when lock_not_available then
            perform pg_sleep(0.1);
        end;
    end loop;
    raise exception 'claims and verdicts did not leave the ledger for a moment: run the script again';
end $$;
do $$
declare
    first bigint := current_setting('codelupe.first');
    rows bigint := current_setting('codelupe.rows');
    last bigint := first + rows * current_setting('codelupe.count')::bigint;
    view_of text := pg_get_viewdef('codelupe.standing'::regclass);
    owner text := (select relowner::regrole::text from pg_class where oid = 'codelupe.ledger'::regclass);
    work record;
begin
    create temporary table later on commit drop as
        select 1 as place, pg_get_triggerdef(oid) as statement from pg_trigger
        where tgrelid = 'codelupe.ledger'::regclass and not tgisinternal
        union all
        select 2, format('alter table codelupe.ledger add constraint %I %s', conname, pg_get_constraintdef(oid))
        from pg_constraint where conrelid = 'codelupe.ledger'::regclass and contype = 'f'
        union all
        select 3, format('grant %s on codelupe.%%I to %s', a.privilege_type,
                         case a.grantee when 0 then 'public' else a.grantee::regrole::text end)
        from pg_class c cross join lateral aclexplode(c.relacl) a
        where c.oid = 'codelupe.ledger'::regclass and a.grantee <> c.relowner;
    for work in select format('drop trigger %I on codelupe.ledger', tgname) as statement from pg_trigger
                where tgrelid = 'codelupe.ledger'::regclass and not tgisinternal loop
        execute work.statement;
    end loop;
    alter table codelupe.ledger rename to ledger_first;
    -- The constraint that bounds the first partition belongs to it alone.
    create table codelupe.ledger (like codelupe.ledger_first including defaults including storage) partition by range (file_id);
    execute format('alter table codelupe.ledger owner to %s', owner);
    for work in select conname, pg_get_constraintdef(oid) as definition from pg_constraint
                where conrelid = 'codelupe.ledger_first'::regclass and contype = 'c' and conname <> 'ledger_below' loop
        execute format('alter table codelupe.ledger add constraint %I %s', work.conname, work.definition);
    end loop;
    for work in select i.indexrelid::regclass::text as name, c.relname, pg_get_indexdef(i.indexrelid) as definition, i.indisprimary
                from pg_index i join pg_class c on c.oid = i.indexrelid
                where i.indrelid = 'codelupe.ledger_first'::regclass loop
        execute format('alter index codelupe.%I rename to %I', work.relname, replace(work.relname, 'ledger', 'ledger_first'));
        if work.indisprimary then
            execute format('alter table codelupe.ledger add constraint %I primary key (stream, file_id)', work.relname);
        else
            execute replace(work.definition, 'codelupe.ledger_first', 'codelupe.ledger');
        end if;
    end loop;
    for work in select statement from later where place = 2 loop
        execute work.statement;
    end loop;
    execute format('alter table codelupe.ledger attach partition codelupe.ledger_first for values from (minvalue) to (%s)', first);
    while first < last loop
        execute format('create table codelupe.%I partition of codelupe.ledger for values from (%s) to (%s)',
                       'ledger_from_' || first, first, first + rows);
        execute format('alter table codelupe.%I owner to %s', 'ledger_from_' || first, owner);
        first := first + rows;
    end loop;
    execute format('create table codelupe.%I partition of codelupe.ledger for values from (%s) to (maxvalue)',
                   'ledger_from_' || last, last);
    execute format('alter table codelupe.%I owner to %s', 'ledger_from_' || last, owner);
    execute 'create or replace view codelupe.standing as ' || view_of;
    for work in select statement from later where place = 1 loop
        execute work.statement;
    end loop;
    for work in select format(statement, relname) as statement from later cross join pg_class
                where place = 3 and relnamespace = 'codelupe'::regnamespace
                  and (relname = 'ledger' or relname like 'ledger\_from\_%') and relkind in ('r', 'p') loop
        execute work.statement;
    end loop;
end $$;
commit;
\set ON_ERROR_STOP on
select relkind = 'p' as done from pg_class where oid = 'codelupe.ledger'::regclass \gset
\if :done
\else
alter table codelupe.ledger drop constraint if exists ledger_below;
do $$ begin raise exception 'the ledger was not partitioned, and is as it was: see the error above'; end $$;
\endif
