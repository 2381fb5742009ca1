"""The 4-bit copy of the base has the same bits, is never partial, and never stops a run."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from run_folder import embedded, events, run, short_recipe, short_run

from trainer.errors import UnusableInput
from trainer.model import quantized
from trainer.model.load import load_base
from trainer.model.quantized import KEPT_DAYS, copies_folder, copy_facts, copy_name, load_kept
from trainer.recipe import Base
from trainer.run_dir import MANIFEST, held_lock, read_json, write_json

CPU = torch.device("cpu")


class Told(list):
    """Collects events in a list."""

    def __call__(self, event, /, **fields):
        self.append({"event": event, **fields})

    @property
    def states(self):
        return [told["state"] for told in self]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return copies_folder()


def base(**changes) -> Base:
    return replace(embedded().base, compute_dtype="float32", **changes)


def folder_of(chosen: Base):
    return copies_folder() / copy_name(chosen, copy_facts(chosen, CPU))


def same_bits(left, right) -> bool:
    """Compare packed weights, their absmax and its quantization, embeddings, norms and biases."""
    a, b = left.state_dict(), right.state_dict()
    assert sum(name.endswith("nested_absmax") for name in a) in (0, 28) and any(
        name.endswith("q_proj.bias") for name in a
    )
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("changes", [{}, {"compute_dtype": "bfloat16"}, {"double_quantization": False}])
def test_a_copy_is_the_quantized_base_bit_for_bit(changes):
    told, chosen = Told(), replace(base(), **changes)
    first = load_kept(chosen, CPU, told)
    assert told.states == ["made"] and told[0]["bytes"] > 2_000_000 and told[0]["seconds"] >= 0
    second = load_kept(chosen, CPU, told)
    assert told.states == ["made"]
    fresh = load_base(chosen, CPU)
    assert same_bits(fresh, first) and same_bits(fresh, second)
    assert second.config.use_cache is False and not any(p.requires_grad for p in second.parameters())
    assert second.model.layers[0].mlp.up_proj.support_avx512bf16_for_cpu is False


def test_a_copy_is_what_is_loaded():
    load_kept(base(), CPU, Told())
    loaded = []
    original, quantized.load_base = (
        quantized.load_base,
        lambda *a, **k: loaded.append(k.get("copy")) or original(*a, **k),
    )
    try:
        load_kept(base(), CPU, Told())
    finally:
        quantized.load_base = original
    assert loaded == [folder_of(base())]


def test_each_setting_has_a_copy_of_its_own(cache):
    for chosen in (base(), base(double_quantization=False), replace(base(), compute_dtype="bfloat16")):
        load_kept(chosen, CPU, Told())
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 3


def test_a_16_bit_base_has_no_copy(cache):
    load_kept(base(quantization="none"), CPU, Told())
    assert not cache.exists()


def cut(folder):
    with (folder / "model.safetensors").open("rb+") as file:
        file.truncate(1000)


def overwritten(folder):
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(b"\xff" * size)


def of_another_version(folder):
    manifest = read_json(folder / MANIFEST)
    manifest["facts"]["versions"]["bitsandbytes"] = "0.1"
    write_json(folder / MANIFEST, manifest)


DAMAGES = {
    "changed in size": cut,
    "cannot be loaded": overwritten,
    "was made from": of_another_version,
    "no readable MANIFEST.json": lambda folder: (folder / MANIFEST).unlink(),
    "config.json": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_copy_is_reported_and_rebuilt(words):
    load_kept(base(), CPU, Told())
    DAMAGES[words](folder_of(base()))
    told = Told()
    model = load_kept(base(), CPU, told)
    assert told.states == ["damaged", "made"] and words in told[0]["message"]
    assert same_bits(model, load_base(base(), CPU))
    again = Told()
    assert same_bits(model, load_kept(base(), CPU, again)) and again == []


def test_a_copy_that_contradicts_its_manifest_is_not_used():
    """The facts agree, but the weights belong to another setting."""
    load_kept(base(), CPU, Told())
    load_kept(base(double_quantization=False), CPU, Told())
    wrong, right = folder_of(base(double_quantization=False)), folder_of(base())
    manifest = read_json(wrong / MANIFEST) | {"facts": read_json(right / MANIFEST)["facts"]}
    shutil.rmtree(right)
    wrong.rename(right)
    write_json(right / MANIFEST, manifest)
    told = Told()
    load_kept(base(), CPU, told)
    assert told.states == ["damaged", "made"] and "double_quantization" in told[0]["message"]


def test_a_missing_weight_is_not_invented(tmp_path):
    from safetensors.torch import load_file, save_file

    load_kept(base(), CPU, Told())
    file = folder_of(base()) / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if n != "model.norm.weight"}, file, metadata={"format": "pt"})
    with pytest.raises(UnusableInput, match=r"no weights for model\.norm\.weight"):
        load_base(base(), CPU, copy=folder_of(base()))


# --- when it cannot be made -----------------------------------------------------------------------------------


def test_a_full_disk_prevents_only_the_copy(cache, monkeypatch):
    usage = shutil.disk_usage(cache.parents[2])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    told = Told()
    assert same_bits(load_kept(base(), CPU, told), load_base(base(), CPU))
    assert told.states == ["not_made"] and "0.0 GB are free" in told[0]["message"]
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_a_disk_that_fills_up_leaves_no_partial_copy(cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quantized, "write_json", full)
    told = Told()
    load_kept(base(), CPU, told)
    assert told.states == ["not_made"] and "No space left" in told[0]["message"]
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_an_unwritable_cache_prevents_only_the_copy(cache):
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the folder should be")
    told = Told()
    load_kept(base(), CPU, told)
    assert told.states == ["not_made"]


def test_a_process_does_not_wait_while_another_makes_the_copy(cache):
    cache.mkdir(parents=True)
    told = Told()
    with held_lock(cache / "lock", wait_seconds=0):
        load_kept(base(), CPU, told)
    assert told.states == ["not_made"] and "another process" in told[0]["message"]


def test_only_the_first_rank_makes_the_copy(cache, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    told = Told()
    load_kept(base(), CPU, told)
    assert told == [] and not cache.exists()


@pytest.mark.long
def test_concurrent_processes_leave_one_good_copy(cache):
    script = (
        "import torch; from trainer.model.quantized import load_kept; from trainer.recipe import Base\n"
        f"load_kept({base()!r}, torch.device('cpu'), lambda event, **fields: print(fields['state']))"
    )
    both = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [folder_of(base()).name]
    told = Told()
    assert same_bits(load_kept(base(), CPU, told), load_base(base(), CPU)) and told == []


# --- what goes ------------------------------------------------------------------------------------------------


def test_half_written_and_unused_copies_are_removed_when_a_copy_is_made(cache):
    told = Told()
    kept, old = base(double_quantization=False), replace(base(), compute_dtype="bfloat16")
    for chosen in (kept, old):
        load_kept(chosen, CPU, told)
    long_ago = time.time() - (KEPT_DAYS + 1) * 86400
    for chosen in (kept, old):
        os.utime(folder_of(chosen) / MANIFEST, (long_ago, long_ago))
    (cache / ".qwen.77.tmp").mkdir()
    load_kept(kept, CPU, told)  # in use again
    load_kept(base(), CPU, told)
    assert {path.name for path in cache.iterdir()} == {"lock", folder_of(kept).name, folder_of(base()).name}


# --- in a run -------------------------------------------------------------------------------------------------


def test_a_run_from_the_copy_is_the_same_run(tmp_path):
    reports = []
    for number in ("1", "2"):
        directory = short_run(tmp_path / number, short_recipe())
        assert run(directory) == 0
        reports.append(read_json(directory.report)["evaluation"])
        states = [event["state"] for event in events(directory, "base_copy")]
        assert states == (["made"] if number == "1" else [])
    assert reports[0] == reports[1]
