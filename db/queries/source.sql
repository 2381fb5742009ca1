-- The columns of the source table, and which of its rows are eligible.

-- name: source_columns
-- List the columns and types of a table or view. Returns no row if it does not exist. A domain counts as the type below
-- it, and there may be domains of domains.
with recursive columns (name, type) as (
    select a.attname::text, a.atttypid from pg_attribute a
    where a.attrelid = to_regclass(%(table)s) and a.attnum > 0 and not a.attisdropped
    union all
    select c.name, t.typbasetype from columns c join pg_type t on t.oid = c.type where t.typtype = 'd'
)
select c.name, t.typname::text, t.typcategory::text
from columns c join pg_type t on t.oid = c.type where t.typtype <> 'd';

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
select {id}, {content}, {language}, {quality_score}, {repository}, {path}, {license}, {metadata}, {created_at}, {updated_at}, {phase}
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
     when coalesce({phase_text}, '') <> all(%(phases)s::text[]) then 'other_phase'
     when {score} is null or {score} = 'NaN' then 'no_score'
     when {score} < {score_threshold} then 'low_score'
     when octet_length({content}) > 4 * %(max_chars)s::bigint then 'too_long'
     when octet_length({content}) < %(min_chars)s then 'too_short'
     when octet_length({content}) <= %(max_chars)s
          and octet_length({content}) >= 4 * %(min_chars)s::bigint then null
     when char_length({content}) < %(min_chars)s then 'too_short'
     when char_length({content}) > %(max_chars)s then 'too_long'
end

-- name: score_own
-- Fragment: a score in its own type. A cast would fail for a score that the other type cannot hold.
{value}

-- name: score_integer
-- Fragment: a score of an integer type. This cast cannot fail, and is faster than one to numeric.
{value}::double precision

-- name: score_threshold_float4
-- Fragment: the threshold in single precision, as the scores are stored. No threshold makes the cast fail: it is limited
-- to the numbers of that type, and one near zero counts as zero.
round(least(greatest(cast(%(quality_threshold)s as numeric), -3.4e38), 3.4e38), 30)::real

-- name: score_threshold_float8
-- Fragment: the threshold for scores in double precision.
cast(%(quality_threshold)s as double precision)

-- name: score_threshold_numeric
-- Fragment: the threshold for exact scores.
cast(%(quality_threshold)s as numeric)

-- name: created
-- Fragment: the creation time of a row. Null if it is infinite, or so remote that a time zone could put it out of range.
case when {value} between '4713-01-01 BC' and '294276-12-30' then {value}::timestamptz end

-- name: text_bytes
-- Fragment: the bytes of a text, in UTF-8. A SQL_ASCII database does not know its encoding, so it returns the bytes as
-- stored. In other encodings, bytes that stand for no character make the result invalid.
case getdatabaseencoding() when 'UTF8' then convert_to({value}::text, 'UTF8')
                           when 'SQL_ASCII' then convert_to({value}::text, 'SQL_ASCII')
                           else codelupe.utf8_bytes({value}::text) end

-- name: name_bytes
-- Fragment: the bytes of a name, which may have any type. A NUL stands for one that is too long: no text contains it.
case when {too_long} then '\x00'::bytea else {bytes} end

-- name: name_text
-- Fragment: a name as text, or null if it is too long.
case when {too_long} then null else {value}::text end

-- name: too_long_text
-- Fragment: whether a text is too long. This does not read a toasted text.
octet_length({value}::text) > {limit}

-- name: too_long_bytea
-- Fragment: the same for bytes, which become two hexadecimal digits each.
2 * octet_length({value})::bigint + 2 > {limit}

-- name: too_long_array
-- Fragment: the same for an array. A short array can hold numbers of 131,072 digits.
case when pg_column_size({value}) > {limit} or cardinality({value}) > 1000 then true
     else octet_length({value}::text) > {limit} end

-- name: too_long_jsonb
-- Fragment: the same for jsonb. The path gives the value uncompressed, so that its size can be told without its text.
case when pg_column_size({value}) > {limit} or pg_column_size(jsonb_path_query_first({value}, '$')) > {limit} then true
     else octet_length({value}::text) > {limit} end

-- name: too_long_other
-- Fragment: the same for any other type.
case when pg_column_size({value}) > {limit} then true else octet_length({value}::text) > {limit} end

-- name: metadata_bytes_jsonb
-- Fragment: the bytes of metadata. Empty if there are too many: that is no JSON either. In jsonb, a value takes at most
-- four times its text. The path gives the value uncompressed.
case when pg_column_size({value}) > 4 * {limit} then ''::bytea
     when pg_column_size(jsonb_path_query_first({value}, '$')) > 4 * {limit} then ''::bytea
     when octet_length({value}::text) > {limit} then ''::bytea
     else {bytes} end

-- name: metadata_bytes_json
-- Fragment: the same for json, which is stored as its text.
case when octet_length({value}::text) > {limit} then ''::bytea else {bytes} end

-- name: source_claimable
-- Select a page of the claimable rows of a range, ordered by id, with their texts as bytes. A new version of a held-out
-- row is held out if it is the same file, by repository and path.
select {id}, {repository_bytes}, {path_bytes}, {language_bytes}, {content_bytes}, {quality_score}::text,
       exists (select from codelupe.held_out h where h.stream = %(stream)s and h.file_id = {id}
               and (h.version = coalesce(l.version, 0) or h.repository is not distinct from {repository_text}
                                                          and h.path is not distinct from {path_text})),
       coalesce(l.attempts, 0), {license_bytes}, {metadata_bytes}, {mark}, coalesce(l.version, 0),
       case when l.version > 0 then array(
           select w.content_sha256 from codelupe.superseded p join codelupe.run_rows w using (run_id, file_id)
           where p.stream = %(stream)s and p.file_id = {id} and p.disposition = 'trained') else '{{}}' end
from {table} s
left join codelupe.ledger l
  on l.stream = %(stream)s and l.file_id = {id} and l.file_id between %(first_id)s and %(last_id)s
where {id} between %(first_id)s and %(last_id)s
  and (%(phase)s::text is null or {phase_text} = %(phase)s)
  and (l.file_id is null or l.disposition = 'returned' and (l.not_before is null or l.not_before <= now()))
  and {ineligible} is null
order by {id} limit %(limit)s;

-- name: source_by_id
-- Select the eligible rows among the given ones, with their texts as bytes. The columns are those of source_claimable.
select {id}, {repository_bytes}, {path_bytes}, {language_bytes}, {content_bytes}, {quality_score}::text,
       exists (select from codelupe.held_out h join codelupe.ledger l using (stream, file_id, version)
               where h.stream = %(stream)s and h.file_id = {id}), 0,
       {license_bytes}, {metadata_bytes}, null::bigint, 0, '{{}}'::text[]
from {table} s
where {id} = any(%(files)s::bigint[]) and {ineligible} is null;
