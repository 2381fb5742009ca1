"""What NVML says about the cards that a run uses. (no torch)"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CardReading:
    """What one card shows at one moment. None: the card or its driver does not tell."""

    utilization_percent: float | None = None
    """Share of the last moment in which a kernel was running."""
    memory_used_bytes: float | None = None
    """Of all processes on the card."""
    memory_total_bytes: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    energy_joules: float | None = None
    """What the card has used since its driver was loaded."""


class NoReadings(Exception):
    """NVML cannot be used here. The message says why, and what to do."""


class NvmlCards:
    """The cards with these UUIDs. NVML may raise, and it may hang: call it in a thread of its own."""

    def __init__(self, uuids: Sequence[str]) -> None:
        """Raises NoReadings: the library, the driver or a card is missing."""
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            raise NoReadings(
                f"the package nvidia-ml-py is missing ({error}). Install it with `make install`"
            ) from error
        try:
            self._nvml.nvmlInit()
            self._handles = [self._handle(uuid) for uuid in uuids]
        except Exception as error:
            raise NoReadings(f"NVML cannot be used ({error}). Check `nvidia-smi`") from error

    def read(self) -> list[CardReading]:
        """Read every card."""
        return [self._read(handle) for handle in self._handles]

    def _handle(self, uuid: str) -> Any:
        """Torch names a card and a part of a card (MIG) by the bare id."""
        if uuid.startswith(("GPU-", "MIG-")):
            return self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except self._nvml.NVMLError:
            return self._nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")

    def _read(self, handle: Any) -> CardReading:
        nvml = self._nvml
        memory = self._told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        return CardReading(
            utilization_percent=self._told(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            memory_used_bytes=None if memory is None else float(memory.used),
            memory_total_bytes=None if memory is None else float(memory.total),
            power_watts=self._told(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            temperature_celsius=self._told(
                lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            ),
            energy_joules=self._told(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000),
        )

    def _told(self, ask: Callable[[], Any]) -> Any:
        """Return the answer, or None for what this card does not support."""
        try:
            return ask()
        except self._nvml.NVMLError:
            return None
