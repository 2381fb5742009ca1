"""Gaps of held-out files, and how near an answer is to what was there."""

from __future__ import annotations

import random
import re

import pytest
from run_folder import demo_rows, short_recipe, short_rows, tokenizer

from trainer.errors import UnusableInput
from trainer.evaluate.engines import Generation, Request
from trainer.evaluate.infilling import edit_similarity, judge_gaps, make_gaps
from trainer.evaluate.results import open_results

DATA = short_recipe().data


def slow_distance(left: str, right: str) -> int:
    row = [*range(len(right) + 1)]
    for i, a in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def test_the_edit_similarity_is_levenshteins():
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert (edit_similarity("", ""), edit_similarity("a", ""), edit_similarity("", "ab")) == (1.0, 0.0, 0.0)
    draw = random.Random(1)
    for _ in range(200):
        left, right = ("".join(draw.choices("abc", k=draw.randrange(9))) for _ in range(2))
        longest = max(len(left), len(right), 1)
        assert edit_similarity(left, right) == pytest.approx(1 - slow_distance(left, right) / longest)


def test_a_gap_has_the_files_text_around_it():
    rows = [*short_rows(5, start=101), *demo_rows(3)]
    gaps, longer = make_gaps(rows, tokenizer(), DATA, seed=1, max_tokens=60)
    assert gaps and longer > 0, "longer middles are left out"
    by_id = {str(row.file_id): row for row in rows}
    whole = 0
    for gap in gaps:
        text = re.sub(r"<\|fim_\w+\|>", "", tokenizer().decode(list(gap.question.ids)))
        content = by_id[gap.task_id.split(":")[0]].content
        assert gap.expected in content and gap.language == "python" and gap.kind.startswith("fim_")
        assert tokenizer().decode([gap.question.ids[-1]]) == "<|fim_middle|>"
        assert [tokenizer().decode([end]) for end in gap.question.ends] == ["<|endoftext|>"]
        whole += len(text) + len(gap.expected) == len(content)
    assert whole > 0
    assert make_gaps(rows, tokenizer(), DATA, seed=1, max_tokens=60) == (gaps, longer)
    with pytest.raises(UnusableInput, match="Raise --max-tokens"):
        make_gaps(rows[:1], tokenizer(), DATA, seed=1, max_tokens=1)


def test_whitespace_around_an_answer_does_not_count(tmp_path):
    gaps = {gap.task_id: gap for gap in make_gaps(short_rows(6), tokenizer(), DATA, seed=1, max_tokens=200)[0]}
    asked = [Request(task_id=name, sample=0, question=gap.question) for name, gap in gaps.items()]
    with open_results(tmp_path, {}) as results:
        for number, request in enumerate(asked):
            expected = gaps[request.task_id].expected
            text = f"\n{expected}  " if number else f"{expected}?"
            results.append(
                results.generations,
                [Generation(task_id=request.task_id, sample=0, text=text, tokens=1, seconds=0, finish="stop")],
            )
        judge_gaps(gaps, asked, results)
        judge_gaps(gaps, asked, results)
        verdicts = results.read_outcomes()
    assert len(results.outcomes.read_text().splitlines()) == len(asked) > 2, "judged once"
    assert [verdicts[(r.task_id, 0)].passed for r in asked] == [False] + [True] * (len(asked) - 1)
    assert 0.5 < (verdicts[(asked[0].task_id, 0)].similarity or 0) < 1
