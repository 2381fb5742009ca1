"""Which machines a Ray cluster has, and how many processes of a run fit on them. (no torch)"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from trainer.errors import ClusterFailed
from trainer.ranks import POLL_SECONDS, ranks_for
from trainer.recipe import Recipe
from trainer.stop import StopRequest, write_stderr

FREE_SECONDS = 10.0
"""How long to wait until what an ended attempt held is free. Then a run takes what is left beside others."""


class Machines:
    """The machines of a cluster, for one recipe."""

    def __init__(self, ray: Any, recipe: Recipe) -> None:
        self._ray, self._recipe = ray, recipe

    def alive(self) -> dict[str, Mapping[str, float]]:
        """Return the resources of each machine, by Ray's id."""
        return {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}

    def resources(self) -> dict[str, float]:
        """Return what one process reserves. It may use more CPUs than the one that it reserves."""
        wanted = self._recipe.distributed.gpus_per_process
        gpus = float(any(node.get("GPU", 0) for node in self.alive().values())) if wanted == "auto" else float(wanted)
        return {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}

    def wait_for_processes(self, stop: StopRequest) -> int:
        """Return how many processes are to be started, when at least the recipe's minimum fits.

        Raises:
            ClusterFailed: it did not fit within the recipe's time.
            Stopped
        """
        settings = self._recipe.distributed
        began = time.monotonic()
        said = False
        while True:
            stop.check()
            waited = time.monotonic() - began
            whole = fitting(self.alive().values(), each := self.resources())
            free = min(whole, fitting([self._ray.available_resources()], each))
            number = ranks_for(self._recipe, free) if free else 0
            best = ranks_for(self._recipe, whole) if whole else 0
            if number >= settings.least_processes and (number >= best or waited > FREE_SECONDS):
                return number
            state = _state(whole, free, each, settings.least_processes)
            if waited > settings.wait_seconds:
                raise ClusterFailed(f"{state}. Waited {waited:.0f} s (distributed.wait_seconds). Add machines")
            if not said and waited > FREE_SECONDS:
                said = True
                write_stderr(f"{state}. Waiting up to {settings.wait_seconds:.0f} s for machines")
            time.sleep(POLL_SECONDS)


def fitting(machines: Any, each: Mapping[str, float]) -> int:
    """Return how many processes fit on machines with these resources."""
    return sum(int(min(machine.get(name, 0.0) // amount for name, amount in each.items())) for machine in machines)


def _state(whole: int, free: int, each: Mapping[str, float], least: int) -> str:
    what = " and ".join(f"{amount:.0f} {name}" for name, amount in each.items())
    return (
        f"The Ray cluster has room for {free} processes with {what} each ({whole} without what others use), "
        f"and the run needs {least} (distributed.least_processes)"
    )
