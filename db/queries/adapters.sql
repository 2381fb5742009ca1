-- Published adapters.

-- name: adapter_insert
-- Insert a published adapter as current. Its version is the id of its run.
insert into codelupe.adapters (version, stream, parent_version, folder, manifest_sha256, evaluation, is_current)
values (%(version)s, %(stream)s, %(parent_version)s, %(folder)s, %(manifest_sha256)s, %(evaluation)s, true);

-- name: adapter_retire
-- Mark no adapter of the stream as current. Another statement then sets the new one.
update codelupe.adapters set is_current = false where stream = %(stream)s and is_current;

-- name: adapter_make_current
-- Make a version current. Returns no row if the version does not exist or was withdrawn.
update codelupe.adapters set is_current = true
where stream = %(stream)s and version = %(version)s and withdrawn_at is null returning version;

-- name: adapter_current
-- Select the current adapter of the stream.
select version, stream, parent_version, folder, manifest_sha256, evaluation, published_at, is_current
from codelupe.adapters where stream = %(stream)s and is_current;

-- name: adapter_history
-- List the adapters of a stream, newest first. %(limit)s and %(among)s (a list of versions) may be null.
select version, stream, parent_version, folder, manifest_sha256, evaluation, published_at, is_current
from codelupe.adapters
where stream = %(stream)s and (%(among)s::bigint[] is null or version = any(%(among)s::bigint[]))
order by version desc limit %(limit)s;
