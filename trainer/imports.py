"""The libraries, imported in little more than half the time: they are most of what a short run waits for. (no torch)"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def import_trainer() -> None:
    """Import `trainer.train` and all it stands on, unless it is there already."""
    if "trainer.train" in sys.modules:
        return
    with collector_paused():
        with compiler_off():
            importlib.import_module("bitsandbytes")
        importlib.import_module("trainer.train")


@contextmanager
def collector_paused() -> Iterator[None]:
    """Leave Python's garbage collector off for the block: modules make a million objects and hardly any garbage, and
    it would go through all of them again and again. What the block made is left out of later collections too."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def compiler_off() -> Iterator[None]:
    """Make `torch.compile` hand functions back as they are within the block.

    bitsandbytes compiles four fallbacks for devices that have no kernels of their own. We run on none of those, and
    that alone would load the whole of Inductor. Whoever compiles after the block is not concerned.
    """
    name = "TORCHDYNAMO_DISABLE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
