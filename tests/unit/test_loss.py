"""The loss of a pack is the sum of its samples' losses, with or without chunks. Neighbours do not change it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fitting import backward, gradients, loss_model, reference
from run_folder import token_samples

from trainer.data.batches import collate
from trainer.model import loss
from trainer.model.loss import position_losses, supervised_loss


@pytest.mark.parametrize("chunk", [7, 64, 100_000])
def test_a_pack_gives_the_loss_and_gradient_of_each_sample_alone(chunk, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk * 4096)
    model = loss_model()
    samples = token_samples(3)
    found, ours = backward(model, collate(samples))
    expected = reference(model, samples)
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(ours, gradients(model), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [3, 1000])
def test_loss_gradient_and_count_are_those_of_torch(chunk, smoothing, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk * 50)
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(20, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (20,), generator=generator)
    found, correct = supervised_loss(hidden, head, targets, label_smoothing=smoothing)
    (found * 3).backward()
    ours, hidden.grad = hidden.grad, None
    logits = head(hidden)
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    (expected * 3).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, hidden.grad, rtol=1e-5, atol=1e-6)
    assert int(correct) == int((logits.argmax(-1) == targets).sum())


@pytest.mark.parametrize("chunk", [3, 1000])
def test_losses_by_position_are_those_of_torch(chunk, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk * 50)
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden, targets = torch.randn(20, 8, generator=generator), torch.randint(0, 50, (20,), generator=generator)
    found, correct = position_losses(hidden, head, targets)
    torch.testing.assert_close(found, F.cross_entropy(head(hidden), targets, reduction="none").detach())
    assert correct.tolist() == (head(hidden).argmax(-1) == targets).tolist()


def test_sums_by_sample_are_each_samples_own():
    model = loss_model().eval()
    samples = token_samples(3)
    with torch.no_grad():
        losses, correct = model(collate(samples), by_sample=True)
        alone = [model(collate([sample])) for sample in samples]
    assert losses.tolist() == pytest.approx([float(one) for one, _ in alone], rel=1e-5)
    assert correct.tolist() == [int(right) for _, right in alone]


@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4])
def test_large_logits_keep_their_loss(offset):
    head = torch.nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, -8.0], [1.0, -9.0]]))
    hidden = torch.tensor([[offset, 1.0]]).expand(1000, 2)
    targets = torch.zeros(1000, dtype=torch.int64)
    found, _ = supervised_loss(hidden, head, targets)
    assert found.item() == pytest.approx(0.458767, rel=1e-3)
    assert position_losses(hidden, head, targets)[0].sum().item() == pytest.approx(0.458767, rel=1e-3)


def test_full_logits_never_exist(monkeypatch):
    """No chunk of logits has more positions than allowed, or a position without loss."""
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 16 * 4096)
    seen: list[int] = []
    chunk = loss._chunk
    monkeypatch.setattr(
        loss, "_chunk", lambda logits, *rest, **kind: (seen.append(len(logits)), chunk(logits, *rest, **kind))[1]
    )
    batch = collate(token_samples(3))
    with torch.no_grad():
        loss_model()(batch)
    assert max(seen) <= 16 and sum(seen) == batch.supervised


def test_a_batch_without_supervised_positions_has_a_zero_gradient():
    hidden = torch.randn(0, 8, requires_grad=True)
    head = torch.nn.Linear(8, 4, bias=False).requires_grad_(False)
    found, correct = supervised_loss(hidden, head, torch.zeros(0, dtype=torch.int64))
    found.backward()
    assert found.item() == 0 and int(correct) == 0 and hidden.grad is not None
    _, gradient = backward(loss_model(), collate([]))
    assert gradient.abs().max() == 0


def test_a_neighbour_changes_nothing():
    """The sample's loss is the pack's loss minus the neighbour's, for any neighbour on either side."""
    model = loss_model()
    short, *others = sorted(token_samples(12), key=lambda sample: sample.tokens)
    with torch.no_grad():
        alone = model(collate([short]))[0].item()
        for neighbour in (others[0], others[-1]):
            other = model(collate([neighbour]))[0].item()
            for pack in ([short, neighbour], [neighbour, short]):
                assert model(collate(pack))[0].item() - other == pytest.approx(alone, rel=1e-4)
