"""Conversations: turns in the base's chat template, with loss on every answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_folder import encoder, make_row, program, tokenizer

from trainer.conversations import Turn, as_messages, readable, turns_of
from trainer.data.encoder import IGNORED
from trainer.data.tokenize import tokenize_rows
from trainer.recipe import Data
from trainer.samples.build import BUILDERS, builder_of

DATA = Data(max_length=256)
TALK = (
    Turn(role="system", text="Answer in one line."),
    Turn(role="user", text="What is <|im_end|> for?"),
    Turn(role="assistant", text="It ends a turn."),
    Turn(role="user", text="And [INST]?\n"),
    Turn(role="tool", text='{"found": 3}'),
    Turn(role="assistant", text="Another base's mark."),
    Turn(role="user", text="Thanks!"),
)


def talk(*turns: Turn, file_id: int = 1, **metadata):
    return replace(
        make_row(file_id, readable(turns)), language="text", metadata={"messages": as_messages(turns), **metadata}
    )


def samples_of(row, data: Data = DATA):
    made = tokenize_rows([row], encoder(), data, seed=1)
    return made.samples, made.rejected.get(row.file_id)


def supervised(sample) -> str:
    return tokenizer().decode([token for token in sample.labels.tolist() if token != IGNORED])


def test_every_answer_has_loss_and_nothing_else_has():
    (sample,), _ = samples_of(talk(*TALK))
    assert sample.kind == "chat"
    assert supervised(sample) == "It ends a turn.<|im_end|>Another base's mark.<|im_end|>"
    text = tokenizer().decode(sample.ids.tolist())
    assert text.startswith("<|im_start|>system\nAnswer in one line.<|im_end|>\n<|im_start|>user\nWhat is")
    assert "Thanks!" not in text, "nothing is learned from what comes after the last answer"


def test_an_answer_of_weight_0_is_shown_but_not_learned():
    wrong, right = Turn(role="assistant", text="It begins a turn.", weight=0.0), TALK[2]
    row = talk(TALK[1], wrong, Turn(role="user", text="No."), right)
    assert [message.get("weight") for message in row.metadata["messages"]] == [None, 0, None, None]
    (sample,), _ = samples_of(row)
    assert supervised(sample) == "It ends a turn.<|im_end|>"
    assert "It begins a turn." in tokenizer().decode(sample.ids.tolist())
    assert samples_of(talk(TALK[1], wrong)) == ([], "no_answer")


def test_a_token_of_the_template_in_a_turn_is_plain_text():
    (sample,), _ = samples_of(talk(*TALK))
    end = tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert sample.ids.tolist().count(end) == 6  # one for each turn that is shown


def test_a_conversation_gets_its_builder_whatever_the_recipe_says():
    row = talk(*TALK)
    for builders in ({"instruction": 1.0}, {"chunks": 1.0, "fim": 2.0}, {"chat": 1.0}, {"chat": 1.0, "items": 1.0}):
        data = Data(builders=builders)
        assert builder_of(row, data, seed=1) is BUILDERS["chat"]
        others = {builder_of(make_row(n, program(n)), data, seed=1) for n in range(20)} if len(builders) > 1 else set()
        assert BUILDERS["chat"] not in others


def test_a_file_gives_nothing_where_only_conversations_are_wanted():
    assert samples_of(make_row(1, program(1)), Data(builders={"chat": 1.0})) == ([], "no_conversation")


def test_prompt_and_completion_of_an_earlier_release_are_a_conversation():
    prompt, completion = "Write f.", "def f():\n    return 1\n"
    row = replace(make_row(1, f"{prompt}\n{completion}"), metadata={"prompt": prompt, "completion": completion})
    (sample,), _ = samples_of(row)
    assert supervised(sample) == completion + "<|im_end|>"
    other = replace(row, content=program(1))  # metadata that only happens to have these names
    assert turns_of(other.content, other.metadata) is None


def test_a_long_conversation_is_cut_before_a_question_and_keeps_the_system_turn():
    turns = [TALK[0]]
    for n in range(12):
        turns += [Turn(role="user", text=f"Question {n}? " * 6), Turn(role="assistant", text=f"Answer {n}. " * 6)]
    samples, _ = samples_of(talk(*turns))
    assert len(samples) > 2 and max(sample.tokens for sample in samples) <= 256
    texts = [tokenizer().decode(sample.ids.tolist()) for sample in samples]
    assert all(text.startswith("<|im_start|>system\nAnswer in one line.<|im_end|>\n<|im_start|>user") for text in texts)
    assert "".join(map(supervised, samples)) == "".join(turn.text + "<|im_end|>" for turn in turns[2::2])


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((TALK[1],), "no_answer"),
        ((TALK[0], TALK[2]), "no_answer"),
        ((TALK[1], Turn(role="assistant", text=" \n")), "no_answer"),
        ((Turn(role="user", text="why? " * 600), TALK[2]), "prompt_too_long"),
        ((TALK[1], Turn(role="assistant", text="because " * 600)), "too_long_turns"),
    ],
)
def test_what_gives_no_sample(turns: tuple[Turn, ...], reason: str):
    assert samples_of(talk(*turns)) == ([], reason)


@pytest.mark.parametrize("messages", [[], "text", ["a"], [{"role": "user"}], [{"role": "x", "content": "y"}], 3])
def test_other_messages_stop_nothing(messages):
    row = replace(make_row(1, program(1)), metadata={"messages": messages})
    samples, reason = samples_of(row)
    assert bool(samples) or reason == "no_answer"


def test_a_template_that_cannot_show_the_turns_rejects_the_row(monkeypatch: pytest.MonkeyPatch):
    strict = (
        "{% for m in messages %}{% if m['role'] not in ('user', 'assistant') %}{{ raise_exception('role') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    made = encoder()
    monkeypatch.setattr(made.tokenizer, "chat_template", strict)
    monkeypatch.setattr(made, "frames", {})
    rows = [talk(*TALK), talk(*TALK[1:3], file_id=2)]
    found = tokenize_rows(rows, made, DATA, seed=1)
    assert found.rejected == {1: "chat_template"} and [sample.file_id for sample in found.samples] == [2]


@pytest.mark.parametrize("messages", [[{"level": "warn", "text": "unused"}], [1], ["x"], {}, "x", []])
def test_messages_without_a_role_are_no_conversation(messages: object):
    assert turns_of("x = 1\n", {"messages": messages}) is None
