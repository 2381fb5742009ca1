"""Conversations as documents, for bases without a chat template: data.turns plain, and the facts before them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_folder import encoder, make_row, tokenizer
from toys import toy

from trainer.conversations import Turn, as_messages, readable
from trainer.data.encoder import IGNORED, SampleEncoder
from trainer.data.tokenize import tokenize_rows
from trainer.errors import UnusableInput
from trainer.model.load import load_tokenizer
from trainer.recipe import Base, Data
from trainer.samples.build import needs

PLAIN = Data(builders={"chat": 1.0}, turns="plain", max_length=128)
PROMPT, ANSWER = 'def add(a, b):\n    """Add <|im_end|>."""\n', "    return a + b\n"
FACTS = {"functionName": "add", "algorithmType": "direct", "timeComplexity": "O(1)", "spaceComplexity": "O(1)"}
BLOCK = "# .comments metadata\n# @function add\n# @algorithm direct\n# @time O(1)\n# @space O(1)\n\n"
TALK = (
    Turn(role="system", text="Be short."),
    Turn(role="user", text="One?"),
    Turn(role="assistant", text="1\n"),
    Turn(role="user", text="Two?"),
    Turn(role="assistant", text="2"),
    Turn(role="user", text="Thanks!"),
)


def talk(*turns: Turn, language: str = "python", **metadata):
    row = make_row(1, readable(turns))
    return replace(row, language=language, metadata={"messages": as_messages(turns), **metadata})


def task(**metadata):
    return talk(Turn(role="user", text=PROMPT), Turn(role="assistant", text=ANSWER), **metadata)


def made(row, data: Data = PLAIN, of: SampleEncoder | None = None):
    found = tokenize_rows([row], of or encoder(), data, seed=1)
    return found.samples, found.rejected.get(row.file_id)


def supervised(sample) -> str:
    return tokenizer().decode([token for token in sample.labels.tolist() if token != IGNORED])


def test_a_question_and_its_answer_are_joined_as_they_are():
    (sample,), _ = made(task())
    assert tokenizer().decode(sample.ids.tolist()) == PROMPT + ANSWER + "<|endoftext|>"
    assert supervised(sample) == ANSWER + "<|endoftext|>" and sample.kind == "plain"


def test_several_turns_are_each_followed_by_a_blank_line():
    (sample,), _ = made(talk(*TALK))
    assert tokenizer().decode(sample.ids.tolist()) == "Be short.\n\nOne?\n\n1\n\nTwo?\n\n2<|endoftext|>"
    assert supervised(sample) == "1\n\n2<|endoftext|>"
    (sample,), _ = made(talk(TALK[0], *TALK[1:3]))
    assert tokenizer().decode(sample.ids.tolist()) == "Be short.\n\nOne?1\n<|endoftext|>"


@pytest.mark.parametrize("language", ["python", "text"])
def test_the_facts_come_first_and_have_no_loss(language):
    shown = replace(PLAIN, metadata=True)
    (sample,), _ = made(replace(task(**FACTS), language=language), shown)
    assert tokenizer().decode(sample.ids.tolist()) == BLOCK + PROMPT + ANSWER + "<|endoftext|>"
    assert supervised(sample) == ANSWER + "<|endoftext|>"
    (without,), _ = made(task(**FACTS))
    (bare,), _ = made(task(other="x"), shown)
    assert without.ids.tolist() == bare.ids.tolist()


def test_the_facts_can_be_left_out_at_the_end():
    (sample,), _ = made(task(**FACTS), replace(PLAIN, metadata=True, metadata_off_last_fraction=0.5))
    assert sample.bare is not None
    assert tokenizer().decode(sample.bare.ids.tolist()) == PROMPT + ANSWER + "<|endoftext|>"


def test_a_chat_shows_the_facts_before_its_first_question():
    data = replace(PLAIN, turns="chat", metadata=True)
    (sample,), _ = made(talk(*TALK, **FACTS), data)
    text = tokenizer().decode(sample.ids.tolist())
    assert f"<|im_start|>user\n{BLOCK}One?<|im_end|>" in text and text.count(".comments") == 1
    assert supervised(sample) == "1\n<|im_end|>2<|im_end|>"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (talk(Turn(role="user", text="why\n" * 200), Turn(role="assistant", text="so")), "prompt_too_long"),
        (talk(Turn(role="user", text="Why?"), Turn(role="assistant", text="so\n" * 200)), "too_long_turns"),
        (talk(Turn(role="assistant", text="Nobody asked.")), "no_answer"),
    ],
)
def test_what_cannot_be_cut_is_rejected_as_a_chat_is(row, reason):
    assert made(row) == ([], reason)
    assert made(row, replace(PLAIN, turns="chat")) == ([], reason)


def test_a_long_conversation_is_cut_and_its_facts_stay_with_the_first_part():
    turns = [
        Turn(role=role, text=f"{text} {number}\n" * 9)
        for number in range(6)
        for role, text in (("user", "ask"), ("assistant", "tell"))
    ]
    samples, _ = made(talk(*turns, **FACTS), replace(PLAIN, metadata=True))
    texts = [tokenizer().decode(sample.ids.tolist()) for sample in samples]
    assert len(samples) > 1 and all(sample.tokens <= PLAIN.max_length for sample in samples)
    assert texts[0].startswith(BLOCK) and all(".comments" not in text for text in texts[1:])
    assert all(text.endswith("<|endoftext|>") for text in texts)


def test_a_base_without_a_template_needs_plain_turns():
    of = SampleEncoder(load_tokenizer(Base(model=str(toy("llama")))))
    of.check(needs(PLAIN))
    with pytest.raises(UnusableInput, match=r"data\.turns: plain"):
        of.check(needs(replace(PLAIN, turns="chat")))


def test_the_begin_token_of_llama_is_where_its_tokenizer_puts_it():
    llama = load_tokenizer(Base(model=str(toy("llama"))))
    (sample,), _ = made(task(**FACTS), replace(PLAIN, metadata=True, max_length=512), SampleEncoder(llama))
    ids = sample.ids.tolist()
    assert ids[0] == llama.bos_token_id and ids.count(llama.bos_token_id) == 1
    assert ids[-1] == llama.convert_tokens_to_ids("<|end_of_text|>") == sample.labels[-1]
    alone = llama(BLOCK)["input_ids"]
    assert ids[: len(alone)] == alone, "as the tokenizer encodes a text"
    assert llama.decode(ids, skip_special_tokens=True) == BLOCK + PROMPT + ANSWER
