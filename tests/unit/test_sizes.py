"""On a CPU, packs and documents have sizes that come again, and the same losses."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from fitting import backward, loss_model
from run_folder import short_recipe, token_samples
from test_routing import mixture_model
from toys import toy_samples

from trainer.data.batches import collate
from trainer.data.encoder import TokenSample
from trainer.model import attention_each, loss, step
from trainer.model.batch import Batch
from trainer.model.sizes import rounded
from trainer.model.step import LossModel

SIXTEEN_BITS = short_recipe(lora__dropout=0.0, base__quantization="none", base__compute_dtype="bfloat16")


def test_sizes_are_few_and_little_larger():
    found = [rounded(size) for size in range(1, 5000)]
    assert found == sorted(found)
    assert all(size <= big and big % 32 == 0 and rounded(big) == big for size, big in enumerate(found, 1))
    assert all(big <= size * 17 / 16 for size, big in enumerate(found, 1) if size > 512)
    assert len({big for big in found if 1024 < big <= 2048}) == 16


def hidden_sizes(model: LossModel, packs: list[Batch]) -> set[int]:
    """Return the tokens that the layers get of each pack."""
    seen = set()
    layers = model.model.get_base_model().model.layers
    layers[0].register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].shape[1]))
    for pack in packs:
        model(pack)
    return seen


def test_layers_get_packs_of_sizes_that_come_again():
    packs = [collate(pair) for pair in itertools.combinations(token_samples(6), 2)]
    own = {pack.tokens for pack in packs}
    assert hidden_sizes(loss_model(SIXTEEN_BITS), packs) == {rounded(size) for size in own} != own
    assert hidden_sizes(loss_model(), packs) == own  # float32: no kernel depends on the size


def test_routers_see_only_tokens(monkeypatch):
    monkeypatch.setattr(step, "compiled_by_size", lambda _: True)
    pack = collate(toy_samples("mixtral", 2))
    assert rounded(pack.tokens) != pack.tokens
    assert hidden_sizes(mixture_model(1.0), [pack]) == {pack.tokens}


def test_filling_changes_neither_loss_nor_gradient(monkeypatch):
    model, batch = loss_model(SIXTEEN_BITS).train(), collate(token_samples(3))
    assert rounded(batch.tokens) != batch.tokens
    found, ours = backward(model, batch)
    monkeypatch.setattr(step, "compiled_by_size", lambda _: False)
    for module in (attention_each, loss):
        monkeypatch.setattr(module, "sizes", lambda lengths, _: list(lengths))
    expected, theirs = backward(model, batch)
    assert found == pytest.approx(expected, rel=1e-3)
    assert (ours - theirs).norm() < 2e-2 * theirs.norm()


def test_sums_by_sample_are_of_samples_alone():
    model, samples = loss_model(SIXTEEN_BITS).eval(), token_samples(3)
    with torch.no_grad():
        losses, _ = model(collate(samples), by_sample=True)
        alone = [model(collate([sample]))[0].item() for sample in samples]
    assert losses.tolist() == pytest.approx(alone, rel=5e-3)


def shortened(sample: TokenSample, less: int) -> TokenSample:
    kept = sample.tokens - less
    return replace(sample, ids=sample.ids[:kept], labels=sample.labels[:kept])


def test_no_kernel_is_compiled_for_another_length_of_the_same_size(capfd):
    model = loss_model(SIXTEEN_BITS).train()
    sample = next(sample for sample in token_samples(6) if rounded(sample.tokens) == rounded(sample.tokens - 3))
    compiled = []
    for pack in ([sample], [shortened(sample, 3)]):
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
            model(collate(pack))[0].backward()
        compiled.append(capfd.readouterr().out.count("cache_miss"))
    if compiled[0] == 0:
        pytest.skip("this processor has no products of bfloat16 that are compiled")
    assert compiled[1] == 0
