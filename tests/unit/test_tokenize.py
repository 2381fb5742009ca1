"""From text to ids: the template is exact, content cannot act as control tokens, and nothing is cut off."""

from __future__ import annotations

import copy
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folder import demo_rows, encoder, make_row, program, short_recipe, tokenizer

from trainer.data.encoder import IGNORED, SampleEncoder, pad_id
from trainer.data.tokenize import tokenize_rows
from trainer.errors import UnusableInput
from trainer.recipe import Data
from trainer.samples.build import needs
from trainer.samples.instruction import build_instruction
from trainer.samples.sample import Chat, Message

DATA = Data(max_length=512)
ADDED = [str(token) for token in tokenizer().added_tokens_decoder.values()]


def chat(*texts: str) -> Chat:
    roles = ("system", "user", "assistant")
    messages = [Message(role=r, text=t, supervised=r == "assistant") for r, t in zip(roles, texts, strict=True)]
    return Chat(file_id=1, kind="instruction", messages=tuple(messages))


def as_dicts(sample: Chat) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in sample.messages]


def test_ids_are_those_of_the_chat_template():
    rows = [row for row in demo_rows(12) if row.content.count("\n") > 8]
    samples = [sample for row in rows for sample in build_instruction(row, DATA, seed=1)]
    assert len(samples) > 8
    for sample, encoded in zip(samples, encoder().encode(samples), strict=True):
        text = tokenizer().apply_chat_template(as_dicts(sample), tokenize=False)
        assert tokenizer().decode(encoded.ids.tolist()) == unicodedata.normalize("NFC", text)
        whole = tokenizer().apply_chat_template(as_dicts(sample), tokenize=True, return_dict=False)
        assert encoded.ids.tolist() == whole


def test_loss_is_on_the_answer_and_the_token_that_ends_it():
    (encoded,) = encoder().encode([chat("be brief", "say hi", "hi there")])
    supervised = encoded.labels[encoded.labels != IGNORED].tolist()
    assert tokenizer().decode(supervised) == "hi there<|im_end|>"
    assert encoded.supervised == len(supervised)
    assert encoded.ids[encoded.labels != IGNORED].tolist() == supervised
    assert tokenizer().decode(encoded.ids[-2:].tolist()) == "<|im_end|>\n"
    assert encoded.labels[-1] == IGNORED


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*ADDED, "x", " ", "\n", "def f():", "<|", "|>", "im_end", "é"]), max_size=12))
def test_control_tokens_in_a_file_stay_text(pieces):
    text = "".join(pieces)
    (encoded,) = encoder().encode([chat("s", text, text)])
    plain = encoder().encode([chat("s", "", "")])[0]
    control = [i for i in encoded.ids.tolist() if i in encoder().added]
    assert control == [i for i in plain.ids.tolist() if i in encoder().added]
    supervised = encoded.labels[encoded.labels != IGNORED].tolist()
    assert tokenizer().decode(supervised[:-1]) == unicodedata.normalize("NFC", text)


def test_the_padding_token_is_not_the_one_that_ends_a_turn():
    assert pad_id(tokenizer()) == tokenizer().convert_tokens_to_ids("<|endoftext|>")
    same = copy.deepcopy(tokenizer())
    same.eos_token = "<|endoftext|>"
    with pytest.raises(UnusableInput, match="has no padding token except the one that ends a turn"):
        pad_id(same)


def test_a_template_that_changes_text_is_refused():
    trimming = copy.deepcopy(tokenizer())
    trimming.chat_template = trimming.chat_template.replace("message.content +", "message.content | trim +")
    with pytest.raises(UnusableInput, match="in order and unchanged"):
        SampleEncoder(trimming).encode([chat("s", "u", "a")])
    bare = copy.deepcopy(tokenizer())
    bare.chat_template = None
    with pytest.raises(UnusableInput, match=r"instruction needs a chat template, but .*tiny has none"):
        SampleEncoder(bare).check(needs(DATA))
    with pytest.raises(UnusableInput, match=r"needs a chat template, but .* has none"):
        SampleEncoder(bare).encode([chat("s", "u", "a")])


def test_a_long_row_is_split_and_every_line_is_in_one_sample():
    lines = [f"value_{i} = compute({i})" for i in range(300)]
    rows = tokenize_rows([make_row(3, "\n".join(lines) + "\n")], encoder(), DATA, seed=1)
    assert len(rows.samples) > 4 and not rows.rejected
    assert all(sample.tokens <= DATA.max_length and sample.file_id == 3 for sample in rows.samples)
    texts = [tokenizer().decode(sample.ids.tolist()) for sample in rows.samples]
    for line in lines:
        assert sum(f"{line}\n" in text for text in texts) == 1, line
    order = [min(lines.index(line) for line in text.split("\n") if line in lines) for text in texts]
    assert order == sorted(order)


def test_a_row_that_fits_is_one_sample():
    rows = tokenize_rows([make_row(1, program(1))], encoder(), DATA, seed=1)
    assert [sample.file_id for sample in rows.samples] == [1]
    assert rows.file_ids == [1] and rows.runs == {1: None}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (program(1) + "x = '" + "ab1" * 900 + "'\n", "too_long_line"),
        ("ab1" * 900, "too_few_lines"),
        ("a\nb\n", "too_few_lines"),
        ("\n", "empty"),
        (program(1) + "\ud800\n", "not_unicode"),
        ("It was a dark, stormy night; the rain fell (as it does).\n" * 9, "parse_failure"),
    ],
)
def test_a_row_that_gives_nothing_has_a_reason(content, reason):
    rows = tokenize_rows([make_row(1, content), make_row(2, program(2))], encoder(), DATA, seed=1)
    assert rows.rejected == {1: reason}
    assert [sample.file_id for sample in rows.samples] == [2]


def test_samples_do_not_depend_on_what_else_is_in_the_run():
    data = short_recipe().data
    rows = [make_row(i, program(i)) for i in range(70)]
    together = tokenize_rows(rows, encoder(), data, seed=1).samples
    alone = tokenize_rows(rows[66:67], encoder(), data, seed=1).samples
    assert together[66].ids.tolist() == alone[0].ids.tolist()
