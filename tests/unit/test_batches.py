"""Windows, micro-batches and padding."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from run_folder import token_samples

from trainer.data.batches import Windows, collate, load_batches, micro_batches
from trainer.data.encoder import IGNORED

SAMPLES = token_samples(23)
PAD = 0


def test_each_epoch_sees_every_sample_once_in_another_order():
    windows = Windows(SAMPLES, size=4, num_epochs=3, seed=1)
    assert len(windows) == 18
    epochs = [[i for w in windows if w.epoch == epoch for i in w.members] for epoch in range(3)]
    assert all(sorted(order) == list(range(23)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = Windows(SAMPLES, size=4, num_epochs=3, seed=1)
    assert [w.members for w in again] == [w.members for w in windows]
    assert again[11] == windows[11]
    assert [w.members for w in Windows(SAMPLES, size=4, num_epochs=3, seed=2)] != [w.members for w in windows]


def test_a_window_knows_its_tokens():
    windows = Windows(SAMPLES, size=5, num_epochs=1, seed=1)
    assert sum(w.tokens for w in windows) == sum(s.tokens for s in SAMPLES)
    assert sum(w.supervised for w in windows) == sum(int((s.labels != IGNORED).sum()) for s in SAMPLES)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 5, 16, 23])
def test_ranks_share_a_window_and_stay_in_step(world, count):
    shares = [micro_batches(range(count), SAMPLES, batch_size=2, rank=r, world=world) for r in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert all(len(batch) <= 2 for share in shares for batch in share)
    assert Counter(i for share in shares for batch in share for i in batch) == Counter(range(count))
    if world == 1:
        lengths = [SAMPLES[i].tokens for batch in shares[0] for i in batch]
        assert lengths == sorted(lengths)


def test_padding_is_on_the_right_and_labels_are_shifted():
    chosen = sorted(SAMPLES[:3], key=lambda s: s.tokens)
    batch = collate(chosen, pad=PAD)
    assert batch.ids.shape == batch.mask.shape == batch.labels.shape == (3, chosen[-1].tokens)
    for row, sample in enumerate(chosen):
        assert batch.ids[row, : sample.tokens].tolist() == sample.ids.tolist()
        assert batch.mask[row].sum() == sample.tokens and batch.mask[row, : sample.tokens].all()
        assert (batch.ids[row, sample.tokens :] == PAD).all()
        for position in range(sample.tokens - 1):
            assert batch.labels[row, position] == sample.labels[position + 1]
        assert (batch.labels[row, sample.tokens - 1 :] == IGNORED).all()
    assert int(batch.supervised) == sum(s.supervised for s in chosen)


def test_an_id_that_is_also_the_padding_is_not_masked():
    sample = SAMPLES[0]
    batch = collate([sample], pad=int(sample.ids[3]))
    assert batch.mask.all()


def test_an_empty_batch_has_no_loss():
    batch = collate([], pad=PAD)
    assert int(batch.supervised) == 0 and batch.mask.all()


def test_splitting_keeps_every_sample():
    batch = collate(SAMPLES[:5], pad=PAD)
    pieces = batch.split(2)
    assert [len(piece.ids) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([piece.labels for piece in pieces]), batch.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_batches_in_order_and_leaves_the_generator_alone(workers):
    batches = micro_batches(range(9), SAMPLES, batch_size=2, rank=0, world=1)
    before = torch.get_rng_state()
    loaded = list(load_batches(SAMPLES, batches, pad=PAD, workers=workers, pin_memory=False))
    assert torch.equal(before, torch.get_rng_state())
    assert len(loaded) == len(batches)
    for batch, chosen in zip(loaded, batches, strict=True):
        assert torch.equal(batch.ids, collate([SAMPLES[i] for i in chosen], pad=PAD).ids)
