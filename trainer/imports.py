"""Imports the libraries in half the time. They dominate short runs. (no torch)"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SPINS = "20000"
"""How long libgomp's threads wait for the next parallel part before they sleep: about 1 ms. With two threads, a step
is 1.38 times as fast as with threads that sleep at once. Its default is 15 times as long, is no faster, and slows down
other processes."""


def set_up_torch() -> None:
    """Set what torch reads when it is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault(
        "PYTORCH_ALLOC_CONF", "expandable_segments:True"
    )  # reduces fragmentation by packs of many lengths


def import_trainer(module: str = "trainer.train") -> None:
    """Import a module of the trainer and its dependencies, unless already imported."""
    if module in sys.modules:
        return
    with collector_paused(), absent("scipy"):
        with compiler_off():
            importlib.import_module("bitsandbytes")
        importlib.import_module(module)


def import_libraries() -> None:
    """Import what takes most of the time and does not touch the GPU. bitsandbytes asks it for its properties."""
    with collector_paused(), absent("scipy"):
        for module in ("transformers.modeling_utils", "transformers.generation.utils", "accelerate"):
            importlib.import_module(module)


@contextmanager
def absent(package: str) -> Iterator[None]:
    """Make an optional package look as if it were not installed in the block, unless it is already imported.

    transformers imports scipy for the losses of object detection, which we do not use. That takes 0.4 s of processor
    time. Code after the block can import the package as usual, but transformers remembers that there is none.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        yield
    finally:
        if sys.modules.get(package, package) is None:
            del sys.modules[package]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Disable Python's garbage collector in the block.

    Imports create a million objects and hardly any garbage, and the collector would scan them repeatedly. Later
    collections skip the block's objects, too.
    """
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
    """Make `torch.compile` return functions unchanged in the block.

    bitsandbytes compiles four fallbacks for devices without own kernels. We do not use such devices, and compiling
    would load all of Inductor. Code after the block can compile as usual.
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
