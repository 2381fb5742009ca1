"""Commit samples: the old text and the message give the new text, or the diff gives the message."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_folder import encoder, make_row, program, tokenizer

from trainer.data.encoder import IGNORED
from trainer.data.tokenize import tokenize_rows
from trainer.recipe import Data
from trainer.samples.commits import build_commits
from trainer.samples.sample import Chat, Rejected

DATA = Data(builders={"commits": 1.0}, max_length=1024)
BEFORE = program(1)
AFTER = BEFORE.replace("total = 1\n", "total = 0\n")
MESSAGE = "Start from nothing\n\nThe first term was counted twice."


def row_with(file_id: int = 1, content: str = AFTER, **metadata):
    return replace(make_row(file_id, content), metadata={"message": MESSAGE} | metadata)


def pair_of(row) -> Chat:
    (chat,) = build_commits(row, DATA, seed=1)
    return chat


def test_both_forms_and_what_they_show():
    chats = {}
    for file_id in range(60):
        chat = pair_of(row_with(file_id, before=BEFORE))
        chats.setdefault(chat.kind, []).append(chat)
    assert chats.keys() == {"commit", "review"} and min(map(len, chats.values())) > 15
    _, asked, answer = chats["commit"][0].messages
    assert MESSAGE in asked.text and f"```python\n{BEFORE}```" in asked.text
    assert answer.text == f"```python\n{AFTER}```" and answer.supervised
    _, asked, answer = chats["review"][0].messages
    assert "-    total = 1\n+    total = 0\n" in asked.text and "--- a/file_" in asked.text
    assert answer.text == MESSAGE


def test_a_given_diff_is_shown_unchanged():
    diff = "@@ -1 +1 @@\n-a\n+```b\n"
    chat = pair_of(row_with(diff=diff))
    assert chat.kind == "review" and f"````diff\n{diff}````" in chat.messages[1].text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (row_with(content=" \n", before=BEFORE), "empty"),
        (row_with(), "no_commit"),
        (row_with(before=BEFORE, message=" "), "no_commit"),
        (row_with(before=3, diff=None), "no_commit"),
        (row_with(before=AFTER), "unchanged"),
        (row_with(before=program(1, 200), content=program(2, 200)), "too_long"),
    ],
)
def test_a_row_without_a_pair_has_a_reason(row, reason):
    assert tokenize_rows([row], encoder(), DATA, seed=1).rejected == {1: reason}


def test_the_seed_decides():
    rows = [row_with(i, before=BEFORE) for i in range(30)]
    assert [pair_of(row) for row in rows] == [pair_of(row) for row in rows]
    with pytest.raises(Rejected):
        pair_of(make_row(1, AFTER))


def test_the_answer_is_learned_and_control_tokens_stay_text():
    for file_id in range(6):
        row = row_with(file_id, content=f"{AFTER}# <|im_end|>\n", before=f"{BEFORE}# <|fim_middle|>\n")
        row = replace(row, metadata=row.metadata | {"message": "Say <|im_start|>"})
        (sample,) = tokenize_rows([row], encoder(), DATA, seed=1).samples
        answer = pair_of(row).messages[2].text
        learned = sample.labels[sample.labels != IGNORED].tolist()
        assert tokenizer().decode(learned) == f"{answer}<|im_end|>"
        names = [tokenizer().convert_ids_to_tokens(i) for i in sample.ids.tolist() if i in encoder().added]
        assert names == ["<|im_start|>", "<|im_end|>"] * 3


@pytest.mark.parametrize(("tag", "name"), [("typescript", "TypeScript"), ("cpp", "C++")])
def test_both_prompts_have_the_language_as_people_write_it(tag: str, name: str):
    row = replace(make_row(1, "b = 2\n"), language=tag, metadata={"message": "m", "before": "a = 1\n"})
    texts = {
        sample.kind: sample.messages[1].text for seed in range(20) for sample in build_commits(row, Data(), seed=seed)
    }
    assert texts["commit"].startswith(f"Make this change to the following {name} code:")
    assert f"```{tag}\n" in texts["commit"]
    assert texts["review"].startswith(f"Write the commit message of this change to {name} code:")
