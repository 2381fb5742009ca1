"""On a GPU: torch's UUID names the card to NVML, and its readings are plausible."""

from __future__ import annotations

import time

import torch
from test_memory_on_a_card import pytestmark as needs_a_card

from trainer.cards_in_use import NvmlCards
from trainer.energy import EnergyMeter
from trainer.model.memory import cards_in_use

pytestmark = needs_a_card


def test_the_card_of_this_process_is_read():
    (uuid,) = cards_in_use()  # one process uses one card
    cards = NvmlCards([uuid])
    (before,) = cards.read()
    held = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    (after,) = cards.read()
    assert after.memory_used_bytes is not None and before.memory_used_bytes is not None
    assert after.memory_used_bytes - before.memory_used_bytes > held.numel() // 2
    total = torch.cuda.get_device_properties(0).total_memory
    assert after.memory_total_bytes is not None and abs(after.memory_total_bytes / total - 1) < 0.1
    assert after.power_watts is None or 5 < after.power_watts < 2000
    assert after.temperature_celsius is None or 5 < after.temperature_celsius < 120


def test_the_counter_agrees_with_the_power():
    cards, counter, power = NvmlCards(cards_in_use()), EnergyMeter(), EnergyMeter()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        read, now = cards.read(), time.monotonic()
        counter.add(read, now)
        power.add([type(card)(power_watts=card.power_watts) for card in read], now)
        time.sleep(0.2)
    assert counter.energy is not None and power.energy is not None and power.energy.source == "power"
    assert 0.5 < counter.energy.joules / power.energy.joules < 2
