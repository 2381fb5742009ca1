"""The loss in chunks is the loss, and neighbours do not change it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fitting import backward, gradients, loss_model
from run_folder import short_recipe, token_samples

from trainer.data.batches import collate
from trainer.model import step
from trainer.model.step import chunked_loss

PAD = 4074


@pytest.mark.parametrize("chunk", [7, 64, 100_000])
def test_chunks_give_the_loss_and_gradient_of_full_logits(chunk, monkeypatch):
    monkeypatch.setattr(step, "CHUNK_LOGITS", chunk * 4096)
    model = loss_model()
    batch = collate(token_samples(3), pad=PAD)
    loss, ours = backward(model, batch)
    logits = model.model(input_ids=batch.ids, attention_mask=batch.mask).logits.float()
    full = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum", ignore_index=-100)
    full.backward()
    assert loss == pytest.approx(full.item(), rel=1e-5)
    torch.testing.assert_close(ours, gradients(model), rtol=1e-3, atol=1e-5)
    _, correct = model(batch.ids, batch.mask, batch.labels)
    assert int(correct) == int((logits.argmax(-1) == batch.labels).sum())


def test_full_logits_never_exist(monkeypatch):
    """No call of the head sees more positions than a chunk, nor any without loss."""
    monkeypatch.setattr(step, "CHUNK_LOGITS", 16 * 4096)
    model = loss_model()
    batch = collate(token_samples(3), pad=PAD)
    seen = []
    head = model.model.get_base_model().get_output_embeddings()
    head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[0]))
    with torch.no_grad():
        model(batch.ids, batch.mask, batch.labels)
    assert max(seen) <= 16 and sum(seen) == int(batch.supervised)


def test_no_supervised_position_gives_a_gradient_of_zero():
    hidden = torch.randn(0, 8, requires_grad=True)
    loss, correct = chunked_loss(hidden, torch.nn.Linear(8, 4), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and int(correct) == 0 and hidden.grad is not None
    model = loss_model()
    empty = collate([], pad=PAD)
    _, gradient = backward(model, empty)
    assert gradient.abs().max() == 0


def test_a_neighbour_and_its_padding_change_nothing():
    model = loss_model()
    short, *others = sorted(token_samples(12), key=lambda sample: sample.tokens)
    only = collate([short], pad=PAD)
    alone, _ = model(only.ids, only.mask, only.labels)
    for neighbour in (others[0], others[-1]):
        both = collate([short, neighbour], pad=PAD)
        labels = both.labels.clone()
        labels[1] = -100
        beside, _ = model(both.ids, both.mask, labels)
        assert beside.item() == pytest.approx(alone.item(), rel=1e-5)


def test_activation_checkpointing_gives_equal_gradients():
    batch = collate(token_samples(3), pad=PAD)
    plain = loss_model(short_recipe(lora__dropout=0.0))
    saving = loss_model(short_recipe(lora__dropout=0.0, training__activation_checkpointing=True))
    saving.train(), plain.train()
    _, expected = backward(plain, batch)
    _, found = backward(saving, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
