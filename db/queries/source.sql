-- The source table: its columns, and which rows are eligible.

-- name: source_columns
-- Columns and types of a table or view; no row when there is none of that name.
select a.attname::text, t.typname::text, t.typcategory::text
from pg_attribute a join pg_type t on t.oid = a.atttypid
where a.attrelid = to_regclass(%(table)s) and a.attnum > 0 and not a.attisdropped;

-- name: source_similar
-- Tables and views whose name differs in case alone.
select quote_ident(n.nspname) || '.' || quote_ident(c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'v', 'm', 'p', 'f') and lower(c.relname) = lower(%(name)s) order by 1;

-- name: source_readable
-- Fails where the user may not read the columns.
select {id}, {content}, {language}, {quality_score}, {repository}, {path}, {license}, {metadata}, {created_at}
from {table} s limit 0;

-- name: source_is_empty
-- Whether the table has no row at all.
select not exists (select from {table});

-- name: ineligible_reason
-- Fragment: why a row may not be trained on; null when it may. CASE keeps the order: octet_length reads no toasted text,
-- and char_length is asked only where bytes leave the answer open (a character takes one to four).
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
-- Fragment: a text's bytes, in UTF-8 unless the database does not know its own encoding.
convert_to({value}::text, case getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end)

-- name: source_claimable
-- A page of eligible rows of a range that no run has, in the order of their ids, with their texts as bytes.
select {id}, {repository_bytes}, {path_bytes}, {language_bytes}, {content_bytes}, {quality_score}::double precision,
       h.file_id is not null, coalesce(l.attempts, 0), {license_bytes}, {metadata_bytes}
from {table} s
left join codelupe.ledger l on l.stream = %(stream)s and l.file_id = {id} and l.file_id between %(first_id)s and %(last_id)s
left join codelupe.held_out h on h.stream = %(stream)s and h.file_id = {id} and h.file_id between %(first_id)s and %(last_id)s
where {id} between %(first_id)s and %(last_id)s
  and (l.file_id is null or l.disposition = 'returned' and (l.not_before is null or l.not_before <= now()))
  and {ineligible} is null
order by {id} limit %(limit)s;
