-- The table `code_files`, which `codelupe drop` fills.

-- name: files_copy
-- Copy new files into the table.
copy code_files (repository, path, language, content, quality_score, license, commit_sha, phase, metadata) from stdin;

-- name: files_notify
-- Notify listeners of new files when the transaction commits. A service that does not listen finds the files at its
-- next poll.
select pg_notify(%(channel)s, '');

-- name: files_lock
-- Take the lock that allows one writer at a time. It is released when the transaction ends.
select pg_advisory_xact_lock(hashtext('codelupe.files'));

-- name: files_known
-- Find the files of a batch that the table already has. A change is identified by its commit, any other file by its
-- text. The arrays run in parallel. Returns positions in the batch, from 1.
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
-- List the paths of a repository.
select distinct path from code_files where repository = %(repository)s and path is not null;

-- name: files_by_phase
-- Count the rows of each phase.
select phase, count(*) from code_files group by 1;
