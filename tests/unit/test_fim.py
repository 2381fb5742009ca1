"""Prefix, middle and suffix make up the file, the middle has the loss, and most gaps follow the syntax."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folder import encoder, make_row, program, tokenizer
from source_rows import all_rows, source_rows

from trainer.data.encoder import IGNORED
from trainer.data.tokenize import tokenize_rows
from trainer.recipe import Data
from trainer.samples.fim import BYTES_PER_TOKEN, RANDOM_SHARE, _node, build_fim
from trainer.samples.sample import Control, Document, Rejected, Text
from trainer.samples.syntax import parse

DATA = Data(builders={"fim": 1.0}, max_length=512)


def gap_of(row, *, seed: int = 1) -> Document:
    (document,) = build_fim(row, DATA, seed=seed)
    return document


def texts(document: Document) -> tuple[str, str, str]:
    """Return prefix, suffix and middle."""
    prefix, suffix, middle = (piece.text for piece in document.pieces if isinstance(piece, Text))
    return prefix, suffix, middle


@pytest.mark.parametrize("row", all_rows(), ids=lambda row: row.path)
def test_prefix_middle_and_suffix_are_the_file(row):
    for seed in range(12):
        prefix, suffix, middle = texts(gap_of(row, seed=seed))
        assert prefix + middle + suffix == row.content
        assert middle and (prefix or suffix)
        assert len(middle.encode()) <= BYTES_PER_TOKEN * DATA.max_length


def test_the_format_of_a_document_and_its_loss():
    document = gap_of(make_row(1, program(1)))
    assert [piece.role if isinstance(piece, Control) else piece.keeps for piece in document.pieces] == [
        "fim_prefix", "end", "fim_suffix", "start", "fim_middle", "all", "fim_end",
    ]  # fmt: skip
    (encoded,) = encoder().encode([document])
    prefix, suffix, middle = texts(document)
    assert tokenizer().decode(encoded.ids.tolist()) == (
        f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>{middle}<|endoftext|>"
    )
    assert tokenizer().decode(encoded.labels[encoded.labels != IGNORED].tolist()) == f"{middle}<|endoftext|>"
    assert encoded.shares == ((1, encoded.tokens),)


def test_nine_of_ten_gaps_follow_the_syntax():
    rows = [replace(row, file_id=row.file_id + 10_000 * copy) for row in source_rows() for copy in range(60)]
    documents = [gap_of(row) for row in rows]
    kinds = Counter(document.kind for document in documents)
    assert abs(kinds["fim_random"] / len(rows) - RANDOM_SHARE) < 0.04
    assert abs(kinds["fim_node"] / len(rows) - 0.45) < 0.07 and abs(kinds["fim_siblings"] / len(rows) - 0.45) < 0.07
    for row, document in zip(rows, documents, strict=True):
        prefix, _, middle = texts(document)
        start, stop = len(prefix.encode()), len((prefix + middle).encode())
        source = parse(row.language, row.content, row.path)
        if document.kind == "fim_node":
            assert (start, stop) in {(node.start_byte, node.end_byte) for node in source.nodes}
        if document.kind == "fim_siblings":
            runs = [
                (any(child.start_byte == start for child in node.named_children),
                 any(child.end_byte == stop for child in node.named_children))
                for node in source.nodes
            ]  # fmt: skip
            assert (True, True) in runs


def test_a_node_is_chosen_in_proportion_to_its_length():
    row = make_row(1, "def f(a):\n    return a\n\n\nlonger_name = compute(first, second)\n")
    source = parse(row.language, row.content)
    spans = {(n.start_byte, n.end_byte) for n in source.nodes if n.end_byte - n.start_byte > 1}
    spans.discard((0, len(row.content)))
    drawn = Counter(_node(source, random.Random(seed), 1000) for seed in range(6000))
    assert set(drawn) == spans
    total = sum(stop - start for start, stop in spans)
    for start, stop in spans:
        assert abs(drawn[start, stop] / 6000 - (stop - start) / total) < 0.03


def test_text_without_a_tree_has_random_gaps():
    prose = replace(make_row(1, "In the beginning\nwas the word.\n" * 20), language="prose")
    broken = make_row(2, "))) def (((\n" * 20)
    assert {gap_of(row, seed=seed).kind for row in (prose, broken) for seed in range(30)} == {"fim_random"}


def test_the_seed_decides():
    rows = all_rows()
    first = [gap_of(row) for row in rows]
    assert first == [gap_of(row) for row in rows]
    assert sum(a != b for a, b in zip(first, [gap_of(row, seed=2) for row in rows], strict=True)) > len(rows) // 2


@given(st.text(min_size=0, max_size=40))
def test_any_text_is_reassembled_or_rejected(content):
    try:
        prefix, suffix, middle = texts(gap_of(make_row(1, content)))
    except Rejected as rejected:
        assert (
            rejected.reason == "empty" if not content.strip() else (rejected.reason, len(content)) == ("too_short", 1)
        )
        return
    assert prefix + middle + suffix == content and middle


def test_a_long_files_context_is_cut_at_line_ends_and_the_middle_stays_whole():
    lines = [f"value_{i} = compute({i}, other={i})" for i in range(400)]
    row = make_row(5, "\n".join(lines) + "\n")
    for seed in range(20):
        rows = tokenize_rows([row], encoder(), DATA, seed=seed)
        (sample,) = rows.samples
        assert DATA.max_length - 60 < sample.tokens <= DATA.max_length, "the room is used"
        text = tokenizer().decode(sample.ids.tolist())
        _, _, middle = texts(gap_of(row, seed=seed))
        prefix, suffix = text.removeprefix("<|fim_prefix|>").partition("<|fim_middle|>")[0].split("<|fim_suffix|>")
        assert text.endswith(f"<|fim_middle|>{middle}<|endoftext|>")
        assert f"{prefix}{middle}{suffix}" in row.content
        if len(encoder().plain.encode(middle).ids) < DATA.max_length - 100:  # otherwise no whole line fits beside it
            assert not prefix or prefix.startswith("value_")
            assert not suffix or suffix.endswith("\n")


@pytest.mark.parametrize(
    "planted", ["<|fim_middle|>", "<|endoftext|>", "<|fim_suffix|>", "<|im_end|>", "<|repo_name|>"]
)
def test_a_control_token_in_the_file_stays_text(planted):
    row = make_row(1, program(1).replace("total", f"{planted}total"))
    for seed in range(5):
        (encoded,) = encoder().encode([gap_of(row, seed=seed)])
        control = [tokenizer().convert_ids_to_tokens(i) for i in encoded.ids.tolist() if i in encoder().added]
        assert control == ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>"]
        assert planted in tokenizer().decode(encoded.ids[1:-1].tolist())


@pytest.mark.parametrize("language", ["python", "cpp"])
def test_a_deep_tree_is_fast(language: str):
    row = replace(make_row(1, "f(" * 8000 + ")" * 8000 + "\n"), language=language)
    began = time.process_time()
    for seed in range(8):
        prefix, suffix, middle = texts(gap_of(row, seed=seed))
        assert prefix + middle + suffix == row.content
    assert time.process_time() - began < 12
