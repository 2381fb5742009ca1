"""Safeguards: a row is its id and its text."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "a settled row whose mark differs is looked at": Mutant(
        file="db/queries/chunks.sql",
        old="       or l.mark is distinct from {mark} and l.disposition in",
        new="       or false and l.disposition in",
        caught_by=test("tests/postgres/test_versions.py", "another_text_is_trained"),
    ),
    "a mark shows every write of a row": Mutant(
        file="db/table.py",
        old='            return sql.SQL("((s.xmin::text::bigint << 32) | octet_length({}))").format(content)',
        new='            return sql.SQL("octet_length({})::bigint").format(content)',
        caught_by=test("tests/postgres/test_versions.py", "another_text_is_trained"),
    ),
    "only another text is a new version": Mutant(
        file="db/versions.py",
        old="    changed = [file_id for file_id, _, same, _ in found if not same]",
        new="    changed = [file_id for file_id, _, same, _ in found]",
        caught_by=test("tests/postgres/test_versions.py", "same_text_is_not_trained"),
    ),
    "what became of an earlier text is recorded": Mutant(
        file="db/versions.py",
        old='("supersede_record", "supersede_forget", "supersede_return")',
        new='("supersede_forget", "supersede_return")',
        caught_by=test("tests/postgres/test_versions.py", "another_text_is_trained"),
    ),
    "without xmin, texts are compared in turn": Mutant(
        file="db/chunks.py",
        old="        if not self._source.has_xmin:",
        new="        if False:",
        caught_by=test("tests/postgres/test_versions.py", "compared_in_turn"),
    ),
    "texts that could not be compared are compared soon": Mutant(
        file="db/queries/chunks.sql",
        old="case when %(compare_on)s then now() end",
        new="cast(null as timestamptz)",
        caught_by=test("tests/postgres/test_versions.py", "in_an_older_range"),
    ),
    "an emptied table is noticed at the next poll": Mutant(
        file="db/chunks.py",
        old='            ranges.run("chunks_begin_anew")',
        new="            pass",
        caught_by=test("tests/postgres/test_versions.py", "emptied_table"),
    ),
    "a new version of a held-out file is held out": Mutant(
        file="db/queries/source.sql",
        old="h.version = coalesce(l.version, 0) or h.repository is not distinct",
        new="h.version = coalesce(l.version, 0) or false and h.repository is not distinct",
        caught_by=test("tests/postgres/test_versions.py", "new_version_of_a_held_out"),
    ),
    "a text that comes back under its id is not trained on again": Mutant(
        file="service/admission/admission.py",
        old="        if row.sha256 in row.trained_texts:",
        new="        if False:",
        caught_by=test("tests/postgres/test_hygiene.py", "comes_back_under_its_id"),
    ),
    "the fingerprint of an earlier text stays": Mutant(
        file="migrations/0008_versions.sql",
        old=" and i.version = c.version offset 0",
        new=" offset 0",
        caught_by=test("tests/postgres/test_hygiene.py", "under_another_id"),
    ),
    "an edited row is no near duplicate of itself": Mutant(
        file="service/admission/duplicates.py",
        old="                if found == DUPLICATE or not other.is_own:",
        new="                if True:",
        caught_by=test("tests/postgres/test_hygiene.py", "near_duplicate_of_itself"),
    ),
    "a row that was trained on is not held out to fill up a run": Mutant(
        file="service/admission/split.py",
        old="        if row.trained_texts:",
        new="        if False:",
        caught_by=test("tests/unit/test_split.py", "earlier_text_was_trained"),
    ),
}
