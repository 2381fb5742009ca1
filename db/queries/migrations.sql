-- Which migrations have been applied.

-- name: migrations_lock
-- Allow one migrating process at a time. The lock is released when the transaction ends.
select pg_advisory_xact_lock(hashtext('codelupe.migrations'));

-- name: migrations_timeout
-- Remove the statement timeout, because rewriting a large table can take long.
set local statement_timeout = 0;

-- name: migrations_table
-- Create the table of applied migrations.
create schema if not exists codelupe;
create table if not exists codelupe.migrations (
    name       text primary key,
    sha256     text not null,
    applied_at timestamptz not null default now()
);

-- name: migrations_known
-- Check whether the table of applied migrations exists.
select to_regclass('codelupe.migrations') is not null;

-- name: migrations_applied
-- List the applied migrations with the digests of their files.
select name, sha256 from codelupe.migrations order by name;

-- name: migrations_add
-- Record an applied migration.
insert into codelupe.migrations (name, sha256) values (%(name)s, %(sha256)s);
