"""Safeguards: the live adapter can always be loaded."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

MUTANTS: dict[str, Mutant] = {
    "a publication requires its parent to be current": Mutant(
        file="db/settling.py",
        old="    _check_parent(cursor, stream, run_id, parent_version)\n",
        new="",
        caught_by=test("tests/postgres/test_verdicts.py", "moved_parent"),
    ),
    "the pointer is updated from the database": Mutant(
        file="service/cycle/upkeep.py",
        old="            if sync_pointer(self.home, self.stream, current):\n",
        new="            if False:\n",
        caught_by=test("tests/postgres/test_claim_run.py", "left_behind"),
    ),
    "the pointer is swapped by a rename": Mutant(
        file="service/publish/folders.py",
        old="            temporary.symlink_to(wanted)\n            temporary.replace(pointer)\n",
        new="            pointer.unlink(missing_ok=True)\n            pointer.symlink_to(wanted)\n"
        "            (pointer.parent / 'adapters').mkdir(exist_ok=True)\n",
        caught_by=test("tests/unit/test_publish.py", "swap_that_fails"),
    ),
    "a candidate is verified before it is copied": Mutant(
        file="service/publish/folders.py",
        old="    verify_manifest(run.adapter, beat)\n",
        new="",
        caught_by=test("tests/unit/test_publish.py", "damaged_candidate"),
    ),
    "a copy that differs from its original is not published": Mutant(
        file="service/publish/folders.py",
        old="        if {name: copies[name] for name in originals} != originals:",
        new="        if False:",
        caught_by=test("tests/unit/test_publish.py", "copy_that_differs"),
    ),
    "the pointer never names a missing folder": Mutant(
        file="service/publish/folders.py",
        old="    if current is not None and not home.adapter(current.version).is_dir():",
        new="    if False:",
        caught_by=test("tests/unit/test_publish.py", "never_names"),
    ),
    "a folder in place of the pointer is left unchanged": Mutant(
        file="service/publish/folders.py",
        old="    if pointer.exists() and not pointer.is_symlink():",
        new="    if False:",
        caught_by=test("tests/unit/test_publish.py", "not_touched"),
    ),
    "retention keeps the current adapter": Mutant(
        file="service/publish/folders.py",
        old=" | {a.version for a in history if a.is_current}",
        new="",
        caught_by=test("tests/unit/test_publish.py", "retention"),
    ),
    "a rollback waits for a publication in progress": Mutant(
        file="db/adapters.py",
        old='        cursor.execute(QUERIES["lease_exclusive"], {"stream": stream})\n',
        new="",
        caught_by=test("tests/postgres/test_verdicts.py", "rollback_waits"),
    ),
    "no run starts from a damaged adapter": Mutant(
        file="service/cycle/upkeep.py",
        old="                verify_adapter(self.home, current, self.board.beat)\n",
        new="                pass\n",
        caught_by=test("tests/postgres/test_claim_run.py", "damaged_adapter"),
    ),
    "no run starts from an adapter of another history": Mutant(
        file="service/publish/folders.py",
        old="    if (found := sha256_file(folder / MANIFEST)) != adapter.manifest_sha256:",
        new="    if (found := adapter.manifest_sha256) != found:",
        caught_by=test("tests/postgres/test_claim_run.py", "damaged_adapter"),
    ),
    "a trainer checks its parent": Mutant(
        file="trainer/check.py",
        old="        verify_manifest(folder)\n",
        new="        pass\n",
        caught_by=test("tests/unit/test_train.py", "parent_that_changed"),
    ),
    "a worse candidate is refused": Mutant(
        file="service/gate/rules.py",
        old="    if found.low > 0:\n",
        new="    if False:\n",
        caught_by=test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "an uncertain gain is not promoted": Mutant(
        file="service/gate/rules.py",
        old="    if found.high < -limit:\n",
        new="    if found.difference < -limit:\n",
        caught_by=test("tests/unit/test_judge.py", "too_little_evidence"),
    ),
    "a gain on too few files is not promoted": Mutant(
        file="service/gate/rules.py",
        old="    if found is None or files < least:",
        new="    if found is None:",
        caught_by=test("tests/unit/test_judge.py", "too_little_evidence"),
    ),
    "each look at the same files needs more certainty": Mutant(
        file="service/gate/evidence.py",
        old="        return 1 - (1 - self.gate.confidence) / (self.looks * (self.looks + 1))",
        new="        return self.gate.confidence",
        caught_by=test("tests/unit/test_judge.py", "further_look"),
    ),
    "a candidate that forgets is refused": Mutant(
        file="service/gate/rules.py",
        old="    if found.low > 0 and found.difference > limit:",
        new="    if False:",
        caught_by=test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "a loss in one language is refused": Mutant(
        file="service/gate/rules.py",
        old="if one.low > 0 and one.difference > limit}",
        new="if False}",
        caught_by=test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "weights that are not finite are refused": Mutant(
        file="service/gate/rules.py",
        old='    if names := examination["weights"]["not_finite"]:',
        new="    if names := []:",
        caught_by=test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "an adapter that measures differently is refused": Mutant(
        file="service/gate/rules.py",
        old="    if not difference <= SAME_LOSS:",
        new="    if False:",
        caught_by=test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "a leaked control token is refused": Mutant(
        file="service/gate/rules.py",
        old='    if ours["leaking"] > base["leaking"]:',
        new="    if False:",
        caught_by=test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "a judged row that was trained on is refused": Mutant(
        file="service/gate/rules.py",
        old="    if evidence.leaks:",
        new="    if False:",
        caught_by=test("tests/unit/test_judge.py", "each_rule_catches"),
    ),
    "an open candidate's rows wait for a later verdict": Mutant(
        file="db/settling.py",
        old='            plan.add_kept(outcome, role, learned="learning")',
        new='            plan.add_kept(outcome, role, learned="trained")',
        caught_by=test("tests/postgres/test_trunk.py", "keeps_its_rows"),
    ),
    "a run counts only on the trunk that it started from": Mutant(
        file="db/settling.py",
        old="    trunk.check_head(cursor, stream, run_id)\n",
        new="",
        caught_by=test("tests/postgres/test_trunk.py", "trunk_was_given_up"),
    ),
    "a refusal settles the trunk": Mutant(
        file="db/settling.py",
        old="        if with_trunk and trunk.is_start_of(cursor, lease.stream, run_id):",
        new="        if False:",
        caught_by=test("tests/postgres/test_trunk.py", "refusal_settles"),
    ),
    "a revoked row gives the trunk up": Mutant(
        file="db/revocations.py",
        old="        if trunk.revoked(cursor, stream):",
        new="        if False:",
        caught_by=test("tests/postgres/test_trunk.py", "revoked_row_of_the_trunk"),
    ),
    "a candidate without a numeric loss is refused": Mutant(
        file="service/gate/rules.py",
        old="    if missing := [name for name, loss in evidence.losses.items() if not math.isfinite(loss)]:",
        new="    if missing := []:",
        caught_by=test("tests/unit/test_judge.py", "not_a_number"),
    ),
    "a report of another run is refused": Mutant(
        file="service/gate/rules.py",
        old='    if report.get("run_id") != evidence.run_id:',
        new="    if False:",
        caught_by=test("tests/unit/test_judge.py", "every_reason"),
    ),
    "a folder appears only when it is complete": Mutant(
        file="trainer/run_dir.py",
        old='    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")\n    shutil.rmtree(temporary',
        new="    temporary = path\n    shutil.rmtree(temporary",
        caught_by=test("tests/unit/test_run_dir.py", "appears_whole"),
    ),
    "a file is replaced atomically": Mutant(
        file="trainer/run_dir.py",
        old='    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")\n    with temporary.open("w"',
        new='    temporary = path\n    with temporary.open("w"',
        caught_by=test("tests/unit/test_run_dir.py", "replaced_whole"),
    ),
    "the report is written last": Mutant(
        file="trainer/train.py",
        old="    write_outcomes(directory.rows_outcome, outcomes)\n    context",
        new="    write_json(directory.report, {})\n    write_outcomes(directory.rows_outcome, outcomes)\n    context",
        caught_by=test("tests/unit/test_train.py", "report_comes_last"),
    ),
    "a checkpoint is verified before use": Mutant(
        file="trainer/fit/checkpoint.py",
        old="    verify_manifest(path)\n    try:\n        state",
        new="    try:\n        state",
        caught_by=test("tests/unit/test_checkpoint.py", "is_skipped"),
    ),
    "a damaged checkpoint is skipped for the one before it": Mutant(
        file="trainer/fit/checkpoint.py",
        old="            on_damaged(path, str(error))\n",
        new="            on_damaged(path, str(error))\n            return None\n",
        caught_by=test("tests/unit/test_checkpoint.py", "is_skipped"),
    ),
    "a checkpoint with a damaged best step is not used": Mutant(
        file="trainer/fit/checkpoint.py",
        old="                verify_manifest(best)\n",
        new="                pass\n",
        caught_by=test("tests/unit/test_checkpoint.py", "best_step"),
    ),
    "the best weights are verified before they become the result": Mutant(
        file="trainer/fit/checkpoint.py",
        old="    verify_manifest(path)\n    return load_file",
        new="    return load_file",
        caught_by=test("tests/unit/test_checkpoint.py", "become_the_result"),
    ),
    "a trainer saves its steps when it is stopped": Mutant(
        file="trainer/fit/loop.py",
        old="        if self.progress.step > 0:\n            self._save()\n        raise",
        new="        raise",
        caught_by=test("tests/unit/test_checkpoint.py", "same_bits"),
    ),
    "content is encoded without control tokens": Mutant(
        file="trainer/data/encoder.py",
        old='    description |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}\n',
        new='    description |= {"post_processor": None, "truncation": None, "padding": None}\n',
        caught_by=test("tests/unit/test_tokenize.py"),
    ),
    "an adapter that fails its test is not served": Mutant(
        file="service/publish/serving.py",
        old="        server.check(name)\n",
        new="        pass\n",
        caught_by=test("tests/serving/test_serving.py", "answers_nan"),
    ),
    "a failed move of the served name is undone": Mutant(
        file="service/publish/serving.py",
        old="            _load_quietly(server, ALIAS, before)\n",
        new="            pass\n",
        caught_by=test("tests/serving/test_serving.py", "restores_the_alias"),
    ),
}
