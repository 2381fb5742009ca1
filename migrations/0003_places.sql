-- Whether a file is there already is asked for each one that `codelupe drop` reads: by place, in any number of rows.
-- Of the hash alone, since a path may be longer than an index's entry. A table of the producer's own making, without
-- these columns, is left as it is.
do $$
begin
    create index if not exists code_files_place
        on code_files (hashtextextended(path, hashtextextended(coalesce(repository, ''), 0)));
exception when undefined_column or wrong_object_type then
    null;
end $$;
