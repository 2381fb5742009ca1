-- The trainer's own source table, for `codelupe drop`.

-- name: files_copy
-- New files for the trainer's own source table.
copy code_files (repository, path, language, content, quality_score, license, commit_sha, phase, metadata) from stdin;

-- name: files_notify
-- Tell who waits for new files, at the commit; who does not listen finds them at the next poll.
select pg_notify(%(channel)s, '');

-- name: files_lock
-- Who adds files waits for whoever does so now.
select pg_advisory_xact_lock(hashtext('codelupe.files'));

-- name: files_known
-- Which of a batch are there, by number from 1: files by their text, changes by their commit (arrays side by side).
select a.number
from unnest(%(repositories)s::text[], %(paths)s::text[], %(changes)s::boolean[], %(commits)s::text[],
            %(digests)s::bytea[]) with ordinality as a (repository, path, is_change, commit_sha, digest, number)
cross join lateral (
    select {content_bytes} as content, s.commit_sha, s.metadata ? 'diff' as is_change from code_files s
    where hashtextextended(s.path, hashtextextended(coalesce(s.repository, ''), 0))
            = hashtextextended(a.path, hashtextextended(a.repository, 0))
      and s.path = a.path and coalesce(s.repository, '') = a.repository offset 0
) s
where s.is_change = a.is_change
  and case when a.commit_sha is null then sha256(s.content) = a.digest else s.commit_sha = a.commit_sha end;

-- name: files_paths
-- Paths of a repository.
select distinct path from code_files where repository = %(repository)s and path is not null;
