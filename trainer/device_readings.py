"""Reads the cards and this process every few seconds, in a thread of its own. (no torch)

The run never waits for a reading, except at its end, for two seconds at most. Without a card, there are only the
readings of the process. NVML may be missing, fail or hang: then there are none of the card, and one event says why.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from trainer.cards_in_use import CardReading, NoReadings, NvmlCards
from trainer.energy import Energy, EnergyMeter
from trainer.events import Events
from trainer.records import EventTail

READ_SECONDS = 5.0
LAST_SECONDS = 2.0
"""How long the end of a run waits for a last reading."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
LAST_VALUE = ("gpu/energy_joules", "gpu/memory_total_bytes")
"""Series whose last value counts. The others are averaged over a step."""


class Cards(Protocol):
    """What is read. It may raise, and it may hang."""

    def read(self) -> list[CardReading]: ...


class DeviceReadings:
    """The readings of one start of a run."""

    def __init__(
        self,
        events: Events,
        uuids: Callable[[], Sequence[str]] = tuple,
        open_cards: Callable[[Sequence[str]], Cards] = NvmlCards,
    ) -> None:
        self._events, self._uuids, self._open_cards = events, uuids, open_cards
        self._meter = EnergyMeter(_earlier_energy(events.path) if events.enabled else None)
        self._lock = threading.Lock()
        self._values: list[dict[str, float]] = []
        """Since the last step."""
        self._host = ProcessUse()
        self._wanted, self._taken, self._ended = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="readings", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def since_last(self) -> dict[str, float]:
        """Return the mean of the readings since the last call, by the trackers' names. Empty if there were none."""
        with self._lock:
            taken, self._values = self._values, []
        names = dict.fromkeys(name for values in taken for name in values)
        return {name: _over(name, [values[name] for values in taken if name in values]) for name in names}

    @property
    def energy(self) -> Energy | None:
        """Energy of the run up to the last reading. None without a card."""
        return self._meter.energy

    def read_now(self) -> None:
        """Take one more reading. Waits two seconds at most."""
        self._taken.clear()
        self._wanted.set()
        if self._thread.is_alive() and not self._taken.wait(LAST_SECONDS):
            self._events.emit("readings", message=f"NVML gave no answer within {LAST_SECONDS:g} s at the run's end")

    def close(self) -> None:
        """End the thread. One that hangs ends with the process."""
        self._ended = True
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(0.5)

    def _run(self) -> None:
        cards = self._open()
        while not self._ended:
            self._wanted.clear()
            cards = self._read(cards)
            self._taken.set()
            self._wanted.wait(READ_SECONDS)

    def _open(self) -> Cards | None:
        try:
            uuids = self._uuids()
            return self._open_cards(uuids) if uuids else None
        except Exception as error:  # noqa: BLE001 - a driver may fail in any way, and the run continues
            said = str(error) if isinstance(error, NoReadings) else f"{type(error).__name__}: {error}"
            self._events.emit("readings", message=said)
            return None

    def _read(self, cards: Cards | None) -> Cards | None:
        """Take a reading. Returns the cards, or None if they cannot be read any more."""
        read: list[CardReading] = []
        try:
            if cards is not None:
                read = cards.read()
        except Exception as error:  # noqa: BLE001 - a driver may fail in any way, and the run continues
            self._events.emit("readings", message=f"the cards cannot be read any more: {type(error).__name__}: {error}")
            cards = None
        self._meter.add(read, time.monotonic())
        energy = {"energy_joules": self.energy.joules, "energy_source": self.energy.source} if self.energy else {}
        fields = {**card_fields(read), **energy}
        host = self._host.read()
        with self._lock:
            self._values.append({f"gpu/{name}": value for name, value in _numbers(fields)} | _each_card(read) | host)
        told = {name: value for name, value in fields.items() if value is not None}
        self._events.emit("device", cards=len(read), **told, **{_plain(name): value for name, value in host.items()})
        return cards


class ProcessUse:
    """Memory and processor time of this process."""

    def __init__(self) -> None:
        self._before = (time.monotonic(), self._cpu_seconds())

    def read(self) -> dict[str, float]:
        """Return both. 100 % is one processor, since the last reading."""
        now = (time.monotonic(), self._cpu_seconds())
        passed, used = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
        percent = round(100 * used / passed, 1) if passed > 0 else 0.0
        return {"host/process_memory_bytes": float(resident), "host/process_cpu_percent": percent}

    @staticmethod
    def _cpu_seconds() -> float:
        use = resource.getrusage(resource.RUSAGE_SELF)
        return use.ru_utime + use.ru_stime


def card_fields(cards: Sequence[CardReading]) -> dict[str, float | None]:
    """Return what all cards show together: mean utilization, highest temperature, and the sums of the others."""

    def known(name: str) -> list[float]:
        return [value for card in cards if (value := getattr(card, name)) is not None]

    def total(name: str) -> float | None:
        return round(sum(known(name)), 3) if known(name) else None

    use = known("utilization_percent")
    return {
        "utilization_percent": round(sum(use) / len(use), 1) if use else None,
        "memory_used_bytes": total("memory_used_bytes"),
        "memory_total_bytes": total("memory_total_bytes"),
        "power_watts": total("power_watts"),
        "temperature_celsius": max(known("temperature_celsius"), default=None),
    }


@contextmanager
def device_readings(
    events: Events,
    uuids: Callable[[], Sequence[str]],
    *,
    open_cards: Callable[[Sequence[str]], Cards] = NvmlCards,
) -> Iterator[DeviceReadings]:
    """Read in the first process while the block runs. At its end, an event has the run's energy."""
    readings = DeviceReadings(events, uuids, open_cards)
    if events.enabled:
        readings.start()
    try:
        yield readings
    finally:
        readings.read_now()
        readings.close()
        if (energy := readings.energy) is not None:
            events.emit("energy", joules=energy.joules, source=energy.source)


def _earlier_energy(path: Path) -> Energy | None:
    """Return the energy of the run's earlier starts, up to their last readings."""
    told = [one for one in EventTail(path).new() if one["event"] == "device" and "energy_joules" in one]
    return Energy(joules=float(told[-1]["energy_joules"]), source=told[-1]["energy_source"]) if told else None


def _over(name: str, values: Sequence[float]) -> float:
    return values[-1] if name in LAST_VALUE else sum(values) / len(values)


def _numbers(fields: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((name, float(value)) for name, value in fields.items() if isinstance(value, int | float))


def _each_card(cards: Sequence[CardReading]) -> dict[str, float]:
    """Return each card's own readings, if there are several."""
    if len(cards) < 2:
        return {}
    return {
        f"gpu/{index}/{name}": value
        for index, card in enumerate(cards)
        for name, value in _numbers(vars(card))
        if name != "energy_joules"
    }


def _plain(name: str) -> str:
    return name.partition("/")[2]
