-- Published adapters.

-- name: adapter_insert
-- A published adapter; its version is its run's id.
insert into codelupe.adapters (version, stream, parent_version, folder, manifest_sha256, evaluation, is_current)
values (%(version)s, %(stream)s, %(parent_version)s, %(folder)s, %(manifest_sha256)s, %(evaluation)s, true);

-- name: adapter_retire
-- No adapter of the stream is current until another is made so.
update codelupe.adapters set is_current = false where stream = %(stream)s and is_current;

-- name: adapter_make_current
-- Make a version current, if it stands.
update codelupe.adapters set is_current = true
where stream = %(stream)s and version = %(version)s and withdrawn_at is null returning version;

-- name: adapter_current
-- The stream's current adapter.
select version, stream, parent_version, folder, manifest_sha256, evaluation, published_at, is_current
from codelupe.adapters where stream = %(stream)s and is_current;

-- name: adapter_history
-- A stream's adapters, newest first; at most so many, and of some versions alone, where either is given.
select version, stream, parent_version, folder, manifest_sha256, evaluation, published_at, is_current
from codelupe.adapters
where stream = %(stream)s and (%(among)s::bigint[] is null or version = any(%(among)s::bigint[]))
order by version desc limit %(limit)s;
