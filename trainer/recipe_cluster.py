"""Where `distributed.launcher: ray` finds machines for its processes. (no torch)"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from trainer.recipe_values import number


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The keys of `distributed` that only `launcher: ray` reads (docs/scaling.md)."""

    address: str = "auto"
    """Address of the Ray cluster, `HOST:PORT`. `auto`: the one that this machine is part of."""
    gpus_per_process: int | Literal["auto"] = number("auto", 0, 1, word="auto")
    """`auto`: 1 if a machine of the cluster has a GPU, else 0."""
    least_processes: int = number(1, 1, 4096)
    """Minimum number of processes: with fewer, the run waits for machines."""
    storage: str | None = None
    """Where files travel between machines without a shared folder, as an fsspec URL: `s3://BUCKET/PREFIX`, `gs://…`,
    `file:///…`. None: all machines have the run directory at the same path."""
    wait_seconds: float = number(600.0, 1.0)
    """How long a run waits for machines. Then it ends with exit code 1, and the service starts it again."""


def cluster_problems(launcher: str, processes: int | str, strategy: str, cluster: Cluster) -> Iterator[str]:
    """Yield contradictions between the cluster's keys and others of `distributed`."""
    if launcher != "ray":
        for item in fields(Cluster):
            if getattr(cluster, item.name) != item.default:
                yield f"distributed.{item.name}: has no effect with launcher: {launcher}. Remove it, or use ray"
        return
    if cluster.storage is not None and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/]*[^\s]+", cluster.storage):
        yield f"distributed.storage: {cluster.storage} is no URL, such as s3://BUCKET/PREFIX or file:///FOLDER"
    if cluster.address != "auto" and not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", cluster.address):
        yield f"distributed.address: {cluster.address} is neither auto nor HOST:PORT"
    if cluster.storage is not None and strategy in ("fsdp2", "zero2", "zero3"):
        yield (
            f"distributed.storage: processes of {strategy} write one checkpoint together, in a shared folder. Use ddp"
        )
    if isinstance(processes, int) and cluster.least_processes > processes:
        least = cluster.least_processes
        yield f"distributed.least_processes: {least} is greater than distributed.processes, {processes}"
