-- A curriculum has phases, and a run has rows of one phase. Null: the stream has no phases.
alter table codelupe.runs add column phase text;
