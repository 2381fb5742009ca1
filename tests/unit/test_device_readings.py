"""Readings of the cards: a library, a driver or a card that is missing, fails or hangs costs the run nothing."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nvml_stand_in
import pytest

from trainer import device_readings as readings_module
from trainer.cards_in_use import CardReading, NoReadings, NvmlCards
from trainer.device_readings import DeviceReadings, card_fields, device_readings
from trainer.energy import Energy, EnergyMeter
from trainer.events import Events


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in in place of pynvml."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml_stand_in)
    yield nvml_stand_in
    nvml_stand_in.missing.clear()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings_module, "READ_SECONDS", 0.02)
    monkeypatch.setattr(readings_module, "LAST_SECONDS", 0.3)


def read(
    folder: Path, uuids: Callable[[], Sequence[str]], **options: Any
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Read for a moment. Returns what a step would show, and the events."""
    events = Events(folder / "events.jsonl")
    began = time.monotonic()
    with device_readings(events, uuids, **options) as readings:
        time.sleep(0.15)
        shown = readings.since_last()
    assert time.monotonic() - began < 2, "the run waited for a reading"
    return shown, [json.loads(line) for line in events.path.read_text().splitlines()]


def problems(events: list[dict[str, Any]]) -> list[str]:
    return [event["message"] for event in events if event["event"] == "readings"]


def test_two_cards_together_and_each_alone(nvml: Any, tmp_path: Path) -> None:
    shown, events = read(tmp_path, lambda: ["aaaa", "GPU-bbbb"])  # torch leaves the prefix out
    assert shown["gpu/utilization_percent"] == 80 and shown["gpu/temperature_celsius"] == 71
    assert shown["gpu/memory_used_bytes"] == 16 << 30 and shown["gpu/memory_total_bytes"] == 64 << 30
    assert (
        shown["gpu/power_watts"] == 400 and shown["gpu/0/utilization_percent"] == 90 and shown["gpu/energy_joules"] > 0
    )
    device = [event for event in events if event["event"] == "device"][-1]
    assert device["cards"] == 2 and device["power_watts"] == 400 and device["energy_source"] == "counter"
    assert device["process_memory_bytes"] > 1e6 and device["process_cpu_percent"] >= 0
    assert problems(events) == [] and events[-1]["event"] == "energy"


def test_without_a_card_there_are_the_readings_of_the_process(tmp_path: Path) -> None:
    shown, events = read(tmp_path, list)
    assert shown.keys() == {"host/process_memory_bytes", "host/process_cpu_percent"}
    assert {event["event"] for event in events} == {"device"}


def test_a_step_shows_the_mean_of_its_readings_once(tmp_path: Path) -> None:
    readings = DeviceReadings(Events(tmp_path / "events.jsonl"))
    readings._values = [
        {"gpu/power_watts": 100.0, "gpu/energy_joules": 1.0},
        {"gpu/power_watts": 200.0, "gpu/energy_joules": 3.0},
    ]
    assert readings.since_last() == {"gpu/power_watts": 150.0, "gpu/energy_joules": 3.0}
    assert readings.since_last() == {}


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    shown, events = read(tmp_path, lambda: ["GPU-aaaa"])
    assert "host/process_memory_bytes" in shown and not any(name.startswith("gpu/") for name in shown)
    (said,) = problems(events)
    assert "nvidia-ml-py is missing" in said and "make install" in said


def test_a_missing_driver_is_named_by_the_real_library(tmp_path: Path) -> None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        pass
    else:
        pytest.skip("this machine has NVIDIA's driver")
    _, events = read(tmp_path, lambda: ["GPU-aaaa"])
    (said,) = problems(events)
    assert "NVML cannot be used" in said and "nvidia-smi" in said


def test_a_card_that_is_not_there_is_named(nvml: Any, tmp_path: Path) -> None:
    with pytest.raises(NoReadings, match="Not Found"):
        NvmlCards(["GPU-cccc"])
    _, events = read(tmp_path, lambda: ["GPU-cccc"])
    assert len(problems(events)) == 1


def test_a_part_of_a_card_is_found(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "UUIDS", ("MIG-cccc",))
    assert len(NvmlCards(["cccc"]).read()) == 1


def test_what_a_card_does_not_tell_is_missing(nvml: Any, tmp_path: Path) -> None:
    nvml.missing |= {"utilization", "temperature", "memory"}
    shown, events = read(tmp_path, lambda: ["GPU-aaaa"])
    assert "gpu/utilization_percent" not in shown and shown["gpu/power_watts"] == 200
    assert problems(events) == []


def test_a_call_that_raises_ends_the_readings_and_not_the_run(tmp_path: Path) -> None:
    class Lost:
        def read(self) -> list[CardReading]:
            raise OSError("GPU is lost")

    shown, events = read(tmp_path, lambda: ["GPU-aaaa"], open_cards=lambda _: Lost())
    assert problems(events) == ["the cards cannot be read any more: OSError: GPU is lost"]
    assert "host/process_memory_bytes" in shown


def test_asking_for_the_cards_may_fail(tmp_path: Path) -> None:
    def broken() -> list[str]:
        raise AttributeError("no uuid")

    _, events = read(tmp_path, broken)
    assert problems(events) == ["AttributeError: no uuid"]


def test_a_call_that_hangs_costs_a_moment_at_the_end(tmp_path: Path) -> None:
    freed = threading.Event()

    class Hanging:
        def read(self) -> list[CardReading]:
            freed.wait(30)
            return []

    began = time.monotonic()
    shown, events = read(tmp_path, lambda: ["GPU-aaaa"], open_cards=lambda _: Hanging())
    assert time.monotonic() - began < 1.5
    freed.set()
    assert shown == {} and "NVML gave no answer" in problems(events)[0]


def test_other_processes_of_a_run_read_nothing(tmp_path: Path) -> None:
    with device_readings(Events(tmp_path / "events.jsonl", enabled=False), list) as readings:
        time.sleep(0.1)
    assert readings.since_last() == {} and not (tmp_path / "events.jsonl").exists()


# --- energy ---------------------------------------------------------------------------------------------------


def card(joules: float | None = None, watts: float | None = None) -> CardReading:
    return CardReading(energy_joules=joules, power_watts=watts)


def test_the_counters_of_all_cards_are_added() -> None:
    meter = EnergyMeter()
    meter.add([card(100.0), card(1000.0)], 0.0)
    assert meter.energy is None
    meter.add([card(110.0), card(1005.0)], 1.0)
    meter.add([card(130.0), card(1005.0)], 2.0)
    assert meter.energy == Energy(joules=35.0, source="counter")


def test_a_reloaded_driver_loses_no_more_than_one_interval() -> None:
    meter = EnergyMeter()
    for at, joules in enumerate((100.0, 150.0, 3.0, 13.0)):
        meter.add([card(joules)], float(at))
    assert meter.energy == Energy(joules=60.0, source="counter")


def test_without_a_counter_the_power_is_averaged_and_said_so() -> None:
    meter = EnergyMeter()
    meter.add([card(watts=100.0), card(10.0)], 0.0)
    meter.add([card(watts=300.0), card(15.0)], 2.0)
    assert meter.energy == Energy(joules=405.0, source="power")


def test_a_later_start_goes_on_from_the_last_reading(nvml: Any, tmp_path: Path) -> None:
    _, first = read(tmp_path, lambda: ["GPU-aaaa"])
    before = first[-1]["joules"]
    _, both = read(tmp_path, lambda: ["GPU-aaaa"])
    assert both[-1]["event"] == "energy" and both[-1]["joules"] > before
    told = [event["energy_joules"] for event in both if "energy_joules" in event]
    assert told == sorted(told)


def test_the_fields_of_cards_that_tell_nothing() -> None:
    assert set(card_fields([]).values()) == {None} == set(card_fields([CardReading()]).values())
