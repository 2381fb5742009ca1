-- Which migrations have been applied.

-- name: migrations_lock
-- Allow one migrating process at a time. The lock is released when the transaction ends.
select pg_advisory_xact_lock(hashtext('codelupe.migrations'));

-- name: migrations_timeout
-- Remove the statement timeout, because rewriting a large table can take long.
set local statement_timeout = 0;

-- name: migrations_schema_known
-- Check whether the schema of our tables exists.
select exists (select from pg_namespace where nspname = 'codelupe');

-- name: migrations_schema
-- Create the schema of our tables.
create schema codelupe;

-- name: migrations_known
-- Check whether the table of applied migrations exists. to_regclass would fail for a role that may not use the schema.
select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = 'codelupe' and c.relname = 'migrations');

-- name: migrations_table
-- Create the table of applied migrations.
create table codelupe.migrations (
    name       text primary key,
    sha256     text not null,
    applied_at timestamptz not null default now()
);

-- name: source_table_state
-- Check whether `code_files` needs its index. Returns no row if the table does not exist. A table of another owner, or
-- without these columns, is left as it is.
select c.relkind in ('r', 'p') and pg_has_role(c.relowner, 'usage')
       and (select count(*) from pg_attribute a where a.attrelid = c.oid and not a.attisdropped
            and a.attname in ('repository', 'path') and a.atttypid in ('text'::regtype, 'varchar'::regtype)) = 2
       and not exists (select from pg_index i join pg_class p on p.oid = i.indexrelid
                       where i.indrelid = c.oid and p.relname = 'code_files_place')
from pg_class c where c.oid = to_regclass('code_files');

-- name: migrations_applied
-- List the applied migrations with the digests of their files.
select name, sha256 from codelupe.migrations order by name;

-- name: migrations_add
-- Record an applied migration.
insert into codelupe.migrations (name, sha256) values (%(name)s, %(sha256)s);
