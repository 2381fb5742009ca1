-- Whether a file is there already is asked for each one that `codelupe drop` reads: by place, in any number of rows.
-- Of the hash alone, since a path may be longer than an index's entry.
create index code_files_place
    on code_files (hashtextextended(path, hashtextextended(coalesce(repository, ''), 0)));
