"""The load balancing loss of a mixture: its value, its gradient, and where it must not appear."""

from __future__ import annotations

import pytest
import torch
from fitting import backward, gradients
from toys import toy_recipe, toy_samples
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from trainer.data.batches import collate
from trainer.model.attention import documents
from trainer.model.batch import Batch
from trainer.model.checkpointing import checkpoint_layers
from trainer.model.load import load_base
from trainer.model.lora import add_adapter
from trainer.model.mixture import Mixture, routers
from trainer.model.routing import load_balancing_loss, routing_of
from trainer.model.step import LossModel
from trainer.recipe import Moe

MIXTURE = Mixture(experts=8, top_k=2)


def mixture_model(weight: float, *, policy: str = "none", quantization: str = "none") -> LossModel:
    """Return a toy mixture with an adapter that changes it, and its loss."""
    recipe = toy_recipe("mixtral", quantization)
    adapted = add_adapter(load_base(recipe.base, torch.device("cpu")), recipe.lora, parent=None, seed=0)
    checkpoint_layers(adapted, policy)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return LossModel(adapted, routing=routing_of(adapted.get_base_model(), Moe(auxiliary_loss_weight=weight)))


def router_logits(model: LossModel, batch: Batch) -> tuple[torch.Tensor, ...]:
    causal = model.model.get_base_model()
    outputs = causal.model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        documents=documents(batch, "each"),
        use_cache=False,
        output_router_logits=True,
    )
    found: tuple[torch.Tensor, ...] = outputs.router_logits
    return found


def test_the_loss_of_balanced_and_of_collapsed_routers():
    tokens = torch.arange(64)
    balanced = torch.zeros(64, 8)
    balanced[tokens, tokens % 8] = balanced[tokens, (tokens + 1) % 8] = 20.0
    assert load_balancing_loss(balanced, MIXTURE).item() == pytest.approx(2.0, abs=1e-4)
    collapsed = torch.zeros(64, 8)
    collapsed[:, 3], collapsed[:, 5] = 60.0, 30.0
    assert load_balancing_loss(collapsed, MIXTURE).item() == pytest.approx(8.0, abs=1e-4)


def test_the_loss_by_hand():
    """Two tokens, three experts, one for each token: both go to expert 0."""
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2]])
    by_hand = 3 * (1.0 * 0.55 + 0.0 * 0.25 + 0.0 * 0.2)
    found = load_balancing_loss(probabilities.log(), Mixture(experts=3, top_k=1))
    assert found.item() == pytest.approx(by_hand)


def test_the_loss_of_a_layer_is_that_of_transformers():
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)) * 3
    expected = load_balancing_loss_func((logits,), 8, 2)
    assert load_balancing_loss(logits, MIXTURE).item() == pytest.approx(expected.item(), rel=1e-6)


def test_layers_that_collapse_to_different_experts_are_not_balanced():
    batch = collate(toy_samples("mixtral", 1))
    logits = [torch.zeros(batch.tokens, 8) for _ in range(4)]
    for layer, values in enumerate(logits):
        values[:, 2 * layer], values[:, 2 * layer + 1] = 60.0, 30.0
    routing = mixture_model(1.0).routing
    assert routing.observe(logits, batch).item() / batch.supervised == pytest.approx(8.0, abs=1e-3)
    assert load_balancing_loss_func(tuple(logits), 8, 2).item() == pytest.approx(2.0, abs=1e-3)


def test_routers_return_raw_logits():
    """A double softmax would pull every share to 1 / experts, and the loss to top_k."""
    model, batch = mixture_model(1.0), collate(toy_samples("mixtral", 2))
    inputs: list[torch.Tensor] = []
    names = routers(model.model.get_base_model())
    hooks = [module.register_forward_hook(lambda _m, args, _o: inputs.append(args[0])) for module in names.values()]
    logits = router_logits(model, batch)
    for hook in hooks:
        hook.remove()
    assert len(logits) == len(names) == 2 and logits[0].shape == (batch.tokens, 8)
    for values, hidden, module in zip(logits, inputs, names.values(), strict=True):
        torch.testing.assert_close(values, hidden.reshape(-1, 64) @ module.weight.T)
        assert not torch.allclose(values.sum(dim=-1), torch.ones(batch.tokens))


def test_the_gradient_is_that_of_both_losses_over_all_packs():
    weight, samples = 50.0, toy_samples("mixtral", 4)
    packs = [collate(samples[:1]), collate(samples[1:])]
    plain, model = mixture_model(0.0), mixture_model(weight)
    expected = sum(backward(plain, pack)[1] for pack in packs)
    auxiliary = torch.zeros(())
    for pack in packs:
        layers = [load_balancing_loss(values, MIXTURE) for values in router_logits(plain, pack)]
        auxiliary = auxiliary + pack.supervised * torch.stack(layers).mean()
    (weight * auxiliary).backward()
    balancing = gradients(plain)
    found = sum(backward(model, pack)[1] for pack in packs)
    assert balancing.norm() > 0.1 * expected.norm()
    torch.testing.assert_close(found, expected + balancing, rtol=1e-3, atol=1e-3)
    supervised = sum(pack.supervised for pack in packs)
    routed = model.routing.end(supervised, lambda tensor: tensor)
    assert routed.auxiliary == pytest.approx(auxiliary.item() / supervised, rel=1e-5)
    assert routed.tokens == sum(pack.tokens for pack in packs)
    assert [sum(layer) for layer in routed.counts] == [2 * routed.tokens] * 2


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_checkpointing_does_not_change_the_gradient(policy):
    batch = collate(toy_samples("mixtral", 3))
    _, expected = backward(mixture_model(50.0), batch)
    model = mixture_model(50.0, policy=policy)
    _, found = backward(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model.routing.end(batch.supervised, lambda tensor: tensor).tokens == batch.tokens  # not counted twice


def test_the_reported_loss_is_the_language_models():
    batch = collate(toy_samples("mixtral", 3))
    plain, model = mixture_model(0.0), mixture_model(50.0)
    expected = plain(batch)[0].item()
    assert model(batch)[0].item() == expected
    assert model.eval()(batch)[0].item() == pytest.approx(expected, rel=1e-6)
    assert model(batch, by_sample=True)[0].sum().item() == pytest.approx(expected, rel=1e-6)


def test_evaluations_and_the_empty_pack_of_a_rank_count_nothing():
    model, batch = mixture_model(50.0), collate(toy_samples("mixtral", 1))
    model.eval()(batch)
    model.train()(collate([]))[0].backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    routed = model.routing.end(1, lambda tensor: tensor)
    assert routed.tokens == 0 and routed.auxiliary == 0.0 and not any(map(any, routed.counts))


def test_nothing_is_followed_without_experts_or_if_nothing_is_wanted():
    dense = load_base(toy_recipe("llama").base, torch.device("cpu"))
    assert routing_of(dense, Moe()) is None
    mixture = load_base(toy_recipe("mixtral").base, torch.device("cpu"))
    assert routing_of(mixture, Moe(auxiliary_loss_weight=0.0, log_experts=False)) is None
    assert routing_of(mixture, Moe(auxiliary_loss_weight=0.0)) is not None
