-- The rights of a role: what a service needs, and what is missing of it.

-- name: rights_role
-- Select the role whose rights count.
select current_user;

-- name: rights_role_known
-- Check whether a role exists.
select exists (select from pg_roles where rolname = %(role)s);

-- name: rights_missing
-- List the GRANT statements that a role needs to use our tables and to read the source. The second column is what
-- needs the right. %(schema)s is null for a source that is named without a schema: then the search path decides, or else
-- public, which a role does not see without USAGE. A role that may read some of the source's columns is not listed,
-- because the check of the source names the others.
with source as (
    select c.oid, c.relname, n.oid as schema_oid, n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relname = %(table)s::text and c.relkind in ('r', 'v', 'm', 'p', 'f')
      and n.nspname = any (case when %(schema)s::text is null then current_schemas(false) || 'public'::name
                                else array[%(schema)s::name] end)
    order by array_position(current_schemas(false), n.nspname) limit 1
), ours as (
    select c.oid, c.relname, c.relkind, n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'codelupe'
), missing (statement, needed_by, place) as (
    select format('grant usage on schema %%I to %%I', nspname, %(role)s::text), 'the service', 1 from pg_namespace
    where (nspname = 'codelupe' or oid = (select schema_oid from source))
      and not has_schema_privilege(%(role)s, oid, 'usage')
    union all
    select format('grant %%s on %%I.%%I to %%I', string_agg(wanted, ', ' order by place), nspname, relname, %(role)s::text),
           'the service', 2
    from ours cross join unnest(array['select', 'insert', 'update', 'delete']) with ordinality w (wanted, place)
    where relkind in ('r', 'p', 'v') and (relname <> 'migrations' or wanted = 'select')
      and not has_table_privilege(%(role)s, oid, wanted)
    group by nspname, relname
    union all
    -- The sequence of an identity column needs no right.
    select format('grant usage on sequence %%I.%%I to %%I', nspname, relname, %(role)s::text), 'the service', 3
    from ours o where relkind = 'S' and not exists (select from pg_depend d where d.objid = o.oid and d.deptype = 'i')
      and not case relkind when 'S' then has_sequence_privilege(%(role)s, oid, 'usage') end
    union all
    select format('grant execute on function %%s to %%I', p.oid::regprocedure, %(role)s::text), 'the service', 4
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'codelupe' and not has_function_privilege(%(role)s, p.oid, 'execute')
    union all
    select format('grant select on %%I.%%I to %%I', nspname, relname, %(role)s::text), 'the service', 5 from source
    where not has_any_column_privilege(%(role)s, oid, 'select')
    union all
    select format('grant insert on %%I.%%I to %%I', nspname, relname, %(role)s::text), 'codelupe drop', 6 from source
    where %(insert)s and not has_table_privilege(%(role)s, oid, 'insert')
)
select statement, needed_by from missing order by place, statement;

-- name: rights_to_create
-- List the GRANT statements that a role needs to create our schema or its tables, and `code_files` if %(source)s.
select format('grant create on database %%I to %%I', current_database(), %(role)s::text)
where not exists (select from pg_namespace where nspname = 'codelupe')
  and not has_database_privilege(%(role)s, current_database(), 'create')
union all
select format('grant create on schema %%I to %%I', nspname, %(role)s::text) from pg_namespace
where (nspname = 'codelupe' and %(ours)s or nspname = 'public' and %(source)s)
  and not has_schema_privilege(%(role)s, oid, 'create');

-- name: rights_owns_all
-- Check whether a role may change all of our tables, as a migration does.
select coalesce(bool_and(pg_has_role(%(role)s, c.relowner, 'usage')), true)
from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'codelupe' and c.relkind in ('r', 'p');

-- name: rights_users
-- List the roles that were granted to write to the ledger: those of the services. The owner is not one of them.
select distinct r.rolname
from pg_class c cross join lateral aclexplode(c.relacl) a join pg_roles r on r.oid = a.grantee
where c.oid = 'codelupe.ledger'::regclass and a.privilege_type = 'INSERT' and a.grantee <> c.relowner;
