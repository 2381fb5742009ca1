-- Which migrations have been applied.

-- name: migrations_lock
-- One migrating process at a time; the lock ends with the transaction.
select pg_advisory_xact_lock(hashtext('codelupe.migrations'));

-- name: migrations_timeout
-- To rewrite a large table takes as long as it takes.
set local statement_timeout = 0;

-- name: migrations_table
-- Where applied migrations are remembered.
create schema if not exists codelupe;
create table if not exists codelupe.migrations (
    name       text primary key,
    sha256     text not null,
    applied_at timestamptz not null default now()
);

-- name: migrations_known
-- Whether any migration was ever applied.
select to_regclass('codelupe.migrations') is not null;

-- name: migrations_applied
-- Applied migrations with the digest of their files.
select name, sha256 from codelupe.migrations order by name;

-- name: migrations_add
-- Remember an applied migration.
insert into codelupe.migrations (name, sha256) values (%(name)s, %(sha256)s);
