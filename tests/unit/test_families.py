"""Control tokens are found by the vocabulary and used in the family's order. A missing one is an error."""

from __future__ import annotations

import copy
import shutil

import pytest
from run_folder import events, make_row, program, run, short_recipe, short_run, tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainer import __main__
from trainer.data.encoder import SampleEncoder
from trainer.data.tokenize import tokenize_rows
from trainer.errors import UnusableInput
from trainer.model.base import TINY_FOLDER, folder_revision
from trainer.model.families import FAMILIES, family_of
from trainer.recipe import Data
from trainer.recipe_file import dump_recipe
from trainer.samples.build import needs
from trainer.samples.fim import build_fim
from trainer.samples.sample import Text


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """Return a byte tokenizer with the family's control tokens."""
    alphabet = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokens = [token for token in FAMILIES[family].tokens.values() if token] if family in FAMILIES else ["<stop>"]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in dict.fromkeys(tokens)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokens[-1], name_or_path=f"a/{family}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_known_by_its_vocabulary(family):
    assert SampleEncoder(tokenizer_of(family)).family is FAMILIES[family]


def test_the_tiny_base_belongs_to_the_qwen_family():
    assert SampleEncoder(tokenizer()).family is FAMILIES["qwen"]


def test_any_other_tokenizer_ends_texts_with_its_own_token():
    assert family_of({"a", "<stop>"}, end_token="<stop>").tokens == {"end": "<stop>"}
    data = Data(builders={"chunks": 1.0})
    (sample,) = tokenize_rows([make_row(1, "a\n")], SampleEncoder(tokenizer_of("none")), data, seed=1).samples
    assert tokenizer_of("none").convert_ids_to_tokens(sample.ids.tolist())[-1] == "<stop>"


@pytest.mark.parametrize("family", [name for name in FAMILIES if "fim_prefix" in FAMILIES[name].tokens])
def test_each_family_has_its_own_gap_format(family):
    made, tokens = tokenizer_of(family), FAMILIES[family].tokens
    (document,) = build_fim(make_row(1, program(1)), Data(), seed=1)
    prefix, suffix, middle = (piece.text for piece in document.pieces if isinstance(piece, Text))
    (encoded,) = SampleEncoder(made).encode([document])
    shown = {"fim_prefix": prefix, "fim_suffix": suffix, "fim_middle": middle}
    expected = "".join(f"{tokens[role] or ''}{shown[role]}" for role in FAMILIES[family].fim_order) + tokens["fim_end"]
    assert made.decode(encoded.ids.tolist()) == expected


def test_codestral_shows_the_suffix_first_and_marks_no_middle():
    (document,) = build_fim(make_row(1, program(1)), Data(), seed=1)
    prefix, suffix, middle = (piece.text for piece in document.pieces if isinstance(piece, Text))
    made = tokenizer_of("codestral")
    (encoded,) = SampleEncoder(made).encode([document])
    assert made.decode(encoded.ids.tolist()) == f"[SUFFIX]{suffix}[PREFIX]{prefix}{middle}</s>"


def test_a_builder_without_its_tokens_is_named():
    encoder = SampleEncoder(tokenizer_of("llama3"))
    with pytest.raises(UnusableInput) as error:
        encoder.check(needs(Data(builders={"chunks": 1.0, "fim": 1.0})))
    for word in ("fim needs", "fim_prefix, fim_suffix, fim_middle, fim_end", "a/llama3", "Remove the builder"):
        assert word in str(error.value)
    encoder.check(needs(Data(builders={"chunks": 1.0})))


def test_a_text_begins_with_the_tokenizers_first_token():
    class Beginning:
        def __init__(self, inner):
            self.inner, self.bos_token_id = inner, inner.convert_tokens_to_ids("<|im_start|>")

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def encode(self, text, **_):
            return [self.bos_token_id, *self.inner.encode(text)]

    data = Data(builders={"chunks": 1.0}, max_length=32)
    rows = tokenize_rows([make_row(1, program(1))], SampleEncoder(Beginning(copy.deepcopy(tokenizer()))), data, seed=1)
    first = [tokenizer().convert_ids_to_tokens(sample.ids.tolist())[0] for sample in rows.samples]
    assert first[0] == "<|im_start|>" and "<|im_start|>" not in first[1:]


def test_a_base_without_the_tokens_is_refused_before_a_row_is_claimed(tmp_path, capsys):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("<|fim_prefix|>", "<|another|>"))
    for builder, code in (("instruction", 0), ("chunks", 0), ("fim", 2)):
        recipe = short_recipe(data__builders={builder: 1.0}, base__model=str(folder), base__revision=None)
        path = tmp_path / "r.yaml"
        path.write_text(dump_recipe(recipe))
        assert __main__.main(["prepare", str(path)]) == code, builder
    said = capsys.readouterr().err
    assert "data.builders: fim needs tokens for fim_prefix" in said and str(folder) in said
    recipe = short_recipe(data__builders={"fim": 1.0}, base__model=str(folder), base__revision=folder_revision(folder))
    directory = short_run(tmp_path / "run", recipe)
    assert run(directory) == 2
    (failed,) = events(directory, "failed")
    assert "fim needs tokens for fim_prefix" in failed["message"]
