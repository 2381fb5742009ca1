"""Processes that share packs give the result of one, whatever lies across the cut."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_folder import events, run, short_run, token_samples, tokenizer, weights
from toys import toy, toy_recipe
from transformers import Qwen2Config

from trainer.__main__ import main
from trainer.check import check_world
from trainer.data.batches import collate
from trainer.errors import RecipeError, UnusableInput
from trainer.evaluate.held_out import HeldOut
from trainer.fit.passes import Passes
from trainer.model.sequence import SharedBy, check_sequence, repeats
from trainer.model.toy import SHAPE, random_model
from trainer.ranks import rank_environment, ranks_for
from trainer.recipe import Recipe, step_samples
from trainer.run_dir import RunDirectory
from trainer.stop import StopRequest

ROOT = Path(__file__).parents[2]
SHARED = {
    "training__gradient_accumulation_steps": 2,
    "training__learning_rate": 0.001,
    "training__num_epochs": 1,
    "training__checkpoint_steps": 2,
    "training__keep_checkpoints": 9,
    "data__max_length": 640,
    "training__optimizer": "adamw",
    "distributed__processes": 2,
    "distributed__sequence": 2,
}
WAYS = {
    "ddp": ("one_key", "none", "ddp"),
    "fsdp2": ("one_key", "none", "fsdp2"),
    "nf4": ("llama", "nf4", "fsdp2"),
}
"""What two processes train, one after another: base, quantization and strategy. `llama` has two key heads."""
ZERO = {name: ("one_key", "none", name) for name in ("zero2", "zero3")}


@functools.cache
def one_key() -> Path:
    """Return a toy with four heads that share one key head."""
    folder = Path(tempfile.mkdtemp(prefix="toy-")) / "one-key"
    random_model(Qwen2Config(**SHAPE | {"num_key_value_heads": 1}, vocab_size=len(tokenizer()))).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def shared_recipe(base: str = "one_key", quantization: str = "none", strategy: str = "ddp", **more: Any) -> Recipe:
    folder = one_key() if base == "one_key" else toy(base)
    values = SHARED | {"distributed__strategy": strategy} | more
    return toy_recipe("qwen2", quantization, folder=folder, **values)


RANK = """
import sys
from trainer.imports import import_trainer
import_trainer()
from trainer.__main__ import main
sys.exit(max([main(["run", root]) for root in sys.argv[1:]]))
"""


def train_together(folder: Path, runs: list[RunDirectory], processes: int = 2) -> None:
    """Train one run after another with so many processes."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *(str(directory.root) for directory in runs)], cwd=ROOT,
            stdin=subprocess.DEVNULL, env=os.environ | rank_environment(rank, processes, folder / "rendezvous"),
        )
        for rank in range(processes)
    ]  # fmt: skip
    try:
        assert [rank.wait(100) for rank in ranks] == [0] * processes
    finally:
        for rank in ranks:
            rank.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict[str, RunDirectory]:
    folder = tmp_path_factory.mktemp("shared")
    runs = {name: short_run(folder / name, shared_recipe(*how)) for name, how in WAYS.items()}
    train_together(folder, list(runs.values()))
    return runs


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, RunDirectory]:
    folder = tmp_path_factory.mktemp("alone")
    runs = {name: short_run(folder / name, shared_recipe(*WAYS[name])) for name in ("ddp", "nf4")}
    assert [run(directory) for directory in runs.values()] == [0, 0]
    return runs | {"fsdp2": runs["ddp"]}


def compare(theirs: RunDirectory, ours: RunDirectory, *, skipped: int = 0) -> None:
    """Compare the losses after so many steps."""
    for name, keys in (("step", ("loss", "grad_norm")), ("evaluation", ("loss", "token_accuracy"))):
        for key in keys:
            found = [
                [event[key] for event in events(directory, name) if event["step"] > skipped or not skipped]
                for directory in (theirs, ours)
            ]
            assert len(found[0]) > 1 and found[0] == pytest.approx(found[1], rel=1e-5), (name, key)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_that_share_packs_give_the_result_of_one(shared, alone, way):
    theirs, ours = shared[way], alone[way]
    (event,) = events(theirs, "strategy")
    assert (event["processes"], event["sequence"]) == (2, 2)
    compare(theirs, ours)
    assert theirs.rows_outcome.read_bytes() == ours.rows_outcome.read_bytes()
    for name, tensor in weights(ours.adapter).items():
        torch.testing.assert_close(weights(theirs.adapter)[name], tensor, rtol=0, atol=2e-4)


@pytest.mark.long
def test_zero_shares_packs_too(alone, tmp_path):
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: pip install 'codelupe[deepspeed]'")
    runs = {name: short_run(tmp_path / name, shared_recipe(*how)) for name, how in ZERO.items()}
    train_together(tmp_path, list(runs.values()))
    for theirs in runs.values():
        compare(theirs, alone["ddp"])


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_four_processes_share_two_packs(tmp_path, strategy):
    recipe = shared_recipe(strategy=strategy, distributed__processes=4, training__gradient_accumulation_steps=1)
    assert step_samples(recipe) == 4
    both, single = short_run(tmp_path / "four", recipe), short_run(tmp_path / "one", recipe)
    train_together(tmp_path, [both], processes=4)
    assert run(single) == 0
    compare(both, single)


@pytest.mark.long
@pytest.mark.parametrize("more", [{"training__checkpointing": "full"}, {"training__compile": True}])
def test_recomputed_and_compiled_layers_share_packs_too(alone, tmp_path, more):
    both = short_run(tmp_path / "both", shared_recipe(**more))
    train_together(tmp_path, [both])
    compare(both, alone["ddp"])


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_one_process_goes_on_from_the_checkpoint_of_two(shared, alone, tmp_path, way):
    directory = RunDirectory(shutil.copytree(shared[way].root, tmp_path / "run"))
    for later in directory.checkpoints.glob("step-00000[3-9]"):
        shutil.rmtree(later)
    for path in (directory.report, directory.events):
        path.unlink()
    shutil.rmtree(directory.adapter)
    assert run(directory) == 0
    assert [event["step"] for event in events(directory, "step")] == [3, 4, 5]
    compare(directory, alone[way], skipped=2)


SHORT = """
import os, sys
import torch
from trainer.imports import import_trainer
import_trainer()
from trainer.model import step
forward = step.LossModel.forward
def short_of_memory(self, batch, **options):
    if os.environ["RANK"] == "1" and self.training:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return forward(self, batch, **options)
step.LossModel.forward = short_of_memory
from trainer.__main__ import main
sys.exit(main(["run", sys.argv[1]]))
"""
"""Trains a run whose second process has no memory."""


@pytest.mark.long
def test_one_process_out_of_memory_ends_the_run_at_once(tmp_path):
    """The other waits in the middle of a pass. It must not wait for the first to try again."""
    directory = short_run(tmp_path / "run", shared_recipe())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SHORT, str(directory.root)], cwd=ROOT, stdin=subprocess.DEVNULL,
            env=os.environ | rank_environment(rank, 2, tmp_path / "rendezvous"),
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert ranks[1].wait(60) == 3
        assert ranks[0].wait(60) != 0, "it has lost the other"
    finally:
        for rank in ranks:
            rank.kill()
    assert directory.suspects.exists() and not events(directory, "step")


# --- the cut --------------------------------------------------------------------------------------------------


def test_the_shares_of_a_pack_are_the_pack():
    whole = collate([replace(sample, labels=sample.ids) for sample in token_samples(5)])
    assert whole.tokens % 4 == 2, "the last share has to be filled"
    shares = [whole.share(place, 4) for place in range(4)]
    assert {share.ids.shape for share in shares} == {(1, -(-whole.tokens // 4))}
    for name in ("ids", "positions"):
        joined = torch.cat([getattr(share, name) for share in shares], dim=1)
        torch.testing.assert_close(joined[:, : whole.tokens], getattr(whole, name))
    torch.testing.assert_close(torch.cat([share.predicting + share.start for share in shares]), whole.predicting)
    torch.testing.assert_close(torch.cat([share.labels for share in shares]), whole.labels)
    filler = -whole.tokens % 4
    assert {share.lengths for share in shares} == {(*whole.lengths, filler)}
    assert shares[0].offsets.tolist() == [*whole.offsets.tolist(), whole.tokens + filler]
    cut = shares[0].ids.shape[1]
    assert not {cut, 2 * cut, 3 * cut} & set(whole.offsets.tolist()), "each cut is inside of a document"
    for share, after in itertools.pairwise(shares):
        assert share.predicting[-1] == cut - 1 and share.labels[-1] == after.ids[0, 0]
    values = torch.rand(whole.supervised)
    parts = values.split([share.supervised for share in shares])
    sums = sum(share.sum_by_sample(part) for share, part in zip(shares, parts, strict=True))
    torch.testing.assert_close(sums[:5], whole.sum_by_sample(values))
    assert sums[5] == 0


def test_processes_that_share_packs_get_the_same_ones():
    recipe, samples = shared_recipe(distributed__processes=4), token_samples(8)
    model = torch.nn.Linear(1, 1)
    model.shared = SharedBy(size=2)
    training, measuring = [], []
    for rank in range(4):
        accelerator: Any = SimpleNamespace(process_index=rank, num_processes=4)
        context: Any = SimpleNamespace(
            recipe=recipe, accelerator=accelerator, windows=SimpleNamespace(samples=samples),
            together=SimpleNamespace(model=model),
        )  # fmt: skip
        training.append(Passes(context)._packs(range(8)))
        measuring.append(HeldOut(accelerator, model, samples, budget=900, stop=StopRequest()).packs)
    for found in (training, measuring):
        assert found[0] == found[1] and found[2] == found[3]
        members = [index for packs in found[::2] for pack in packs for index in pack]
        assert sorted(members) == list(range(8))


def test_a_share_keeps_its_weights_and_may_have_no_loss():
    samples = [replace(sample, weight=float(place)) for place, sample in enumerate(token_samples(3))]
    whole = collate(samples)
    assert whole.weights is not None
    torch.testing.assert_close(torch.cat([whole.share(place, 2).weights for place in (0, 1)]), whole.weights)
    nothing = [collate([]).share(place, 3) for place in range(3)]
    assert [(share.ids.shape[1], share.supervised, share.lengths) for share in nothing] == [(1, 0, (1, 2))] * 3


@pytest.mark.parametrize(("keys", "size", "times"), [(8, 2, 1), (8, 8, 1), (2, 4, 2), (1, 4, 4), (4, 6, 3)])
def test_key_heads_are_repeated_as_little_as_possible(keys, size, times):
    assert repeats(keys, size) == times and keys * times % size == 0


# --- what cannot be -------------------------------------------------------------------------------------------


def test_processes_and_heads_that_cannot_share_are_refused():
    with pytest.raises(RecipeError, match=r"distributed.sequence: 2 does not divide distributed.processes, 3"):
        shared_recipe(distributed__processes=3)
    with pytest.raises(RecipeError, match=r"distributed.sequence: 2 does not divide distributed.processes, 1"):
        shared_recipe(distributed__processes=1)
    three = shared_recipe(distributed__processes=3, distributed__sequence=3)
    with pytest.raises(UnusableInput, match=r"sequence: 3 does not divide the 4 attention heads.* Use one of 1, 2, 4"):
        check_sequence(three)
    check_sequence(shared_recipe())
    mixture = toy_recipe("mixtral", **SHARED)
    with pytest.raises(UnusableInput, match=r"2 cannot train .*experts needs whole packs. Use sequence: 1"):
        check_sequence(mixture)


def test_a_base_whose_heads_cannot_be_shared_is_refused_before_it_is_loaded(tmp_path, capsys):
    recipe = shared_recipe(distributed__processes=3, distributed__sequence=3)
    directory = short_run(tmp_path / "run", recipe)
    assert run(directory) == 2
    (event,) = events(directory, "failed")
    assert "does not divide the 4 attention heads" in event["message"]
    assert {event["stage"] for event in events(directory, "stage")} == {"check"}
    assert main(["prepare", str(directory.recipe)]) == 2
    assert "does not divide the 4 attention heads" in capsys.readouterr().err


def test_as_many_processes_start_as_can_share_the_packs():
    recipe = shared_recipe(distributed__processes=8, training__gradient_accumulation_steps=3)
    assert step_samples(recipe) == 2 * 3 * 4
    assert [ranks_for(recipe, cards) for cards in (1, 2, 3, 5, 8, 16)] == [1, 2, 2, 4, 8, 8]
    for world in (1, 2, 4, 6, 8):
        check_world(recipe, world)
    with pytest.raises(
        UnusableInput, match=r"3 processes cannot share equally, 2 of which share each pack .*1 or 2 or"
    ):
        check_world(recipe, 3)
    auto = shared_recipe(distributed__processes="auto", distributed__launcher="torchrun")
    assert step_samples(auto) == 4 and ranks_for(auto, 8) == 8
    with pytest.raises(RecipeError, match=r"distributed.sequence: 2 processes cannot share packs.*Use torchrun"):
        shared_recipe(distributed__processes="auto")
