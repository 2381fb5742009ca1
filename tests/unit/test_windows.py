"""Every token is learned once, cuts are at line ends, and the end token appears once."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folder import demo_rows, encoder, make_row, tokenizer
from source_rows import all_rows

from trainer.data.encoder import IGNORED, TokenSample
from trainer.data.tokenize import tokenize_rows
from trainer.data.windows import NEAR
from trainer.errors import RecipeError
from trainer.recipe import Data
from trainer.recipe_file import parse_recipe
from trainer.samples.chunks import build_chunks


def windows(content: str, *, tokens: int, overlap: int) -> list[TokenSample]:
    data = Data(builders={"chunks": 1.0}, max_length=tokens, window_overlap=overlap)
    return tokenize_rows([replace(make_row(1, content), language="text")], encoder(), data, seed=1).samples


def whole(content: str) -> list[int]:
    """Return the document's ids in one piece."""
    (encoded,) = encoder().encode(build_chunks(make_row(1, content), Data(), seed=1))
    return encoded.ids.tolist()


def learned(samples: list[TokenSample]) -> list[int]:
    """Return the labels of all windows in order."""
    return [label for sample in samples for label in sample.labels.tolist() if label != IGNORED]


def test_a_document_is_its_text_and_the_end():
    (sample,) = windows("a = 1\nb = 2\n", tokens=64, overlap=0)
    assert tokenizer().decode(sample.ids.tolist()) == "a = 1\nb = 2\n<|endoftext|>"
    assert learned([sample]) == sample.ids.tolist()[1:], "nothing predicts the first token"
    assert sample.kind == "chunks" and sample.supervised == sample.tokens - 1


@pytest.mark.parametrize("row", [row for row in all_rows(40) if len(row.content) > 800], ids=lambda row: row.path)
def test_windows_of_real_files(row):
    tokens, overlap, end = 128, 32, tokenizer().convert_tokens_to_ids("<|endoftext|>")
    samples = windows(row.content, tokens=tokens, overlap=overlap)
    assert len(samples) > 1 and all(sample.tokens <= tokens for sample in samples)
    assert learned(samples) == whole(row.content)[1:], "each token once, in order"
    assert [sample.ids.tolist().count(end) for sample in samples] == [0] * (len(samples) - 1) + [1]
    assert samples[-1].ids[-1] == end
    for before, after in itertools.pairwise(samples):
        repeated = [label == IGNORED for label in after.labels.tolist()].index(False)
        assert 1 <= repeated <= overlap
        assert after.ids[:repeated].tolist() == before.ids[before.tokens - repeated :].tolist()
    if max(map(len, row.content.split("\n"))) < 40:
        for sample in samples[:-1]:
            assert tokenizer().decode(sample.ids.tolist()).endswith("\n")


def test_windows_without_an_overlap_lie_end_to_end():
    row = max(demo_rows(40), key=lambda row: len(row.content))
    samples = windows(row.content, tokens=64, overlap=0)
    assert [token for sample in samples for token in sample.ids.tolist()] == whole(row.content)
    assert all(sample.supervised == sample.tokens - 1 for sample in samples)
    for sample in samples[:-2]:
        near = tokenizer().decode(sample.ids[-int(64 * NEAR) :].tolist())
        assert near.endswith("\n") or (sample.tokens == 64 and "\n" not in near)
    assert any(sample.tokens < 64 for sample in samples[:-2])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.sampled_from(["x", "é", "\n", "\n\n", "    ", "def f():", "<|endoftext|>", "部品"]), min_size=1, max_size=400
    ),
    st.integers(32, 80),
    st.integers(0, 16),
)
def test_any_text_in_any_windows(pieces, tokens, overlap):
    content = "".join(pieces)
    if not content.strip():
        return
    samples = windows(content, tokens=tokens, overlap=overlap)
    assert all(sample.supervised > 0 and sample.tokens <= tokens for sample in samples)
    ids = whole(content)
    if overlap:
        assert learned(samples) == ids[1:]
    else:
        assert [token for sample in samples for token in sample.ids.tolist()] == ids


def test_a_line_longer_than_a_window_is_cut_between_tokens():
    samples = windows("x = '" + "ab1" * 300 + "'\n", tokens=64, overlap=8)
    assert len(samples) > 10
    assert learned(samples) == whole("x = '" + "ab1" * 300 + "'\n")[1:]


def test_a_distant_line_end_is_not_used_for_a_cut():
    samples = windows("# a title\n" + "x = " + "1 + " * 400 + "1\n", tokens=128, overlap=32)
    assert all(sample.tokens >= 96 for sample in samples[:-1])


def test_a_window_may_be_shorter_than_the_longest_sample():
    data = Data(builders={"chunks": 1.0}, max_length=512, window_tokens=64)
    rows = tokenize_rows(demo_rows(3), encoder(), data, seed=1)
    assert max(sample.tokens for sample in rows.samples) <= 64
    assert {file_id for sample in rows.samples for file_id, _ in sample.shares} == set(rows.file_ids)


@pytest.mark.parametrize(
    ("settings_", "word"),
    [
        (
            {"max_length": 512, "window_tokens": 1024},
            r"data\.window_tokens: 1024 is greater than data\.max_length, 512",
        ),
        ({"max_length": 512, "window_overlap": 300}, r"data\.window_overlap: 300 is more than half of a window, 256"),
        ({"window_tokens": 100, "window_overlap": 51}, "more than half of a window, 50"),
    ],
)
def test_impossible_windows(settings_, word):
    with pytest.raises(RecipeError, match=word):
        parse_recipe({"name": "a", "stream": "b", "data": settings_}, where="r.yaml")
