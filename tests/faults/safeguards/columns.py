"""Safeguards: odd values in the source's columns."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "a score is compared in a type that can hold it": Mutant(
        file="db/queries/source.sql",
        old="a score that the other type cannot hold.\n{value}\n",
        new="a score that the other type cannot hold.\n{value}::real\n",
        caught_by=test("tests/postgres/test_columns.py", "quality_score"),
    ),
    "a score is read as text": Mutant(
        file="db/queries/source.sql",
        old="{quality_score}::text,\n       exists (select from codelupe.held_out h where",
        new="{quality_score}::double precision,\n       exists (select from codelupe.held_out h where",
        caught_by=test("tests/postgres/test_columns.py", "quality_score"),
    ),
    "no threshold is out of range": Mutant(
        file="db/queries/source.sql",
        old="round(least(greatest(cast(%(quality_threshold)s as numeric), -3.4e38), 3.4e38), 30)::real",
        new="%(quality_threshold)s::real",
        caught_by=test("tests/postgres/test_columns.py", "any_threshold"),
    ),
    "a time that cannot be represented counts as unknown": Mutant(
        file="db/queries/source.sql",
        old="case when {value} between '4713-01-01 BC' and '294276-12-30' then {value}::timestamptz end",
        new="{value}::timestamptz",
        caught_by=test("tests/postgres/test_columns.py", "created_at"),
    ),
    "a long name is not read": Mutant(
        file="db/queries/source.sql",
        old="case when {too_long} then '\\x00'::bytea else {bytes} end",
        new="{bytes}",
        caught_by=test("tests/postgres/test_columns.py", "repository"),
    ),
    "large metadata is not read": Mutant(
        file="db/queries/source.sql",
        old="case when octet_length({value}::text) > {limit} then ''::bytea else {bytes} end",
        new="{bytes}",
        caught_by=test("tests/postgres/test_columns.py", "metadata"),
    ),
    "the lowest id can be settled": Mutant(
        file="db/settling.py",
        old='BIGINT = "cast(%s as bigint)"',
        new='BIGINT = "%s::bigint"',
        caught_by=test("tests/postgres/test_columns.py", "key"),
    ),
    "a domain counts as the type below it": Mutant(
        file="db/queries/source.sql",
        old=" where t.typtype = 'd'\n)",
        new=" where false\n)",
        caught_by=test("tests/postgres/test_columns.py", "key"),
    ),
}
