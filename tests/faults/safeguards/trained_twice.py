"""Safeguards: no row trained twice, and no forbidden row trained."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "only returned rows are claimed again": Mutant(
        file="db/queries/source.sql",
        old="(l.not_before is null or l.not_before <= now()))\n  and {ineligible} is null\norder by {id} limit",
        new="true or true)\n  and {ineligible} is null\norder by {id} limit",
        caught_by=test("tests/postgres/test_claim.py", "settled_row"),
    ),
    "only the rows seen before the best step are trained": Mutant(
        file="trainer/outcomes.py",
        old="        elif seen[file_id]:",
        new="        elif True:",
        caught_by=test("tests/unit/test_train.py", "later_steps"),
    ),
    "held-out files stay held out": Mutant(
        file="db/queries/source.sql",
        old="       exists (select from codelupe.held_out h where h.stream",
        new="       false and exists (select from codelupe.held_out h where h.stream",
        caught_by=test("tests/postgres/test_claim.py", "never_kept"),
    ),
    "a held-out file is not kept for training": Mutant(
        file="db/claim.py",
        old='        if row.held_out and role != "held_out":',
        new="        if False:",
        caught_by=test("tests/postgres/test_claim.py", "never_kept"),
    ),
    "a held-out file stays held out after it is returned": Mutant(
        file="service/admission/split.py",
        old="        return row.held_out or position <",
        new="        return position <",
        caught_by=test("tests/unit/test_split.py", "stays_held_out"),
    ),
    "a later version of a held-out file is also held out": Mutant(
        file="service/cycle/claim.py",
        old="Splitter(recipe.data, rows.held_out_places())",
        new="Splitter(recipe.data)",
        caught_by=test("tests/postgres/test_claim_run.py", "another_version"),
    ),
    "a held-out row cannot have the outcome trained": Mutant(
        file="db/settling.py",
        old="            if outcome.outcome in OUTCOMES_OF_ROLE[role]:",
        new="            if True:",
        caught_by=test("tests/postgres/test_verdicts.py", "held_out_row_that_was"),
    ),
    "no run starts without held-out files": Mutant(
        file="service/cycle/claim.py",
        old="    if splitter.trained and not splitter.held_out and not before:",
        new="    if False:",
        caught_by=test("tests/postgres/test_claim_run.py", "without_held_out"),
    ),
    "an exact duplicate is not trained on": Mutant(
        file="service/admission/duplicates.py",
        old="        if one.exact == exact:\n            return DUPLICATE\n",
        new="",
        caught_by=test("tests/postgres/test_hygiene.py", "first_of_similar"),
    ),
    "a near duplicate of a held-out file is not trained on": Mutant(
        file="service/admission/duplicates.py",
        old="        if self._near is not None and similarity(one.signature, signature) >= self._near:",
        new="        if False:",
        caught_by=test("tests/postgres/test_hygiene.py", "near_duplicate"),
    ),
    "later runs know the files already trained on": Mutant(
        file="service/admission/duplicates.py",
        old="        self._known.remember(kept)\n        return list",
        new="        return list",
        caught_by=test("tests/postgres/test_hygiene.py", "remembered_in_later_runs"),
    ),
    "benchmark files are refused": Mutant(
        file="service/admission/admission.py",
        old="            or next((reason for text in texts if (reason := self._benchmarks.reason(text))), None)\n",
        new="",
        caught_by=test("tests/postgres/test_hygiene.py", "benchmark_is_refused"),
    ),
    "secrets are replaced by placeholders": Mutant(
        file="service/admission/admission.py",
        old='        if self._hygiene.secrets == "keep":\n            return row, found\n',
        new="        return row, found\n",
        caught_by=test("tests/postgres/test_hygiene.py", "secret"),
    ),
    "a revoked row is not claimed": Mutant(
        file="service/admission/admission.py",
        old="        if row.file_id in self._revoked_ids or row.sha256 in self._revoked_texts:",
        new="        if False:",
        caught_by=test("tests/postgres/test_revocations.py", "claim_refuses"),
    ),
    "a run with a revoked row is not published": Mutant(
        file="db/settling.py",
        old="    if found := revoked_among(cursor, stream, run_id) + trunk.revoked(cursor, stream):",
        new="    if found := trunk.revoked(cursor, stream):",
        caught_by=test("tests/postgres/test_revocations.py", "revoked_row_is_not_published"),
    ),
    "a revocation waits for a write in progress": Mutant(
        file="db/revocations.py",
        old='        cursor.execute(QUERIES["lease_exclusive"], {"stream": stream})\n',
        new="",
        caught_by=test("tests/postgres/test_revocations.py", "under_way"),
    ),
    "an adapter trained on a revoked row is no longer current": Mutant(
        file="db/revocations.py",
        old="        if begin_anew and any(adapter.is_current for adapter in found.adapters):",
        new="        if False:",
        caught_by=test("tests/postgres/test_revocations.py", "beginning_anew"),
    ),
    "a withdrawn adapter cannot become current again": Mutant(
        file="db/queries/adapters.sql",
        old="where stream = %(stream)s and version = %(version)s and withdrawn_at is null returning version;",
        new="where stream = %(stream)s and version = %(version)s returning version;",
        caught_by=test("tests/postgres/test_revocations.py", "beginning_anew"),
    ),
    "a revoked text is not used for evaluation": Mutant(
        file="db/revocations.py",
        old='        cursor.execute(QUERIES["revoked_forget_held_out"], parameters)\n',
        new="",
        caught_by=test("tests/postgres/test_revocations.py", "text_is_forgotten"),
    ),
    "concurrent drops insert each file once": Mutant(
        file="db/files.py",
        old='        cursor.execute(QUERIES["files_lock"])\n',
        new="",
        caught_by=test("tests/postgres/test_drop_twice.py", "many_drops"),
    ),
    "a claimed row matches its manifest": Mutant(
        file="trainer/check.py",
        old="        manifest = verify_manifest(directory.root)\n",
        new="        manifest = __import__('json').loads((directory.root / MANIFEST).read_text())\n",
        caught_by=test("tests/unit/test_train.py", "tampered"),
    ),
    "a file occurs only once in a run": Mutant(
        file="trainer/reading.py",
        old="    if twice := [str(file_id) for file_id, times in Counter(file_ids).items() if times > 1]:",
        new="    if twice := []:",
        caught_by=test("tests/unit/test_train.py", "occurs_twice"),
    ),
    "a finished run is not trained again": Mutant(
        file="trainer/__main__.py",
        old="    if directory.report.exists():",
        new="    if False:",
        caught_by=test("tests/unit/test_train.py", "finished_run"),
    ),
}
