"""NVML without a card: the functions of pynvml that the trainer calls. It is put into sys.modules in place of pynvml.

Each card draws 200 W and has a counter of its energy.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

NVML_TEMPERATURE_GPU = 0
WATTS = 200.0
UUIDS = ("GPU-aaaa", "GPU-bbbb")
calls: list[str] = []
missing: set[str] = set()
"""Names of functions that a card does not support."""


class NVMLError(Exception):
    pass


def install() -> Any:
    """Put this module in place of pynvml, and return it."""
    module = sys.modules[__name__]
    sys.modules["pynvml"] = module
    return module


def nvmlInit() -> None:
    calls.append("init")


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:
    if uuid not in UUIDS:
        raise NVMLError("Not Found")
    return uuid


def nvmlDeviceGetUtilizationRates(handle: str) -> Any:
    _supported("utilization")
    return SimpleNamespace(gpu=90 if handle == UUIDS[0] else 70)


def nvmlDeviceGetMemoryInfo(handle: str) -> Any:
    _supported("memory")
    return SimpleNamespace(used=8 << 30, total=32 << 30)


def nvmlDeviceGetPowerUsage(handle: str) -> int:
    _supported("power")
    return int(WATTS * 1000)


def nvmlDeviceGetTemperature(handle: str, sensor: int) -> int:
    _supported("temperature")
    return 60 if handle == UUIDS[0] else 71


def nvmlDeviceGetTotalEnergyConsumption(handle: str) -> int:
    _supported("energy")
    return int(time.monotonic() * WATTS * 1000)


def _supported(what: str) -> None:
    if what in missing:
        raise NVMLError("Not Supported")
