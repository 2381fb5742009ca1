"""The adapter on its base."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from fitting import checked, loss_model
from run_folder import short_recipe, token_samples, tokenizer

from trainer.adapters.export import export_adapter
from trainer.data.batches import collate
from trainer.errors import UnusableInput
from trainer.model.base import load_skeleton, prepare_base
from trainer.model.load import load_base
from trainer.model.lora import adapter_weights, check_parent
from trainer.model.step import check_head
from trainer.recipe import Lora
from trainer.train import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    model = loss_model()
    export_adapter(folder, model.model, tokenizer(), short_recipe(), facts={})
    return folder, model


def test_a_new_adapter_is_fp32_and_changes_nothing_yet():
    loaded = load_model(checked(short_recipe()))
    adapted = loaded.model.model
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 4 and all(p.dtype == torch.float32 for p in trained)
    batch = collate(token_samples(2))
    loaded.model.eval()
    with torch.no_grad():
        with_adapter, _ = loaded.model(batch)
        with adapted.disable_adapter():
            without, _ = loaded.model(batch)
    assert with_adapter.item() == without.item()


def test_the_seed_decides_where_an_adapter_begins():
    first, again, other = (
        adapter_weights(load_model(checked(short_recipe(), seed=seed)).model.model) for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_targets_must_occur_in_the_architecture():
    recipe = short_recipe(lora__targets=["q_proj", "w1"])
    with pytest.raises(UnusableInput, match=r"w1 occurs nowhere in Qwen2ForCausalLM.*down_proj.*q_proj"):
        prepare_base(recipe)
    with pytest.raises(UnusableInput, match="w1 occurs nowhere"):
        load_model(checked(recipe))


def test_a_parent_continues_where_it_ended(exported):
    folder, model = exported
    parent = adapter_weights(model.model)
    recipe = short_recipe(lora__dropout=0.25)
    continued = load_model(checked(recipe, parent=folder)).model.model
    weights = adapter_weights(continued)
    assert weights.keys() == parent.keys() and all(torch.equal(weights[name], parent[name]) for name in parent)
    assert all(p.requires_grad for name, p in continued.named_parameters() if "lora_" in name)
    dropouts = {m.p for m in continued.modules() if isinstance(m, torch.nn.Dropout)}
    assert dropouts == {0.25}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"rank": 8}, "rank 4 instead of 8"),
        ({"alpha": 4}, "alpha 8 instead of 4"),
        ({"targets": ("q_proj",)}, "targets"),
    ],
)
def test_a_parent_of_another_shape_is_refused(exported, shape, message):
    lora = {"rank": 4, "alpha": 8} | shape
    with pytest.raises(UnusableInput, match=message):
        check_parent(exported[0], Lora(**lora))


def test_a_parent_with_rslora_or_without_config_is_refused(exported, tmp_path):
    folder = tmp_path / "parent"
    shutil.copytree(exported[0], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    with pytest.raises(UnusableInput, match="rsLoRA True instead of False"):
        check_parent(folder, Lora(rank=4, alpha=8))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UnusableInput, match=r"no readable adapter_config\.json"):
        check_parent(folder, Lora(rank=4, alpha=8))


def test_a_family_that_scales_its_logits_is_refused():
    adapted = loss_model().model
    check_head(adapted)
    causal = adapted.get_base_model()
    forward = causal.forward

    def scaled(**options):
        output = forward(**options)
        output.logits = output.logits * 0.5
        return output

    causal.forward = scaled
    with pytest.raises(UnusableInput, match="changes its logits"):
        check_head(adapted)


def test_dropout_acts_in_training_only():
    recipe = short_recipe(lora__dropout=0.5)
    model = loss_model(recipe)
    batch = collate(token_samples(2))
    losses = {}
    for mode in (True, False):
        model.train(mode)
        losses[mode] = {model(batch)[0].item() for _ in range(3)}
    assert len(losses[True]) == 3 and len(losses[False]) == 1


def test_a_skeleton_has_no_weights():
    base = short_recipe().base
    skeleton = load_skeleton(base.model, base.revision)
    assert all(p.device.type == "meta" for p in skeleton.parameters())
    assert sum(p.numel() for p in skeleton.parameters()) == sum(
        p.numel() for p in load_base(short_recipe(base__quantization="none").base, CPU).parameters()
    )
