"""The model card of a published adapter: what the Hub reads of it, what it counts, and texts that could break it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from run_folder import embedded, make_row

from db.rows import SourceRow
from service.cycle.claim_files import row_line
from service.publish.card import LOADING, merged_card
from service.publish.folders import copy_candidate, tidy_run
from service.publish.markdown import block, plain, table
from service.settings.home import Home
from trainer.recipe import pinned
from trainer.recipe_file import dump_recipe
from trainer.records import Row, RowOutcome, SampleEvaluation, json_line, read_rows, write_evaluation, write_outcomes
from trainer.run_dir import RunDirectory, verify_manifest, write_manifest

NASTY = "evil | `x` <b>\n---\nlicense: mit\n# [a](b) \x1b[31m"
INTERVAL = {"difference": -0.1, "low": -0.15, "high": -0.05, "files": 7, "level": 0.95}
REPORT: dict[str, Any] = {
    "evaluation": {"candidate": {"loss": 1.0}},
    "train": {"tokens_published": 770},
    "steps": {"best": 9, "total": 10},
    "verdict": {
        "decision": "promote",
        "rules": [{"rule": "gain", "outcome": "pass", "text": f"better | {NASTY}", "numbers": {}}],
        "intervals": {"new": INTERVAL},
    },
}


def sample(file_id: int, language: str, better: float) -> SampleEvaluation:
    loss = {"anchor": 30.0, "current": 20.0, "candidate": 20.0 - better}
    return SampleEvaluation(
        file_ids=(file_id,), fresh=True, repository="r", path="p", language=language, kind="instruction", tokens=10,
        loss=loss, correct=dict.fromkeys(loss, 5),
    )  # fmt: skip


def rows_of(first: int) -> list[Row]:
    made = [
        (first, "python", "MIT"), (first + 1, "python", "MIT"), (first + 2, "python", None), (first + 3, NASTY, NASTY),
    ]  # fmt: skip
    return [
        replace(make_row(number, f"x = {number}"), language=language, license=licence)
        for number, language, licence in made
    ]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.prepare()
    return home


def make(home: Home, number: int, *, parent: int | None = None, trunk: tuple[int, ...] = ()) -> RunDirectory:
    """A finished run of four trained rows and one unused one, with 100 tokens a row."""
    run = home.run(number)
    run.adapter.mkdir(parents=True)
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    write_manifest(run.adapter)
    recipe = pinned(embedded(), model="Qwen/Qwen2.5-Coder-14B-Instruct", revision="a" * 40)
    run.recipe.write_text(dump_recipe(recipe))
    rows = rows_of(10 * number)
    unused = make_row(10 * number + 9, "unused")
    run.rows.write_text("".join(json_line(asdict(row)) for row in [*rows, unused]))
    run.held_out.write_text("")
    outcomes = [RowOutcome(file_id=row.file_id, outcome="trained", samples=1, tokens=100) for row in rows]
    outcomes.append(RowOutcome(file_id=unused.file_id, outcome="unused"))
    write_outcomes(run.rows_outcome, [*outcomes, RowOutcome(file_id=1, outcome="replayed", tokens=7)])
    write_evaluation(run.evaluation, [sample(1, "python", 1.0), sample(2, "python", 2.0), sample(3, NASTY, 1.0)])
    base = {"model": recipe.base.model, "revision": recipe.base.revision}
    write_manifest(run.root, run_id=number, stream="s", seed=1, parent_version=parent, base=base, trunk=list(trunk))
    return run


def test_the_hub_reads_the_front_matter_whatever_the_names_are(home: Home):
    folder = copy_candidate(home, make(home, 3), 3, REPORT).folder
    verify_manifest(folder)
    assert "README.md" in json.loads((folder / "MANIFEST.json").read_text())["files"]
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-Coder-14B-Instruct" and card.data.library_name == "peft"
    assert card.data.license is None, "a name in the source table must not give the adapter a licence"
    assert {"lora", "python"} <= set(card.data.tags) and card.data.language == ["code"]
    told = card.text
    assert "| python | MIT | 2 | 200 |" in told and "| python | unknown | 1 | 100 |" in told
    assert "| all |  | 4 | 400 |" in told and "trained again: 1 (7 tokens)" in told
    assert "| rank | 16 |" in told and "learning_rate: 0.002" in told and "num_epochs" not in told
    assert "-0.1333 (-0.2768 to +0.0101)" in told, "the difference to the version before, over three files"
    assert "| gain | pass | better" in told and "-0.1000 (-0.1500 to -0.0500), 95 % interval, 7 files" in told
    assert f"at revision {'a' * 40}" in told and LOADING in told


def test_a_text_from_the_source_stays_in_its_cell(home: Home):
    told = (copy_candidate(home, make(home, 3), 3, REPORT).folder / "README.md").read_text()
    assert "\x1b" not in told and "<b>" not in told
    assert told.count("\n---\n") == 1, "only the end of the front matter"
    for line in (line for line in told.splitlines() if "evil" in line and line.startswith("|")):
        assert line.replace("\\|", "").count("|") in (4, 5, 8), line


def test_rows_of_the_trunk_and_of_earlier_versions_are_counted(home: Home):
    copy_candidate(home, make(home, 3), 3, REPORT)
    tidy_run(make(home, 4, parent=3), keep_adapter=True)  # its rows are compressed now
    told = (copy_candidate(home, make(home, 5, parent=3, trunk=(4,)), 5, REPORT).folder / "README.md").read_text()
    own, _, in_all = told.partition("all earlier versions that it continues")
    assert "| python | MIT | 4 | 400 |" in own and "| python | MIT | 6 | 600 |" in in_all
    assert "| parent version | 3 |" in told and "that it continues | 4 |" in told


def test_a_parent_without_counts_is_said(home: Home):
    folder = copy_candidate(home, make(home, 3), 3, REPORT).folder
    lineage = json.loads((folder / "lineage.json").read_text())
    del lineage["trained_in_all"]  # as an earlier version of the program wrote it
    (folder / "lineage.json").write_text(json.dumps(lineage))
    told = (copy_candidate(home, make(home, 4, parent=3), 4, REPORT).folder / "README.md").read_text()
    assert "the parent has no counts" in told


def test_a_recipe_of_an_earlier_version_does_not_stop_a_publication(home: Home):
    run = make(home, 3)
    run.recipe.write_text("name: x\nstream: s\ntraining: {activation_checkpointing: full}\ngone: [1]\n")
    told = (copy_candidate(home, run, 3, {"evaluation": None}).folder / "README.md").read_text()
    assert "activation_checkpointing: full" in told and "No rule was noted" in told


def test_a_folder_as_base_is_not_given_to_the_hub(home: Home):
    run = make(home, 3)
    write_manifest(run.root, run_id=3, stream="s", seed=1, parent_version=None, base={"model": "/data/own model"})
    card = ModelCard.load(copy_candidate(home, run, 3, REPORT).folder / "README.md")
    assert card.data.base_model is None and "/data/own model at revision unknown" in card.text


def test_the_card_of_a_merged_model(home: Home):
    told = (copy_candidate(home, make(home, 3), 3, REPORT).folder / "README.md").read_text()
    card = ModelCard(merged_card(told))
    assert card.data.library_name == "transformers" and card.data.base_model_relation == "finetune"
    assert "lora" not in card.data.tags and "PeftModel" not in card.text and "| python | MIT | 2 | 200 |" in card.text
    assert "llama-cli" in merged_card(told, form="gguf") and "AutoModel" not in merged_card(told, form="gguf")
    assert "merged" in merged_card("no card of ours")


def test_markdown():
    assert plain("a|b\n*c*\udc80 [d](e)") == "a\\|b \\*c\\* \\[d\\](e)"
    assert len(plain("x" * 1000)) == 301
    assert table(["a"], [[None]]).splitlines() == ["| a |", "| --- |", "|  |"]
    assert block("a ```` b", "text").startswith("`````text\n")


def test_a_claimed_row_has_the_licence_of_the_source(tmp_path: Path):
    row = SourceRow(
        file_id=1, repository="r", path="p", language="python", content="x", sha256="ab", quality_score=90.0,
        held_out=False, attempts=0, license="MIT",
    )  # fmt: skip
    line = row_line(row, "ab")
    before = {name: value for name, value in json.loads(line).items() if name != "license"}
    (tmp_path / "rows.jsonl").write_text(line + json_line(before))
    assert [one.license for one in read_rows(tmp_path / "rows.jsonl")] == ["MIT", None]
