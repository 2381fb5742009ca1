"""Windows and packs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from run_folder import token_samples

from trainer.data.batches import Windows, collate, complexities, deal_samples, load_batches, pack_samples
from trainer.data.encoder import IGNORED

SAMPLES = token_samples(23)
LONGEST = max(sample.tokens for sample in SAMPLES)


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


@pytest.mark.parametrize(("max_steps", "steps"), [(None, 18), (100, 18), (18, 18), (7, 7), (1, 1)])
def test_the_most_steps_end_the_windows_and_change_none(max_steps, steps):
    whole = Windows(SAMPLES, size=4, num_epochs=3, seed=1)
    windows = Windows(SAMPLES, size=4, num_epochs=3, seed=1, max_steps=max_steps)
    assert len(windows) == len(list(windows)) == steps
    assert list(windows) == list(whole)[:steps]
    with pytest.raises(IndexError):
        windows[steps]


def test_the_first_epoch_goes_from_simple_to_complex():
    bits = complexities(SAMPLES)
    windows = Windows(SAMPLES, size=4, num_epochs=2, seed=1, simple_first=True)
    first, second = ([i for w in windows if w.epoch == epoch for i in w.members] for epoch in (0, 1))
    assert [bits[i] for i in first] == sorted(bits) and sorted(first) == list(range(23))
    shuffled = Windows(SAMPLES, size=4, num_epochs=2, seed=1)
    assert second == [i for w in shuffled if w.epoch == 1 for i in w.members]
    again = Windows(SAMPLES, size=4, num_epochs=2, seed=1, max_steps=3, simple_first=True)
    assert again[2] == windows[2]  # as after a resume
    assert list(again) == list(windows)[:3]


def test_the_seed_decides_between_samples_of_the_same_complexity():
    same = [SAMPLES[0]] * 30
    orders = [Windows(same, size=30, num_epochs=1, seed=seed, simple_first=True)[0].members for seed in (1, 2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == list(range(30))


def test_long_samples_and_rare_tokens_are_complex():
    def sample(*ids):
        return replace(SAMPLES[0], ids=torch.tensor(ids, dtype=torch.int32), labels=torch.tensor(ids))

    bits = complexities([sample(1, 1), sample(1, 1, 1, 1), sample(2, 3)])
    assert bits == pytest.approx([2 * 0.415037, 4 * 0.415037, 2 * 3.0], abs=1e-5)  # 6 of 8 tokens are 1
    assert complexities([]) == []


def test_a_window_knows_its_tokens():
    windows = Windows(SAMPLES, size=5, num_epochs=1, seed=1)
    assert sum(w.tokens for w in windows) == sum(s.tokens for s in SAMPLES)
    assert sum(w.supervised for w in windows) == sum(int((s.labels != IGNORED).sum()) for s in SAMPLES)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 5, 16, 23])
def test_ranks_share_a_window_and_stay_in_step(world, count):
    budget = 2 * LONGEST
    shares = [pack_samples(range(count), SAMPLES, budget=budget, rank=r, world=world) for r in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert all(sum(SAMPLES[i].tokens for i in pack) <= budget for share in shares for pack in share)
    assert Counter(i for share in shares for pack in share for i in pack) == Counter(range(count))


def test_best_fit_wastes_less_room_than_the_order_of_arrival():
    budget = 2 * LONGEST
    packs = pack_samples(range(23), SAMPLES, budget=budget, rank=0, world=1)
    in_order, used = 1, 0
    for sample in SAMPLES:
        in_order, used = (
            (in_order + 1, sample.tokens) if used + sample.tokens > budget else (in_order, used + sample.tokens)
        )
    total = sum(sample.tokens for sample in SAMPLES)
    assert -(-total // budget) <= len(packs) <= in_order
    assert packs == pack_samples(range(23), SAMPLES, budget=budget, rank=0, world=1)


def test_a_sample_above_the_budget_gets_a_pack_of_its_own():
    packs = pack_samples(range(5), SAMPLES, budget=1, rank=0, world=1)
    assert sorted(packs) == [(0,), (1,), (2,), (3,), (4,)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 12, 13])
def test_without_packing_each_rank_gets_as_many_groups(world, count):
    members = range(100, 100 + count)
    shares = [deal_samples(members, size=2, rank=rank, world=world) for rank in range(world)]
    assert {len(share) for share in shares} == {max(1, -(-count // (2 * world)))}
    assert all(len(group) <= 2 for share in shares for group in share)
    assert sorted(i for share in shares for group in share for i in group) == list(members)


def test_samples_lie_end_to_end_and_predict_their_own_next_tokens():
    batch = collate(SAMPLES[:3])
    assert batch.lengths == tuple(sample.tokens for sample in SAMPLES[:3])
    assert batch.ids.shape == batch.positions.shape == (1, sum(batch.lengths)) and batch.tokens == sum(batch.lengths)
    expected = []
    start = 0
    for sample in SAMPLES[:3]:
        assert batch.ids[0, start : start + sample.tokens].tolist() == sample.ids.tolist()
        assert batch.positions[0, start : start + sample.tokens].tolist() == list(range(sample.tokens))
        expected += [
            (start + p - 1, int(sample.labels[p])) for p in range(1, sample.tokens) if sample.labels[p] != IGNORED
        ]
        start += sample.tokens
    assert list(zip(batch.predicting.tolist(), batch.labels.tolist(), strict=True)) == expected
    assert batch.supervised == sum(s.supervised for s in SAMPLES[:3])


def test_the_last_token_of_a_sample_never_predicts_the_first_of_the_next():
    whole = replace(SAMPLES[1], labels=SAMPLES[1].ids)
    batch = collate([SAMPLES[0], whole])
    assert SAMPLES[0].tokens - 1 not in batch.predicting.tolist()


def test_an_empty_batch_has_no_loss():
    batch = collate([])
    assert batch.supervised == 0 and batch.tokens == 1


@pytest.mark.parametrize("budget", [1, 300, 700, 10_000])
def test_a_split_batch_equals_smaller_batches(budget):
    chosen = SAMPLES[:5]
    pieces = collate(chosen).split(budget)
    assert all(len(piece.lengths) == 1 or piece.tokens <= budget for piece in pieces)
    assert sum(len(piece.lengths) for piece in pieces) == 5
    taken = 0
    for piece in pieces:
        expected = collate(chosen[taken : taken + len(piece.lengths)])
        taken += len(piece.lengths)
        for name in ("ids", "positions", "offsets", "predicting", "labels"):
            assert torch.equal(getattr(piece, name), getattr(expected, name)), name
        assert piece.lengths == expected.lengths


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_keeps_the_order_of_packs_and_the_random_state(workers):
    packs = pack_samples(range(9), SAMPLES, budget=2 * LONGEST, rank=0, world=1)
    before = torch.get_rng_state()
    loaded = list(load_batches(SAMPLES, packs, workers=workers, pin_memory=False))
    assert torch.equal(before, torch.get_rng_state())
    assert len(loaded) == len(packs)
    for batch, chosen in zip(loaded, packs, strict=True):
        assert torch.equal(batch.ids, collate([SAMPLES[i] for i in chosen]).ids)
