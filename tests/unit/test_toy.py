"""Toy models have the architecture, the control tokens and the training behaviour of real bases."""

from __future__ import annotations

import json

import pytest
import torch
from fitting import backward, gradients, reference
from run_folder import make_run, run, short_rows
from toys import toy, toy_recipe, toy_samples
from transformers import AutoConfig

from trainer import __main__
from trainer.adapters.merge import merge
from trainer.data.batches import collate
from trainer.data.encoder import pad_id
from trainer.errors import UnusableInput
from trainer.model.load import load_base, load_tokenizer
from trainer.model.lora import add_adapter
from trainer.model.step import LossModel
from trainer.model.toy import TOYS, architecture_of, make_toy
from trainer.recipe import Base
from trainer.run_dir import sha256_file

CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "llama": "LlamaForCausalLM",
}
ENDS = {"qwen2": "<|endoftext|>", "qwen3": "<|endoftext|>", "mixtral": "</s>", "llama": "<|end_of_text|>"}
BEGINNINGS = {"qwen2": [], "qwen3": [], "mixtral": ["<s>"], "llama": ["<|begin_of_text|>"]}


@pytest.mark.parametrize("architecture", TOYS)
def test_a_toy_is_of_the_true_class_and_small(architecture):
    config = AutoConfig.from_pretrained(str(toy(architecture)))
    assert config.architectures == [CLASSES[architecture]]
    assert (toy(architecture) / "model.safetensors").stat().st_size < 2_000_000
    assert architecture_of(str(toy(architecture))) == architecture


@pytest.mark.parametrize("architecture", TOYS)
def test_a_text_has_the_families_first_and_last_token(architecture):
    tokenizer = load_tokenizer(Base(model=str(toy(architecture))))
    tokens = tokenizer.convert_ids_to_tokens(toy_samples(architecture, 1)[0].ids.tolist())
    assert tokens[-1] == ENDS[architecture]
    assert tokens[: len(BEGINNINGS[architecture])] == BEGINNINGS[architecture]
    assert pad_id(tokenizer) != tokenizer.eos_token_id


def test_a_toy_is_always_the_same(tmp_path):
    make_toy("mixtral", tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert sha256_file(tmp_path / "again" / name) == sha256_file(toy("mixtral") / name)


def test_mixtrals_template_is_an_instruction_between_marks():
    tokenizer = load_tokenizer(Base(model=str(toy("mixtral"))))
    turns = [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<s> [INST] U [/INST] A</s>"
    assert not load_tokenizer(Base(model=str(toy("llama")))).chat_template


@pytest.mark.parametrize("architecture", TOYS)
def test_packed_gradients_equal_those_of_single_samples(architecture):
    recipe = toy_recipe(architecture)
    adapted = add_adapter(load_base(recipe.base, torch.device("cpu")), recipe.lora, parent=None, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    model, samples = LossModel(adapted), toy_samples(architecture, 4)
    loss, packed = backward(model, collate(samples))
    expected = reference(model, samples)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(packed, gradients(model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("architecture", TOYS)
def test_a_toy_learns_through_a_run_directory(architecture, quantization, tmp_path):
    recipe = toy_recipe(architecture, quantization)
    directory = make_run(tmp_path / "run", recipe, short_rows(16), short_rows(4, start=101))
    assert run(directory) == 0
    report = json.loads(directory.report.read_text())
    losses = {name: report["evaluation"][name]["loss"] for name in ("anchor", "candidate")}
    assert losses["candidate"] < losses["anchor"] - 0.05
    if quantization == "none":
        merged = merge(recipe, directory.adapter, tmp_path / "merged")
        assert merged.modules == 2 * len(recipe.lora.targets) and merged.logits.same


def test_the_architecture_of_the_recipes_bases_is_known_without_a_network():
    assert {name: architecture_of(name) for name in (
        "Qwen/Qwen2.5-Coder-14B-Instruct", "Kwaipilot/KAT-Dev", "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "meta-llama/Meta-Llama-3-8B", "tiny-qwen2",
    )} == {
        "Qwen/Qwen2.5-Coder-14B-Instruct": "qwen2", "Kwaipilot/KAT-Dev": "qwen3",
        "mistralai/Mixtral-8x7B-Instruct-v0.1": "mixtral", "meta-llama/Meta-Llama-3-8B": "llama", "tiny-qwen2": "qwen2",
    }  # fmt: skip


def test_the_command_writes_a_toy_and_refuses_what_is_wrong(tmp_path, capsys):
    assert __main__.main(["toy", "llama", str(tmp_path / "toy")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["architecture"] == "llama"
    assert __main__.main(["toy", "llama", str(tmp_path / "toy")]) == 2
    assert __main__.main(["toy", "gpt2", str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    assert "exists already" in said and "There are qwen2, qwen3, mixtral, llama" in said
    with pytest.raises(UnusableInput):
        architecture_of(str(tmp_path))
