-- The index of the source table, which this made, is in source/code_files_place.sql now.
select 1;
