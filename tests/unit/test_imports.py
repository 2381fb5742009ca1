"""The trainer's imports are quick and have no side effects."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys

import pytest

from trainer.imports import absent, collector_paused, compiler_off, set_up_torch

SCRIPT = """
import gc, os, sys
from trainer.imports import import_trainer
import_trainer()
assert "trainer.train" in sys.modules and "bitsandbytes" in sys.modules
assert "torch._inductor.compile_fx" not in sys.modules, "the compiler was loaded"
assert not any(name.split(".")[0] == "scipy" for name in sys.modules), "scipy was imported"
from trainer.evaluate import statistics
import scipy.stats
assert gc.isenabled() and gc.get_freeze_count() > 0
import torch
torch.compile(lambda x: x + 1)
assert "torch._inductor.compile_fx" in sys.modules, "the compiler stayed off"
"""


def test_the_compiler_is_not_imported_but_usable():
    environment = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("before", [None, "0"])
def test_the_compiler_switch_is_restored(monkeypatch, before):
    if before is None:
        monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    else:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", before)
    with pytest.raises(ZeroDivisionError), compiler_off():
        assert os.environ["TORCHDYNAMO_DISABLE"] == "1"
        raise ZeroDivisionError
    assert os.environ.get("TORCHDYNAMO_DISABLE") == before


def test_the_garbage_collector_is_restored():
    with pytest.raises(ZeroDivisionError), collector_paused():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
    gc.unfreeze()


@pytest.mark.parametrize(("policy", "spins"), [(None, "20000"), ("PASSIVE", None)])
def test_threads_wait_as_the_user_says_or_else_shortly(monkeypatch, policy, spins):
    for name in ("GOMP_SPINCOUNT", "PYTORCH_ALLOC_CONF", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "x")  # so that the value is restored
        monkeypatch.delenv(name)
    if policy is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    set_up_torch()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_an_absent_package_is_there_after_the_block(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with absent("colorsys"):
        with pytest.raises(ModuleNotFoundError):
            import colorsys
        assert importlib.util.find_spec("colorsys") is None
    import colorsys  # noqa: F401

    with absent("colorsys"):
        assert sys.modules["colorsys"] is not None


def test_libraries_are_imported_without_touching_the_gpu():
    script = """
import sys
from trainer.imports import import_libraries
import_libraries()
import torch
assert "transformers.modeling_utils" in sys.modules and "bitsandbytes" not in sys.modules and "scipy" not in sys.modules
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
