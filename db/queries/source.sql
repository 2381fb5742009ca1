-- The columns of the source table, and which of its rows are eligible.

-- name: source_columns
-- List the columns and types of a table or view. Returns no row if it does not exist.
select a.attname::text, t.typname::text, t.typcategory::text
from pg_attribute a join pg_type t on t.oid = a.atttypid
where a.attrelid = to_regclass(%(table)s) and a.attnum > 0 and not a.attisdropped;

-- name: source_has_xmin
-- Check whether every row has an xmin that may be read. Views and foreign tables have none.
select c.relkind in ('r', 'm', 'p') and has_column_privilege(c.oid, 'xmin', 'select')
   and not exists (select from pg_partition_tree(c.oid) p join pg_class l on l.oid = p.relid where l.relkind = 'f')
from pg_class c where c.oid = to_regclass(%(table)s);

-- name: source_similar
-- List tables and views whose name is the same except for upper and lower case.
select quote_ident(n.nspname) || '.' || quote_ident(c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'v', 'm', 'p', 'f') and lower(c.relname) = lower(%(name)s) order by 1;

-- name: source_readable
-- Fail if the user may not read one of the columns.
select {id}, {content}, {language}, {quality_score}, {repository}, {path}, {license}, {metadata}, {created_at}, {updated_at}
from {table} s limit 0;

-- name: source_is_empty
-- Check whether the table is empty.
select not exists (select from {table});

-- name: ineligible_reason
-- Fragment: the reason why a row may not be trained on, or null if it may. The order of the cases avoids reading long
-- texts: octet_length does not read a toasted text, and char_length is used only if the byte count does not decide (a
-- character takes one to four bytes).
case when {id} is null then 'no_id'
     when {content} is null then 'no_content'
     when {quality_score} is null or {quality_score}::real = 'NaN' then 'no_score'
     when {quality_score}::real < %(quality_threshold)s::real then 'low_score'
     when octet_length({content}) > 4 * %(max_chars)s::bigint then 'too_long'
     when octet_length({content}) < %(min_chars)s then 'too_short'
     when octet_length({content}) <= %(max_chars)s
          and octet_length({content}) >= 4 * %(min_chars)s::bigint then null
     when char_length({content}) < %(min_chars)s then 'too_short'
     when char_length({content}) > %(max_chars)s then 'too_long'
end

-- name: text_bytes
-- Fragment: the bytes of a text, in UTF-8. A SQL_ASCII database does not know its encoding, so it returns the bytes as
-- stored.
convert_to({value}::text, case getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end)

-- name: source_claimable
-- Select a page of the claimable rows of a range, ordered by id, with their texts as bytes. A new version of a held-out
-- row is held out if it is the same file, by repository and path.
select {id}, {repository_bytes}, {path_bytes}, {language_bytes}, {content_bytes}, {quality_score}::double precision,
       exists (select from codelupe.held_out h where h.stream = %(stream)s and h.file_id = {id}
               and (h.version = coalesce(l.version, 0) or h.repository is not distinct from {repository}::text
                                                          and h.path is not distinct from {path}::text)),
       coalesce(l.attempts, 0), {license_bytes}, {metadata_bytes}, {mark}, coalesce(l.version, 0),
       case when l.version > 0 then array(
           select w.content_sha256 from codelupe.superseded p join codelupe.run_rows w using (run_id, file_id)
           where p.stream = %(stream)s and p.file_id = {id} and p.disposition = 'trained') else '{{}}' end
from {table} s
left join codelupe.ledger l
  on l.stream = %(stream)s and l.file_id = {id} and l.file_id between %(first_id)s and %(last_id)s
where {id} between %(first_id)s and %(last_id)s
  and (l.file_id is null or l.disposition = 'returned' and (l.not_before is null or l.not_before <= now()))
  and {ineligible} is null
order by {id} limit %(limit)s;

-- name: source_by_id
-- Select the eligible rows among the given ones, with their texts as bytes. The columns are those of source_claimable.
select {id}, {repository_bytes}, {path_bytes}, {language_bytes}, {content_bytes}, {quality_score}::double precision,
       exists (select from codelupe.held_out h join codelupe.ledger l using (stream, file_id, version)
               where h.stream = %(stream)s and h.file_id = {id}), 0,
       {license_bytes}, {metadata_bytes}, null::bigint, 0, '{{}}'::text[]
from {table} s
where {id} = any(%(files)s::bigint[]) and {ineligible} is null;
