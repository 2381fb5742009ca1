"""The metadata block before the prompt is shown, has no loss, and is left out where the recipe says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_folder import encoder, make_row, program, tokenizer

from trainer.data.batches import Windows
from trainer.data.encoder import IGNORED
from trainer.data.tokenize import tokenize_rows
from trainer.errors import RecipeError
from trainer.fact_names import MAX_CHARACTERS
from trainer.recipe import Data
from trainer.recipe_file import parse_recipe
from trainer.samples.facts import fact_block
from trainer.samples.instruction import build_instruction

KNOWN = {"function": "two_sum", "algorithm": ["hash map", "one pass"], "time_complexity": "O(n)", "space": "O(n)"}
BLOCK = "# @function two_sum\n# @algorithm hash map, one pass\n# @time O(n)\n# @space O(n)\n"
ON = Data(metadata=True, max_length=512)


def row_with(metadata, *, language: str = "python", file_id: int = 1):
    return replace(make_row(file_id, program(file_id)), metadata=metadata, language=language)


@pytest.mark.parametrize(
    ("language", "comment"), [("python", "#"), ("rust", "//"), ("tsx", "//"), ("sql", "--"), ("clojure", ";")]
)
def test_the_block_is_a_comment_of_the_language(language, comment):
    assert fact_block(row_with(KNOWN, language=language), ON) == BLOCK.replace("#", comment)


@pytest.mark.parametrize(
    "metadata", [{}, {"unknown": "x"}, {"time": None}, {"time": {"a": 1}}, {"time": True}, {"time": " \n "}]
)
def test_unknown_facts_are_left_out(metadata):
    assert fact_block(row_with(metadata), ON) == ""


def test_a_fact_is_one_line_of_bounded_length():
    block = fact_block(row_with({"algorithm": "a\nimport os\n" + "x" * 999, "function": "\ud800"}), ON)
    assert block.startswith("# @function ?\n# @algorithm a import os xxx")
    assert block.count("\n") == 2 and len(block) < MAX_CHARACTERS + 40


def test_the_block_precedes_the_prompt_and_has_no_loss():
    rows = tokenize_rows([row_with(KNOWN)], encoder(), ON, seed=1)
    plain = tokenize_rows([row_with(KNOWN)], encoder(), Data(max_length=512), seed=1)
    with_facts, without = (tokenizer().decode(made.samples[0].ids.tolist()) for made in (rows, plain))
    (sample,) = build_instruction(row_with({}), ON, seed=1)
    prompt = sample.messages[1].text
    assert with_facts == without.replace(prompt, f"{BLOCK}\n{prompt}")
    assert [label for label in rows.samples[0].labels.tolist() if label != IGNORED] == [
        label for label in plain.samples[0].labels.tolist() if label != IGNORED
    ]


def test_the_block_precedes_a_document():
    data = replace(ON, builders={"chunks": 1.0})
    (sample,) = tokenize_rows([row_with(KNOWN)], encoder(), data, seed=1).samples
    assert tokenizer().decode(sample.ids.tolist()) == f"{BLOCK}{program(1)}<|endoftext|>"
    learned = sample.labels[sample.labels != IGNORED].tolist()
    assert tokenizer().decode(learned) == f"{program(1)}<|endoftext|>"


def test_a_control_token_among_the_facts_stays_text():
    (sample,) = tokenize_rows([row_with({"function": "<|im_end|>"})], encoder(), ON, seed=1).samples
    (plain,) = tokenize_rows([row_with({})], encoder(), ON, seed=1).samples
    assert [i for i in sample.ids.tolist() if i in encoder().added] == [
        i for i in plain.ids.tolist() if i in encoder().added
    ]


def test_only_the_first_sample_of_a_long_file_has_the_facts():
    row = replace(make_row(1, program(1, 120)), metadata=KNOWN)
    texts = [tokenizer().decode(s.ids.tolist()) for s in tokenize_rows([row], encoder(), ON, seed=1).samples]
    assert len(texts) > 2 and [BLOCK in text for text in texts] == [True] + [False] * (len(texts) - 1)


@pytest.mark.parametrize("builder", ["instruction", "chunks"])
def test_the_last_part_of_the_training_leaves_them_out(builder):
    data = replace(ON, builders={builder: 1.0}, metadata_off_last_fraction=0.25)
    rows = [row_with(KNOWN if i % 2 else {}, file_id=i) for i in range(8)]
    samples = tokenize_rows(rows, encoder(), data, seed=1).samples
    bare = tokenize_rows(rows, encoder(), Data(builders={builder: 1.0}, max_length=512), seed=1).samples
    windows = Windows(samples, size=2, num_epochs=2, seed=1, bare_fraction=data.metadata_off_last_fraction)
    assert windows.num_samples == 8 and len(windows) == 8
    expected = {s.file_id: s.ids.tolist() for s in samples}, {s.file_id: s.ids.tolist() for s in bare}
    seen = []
    for step in range(8):
        for member in windows[step].members:
            sample = windows.samples[member]
            seen.append(sample.file_id)
            assert sample.ids.tolist() == expected[step >= 6][sample.file_id]
        assert windows[step].tokens == sum(windows.samples[member].tokens for member in windows[step].members)
    assert sorted(seen) == sorted(2 * list(range(8)))


def test_leaving_out_metadata_without_metadata_is_an_error():
    with pytest.raises(RecipeError, match="nothing to leave out"):
        parse_recipe({"name": "a", "stream": "b", "data": {"metadata_off_last_fraction": 0.1}}, where="r.yaml")
