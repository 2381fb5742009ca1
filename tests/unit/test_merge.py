"""Merging and exporting a real adapter of the tiny model, and what is refused."""

from __future__ import annotations

import json
import os
import stat
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import short_recipe, tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from trainer.adapters import merge as merging
from trainer.adapters.export import export_adapter
from trainer.adapters.formats import ExportRequest, export
from trainer.adapters.gguf import HEADER, check_gguf, find_converter
from trainer.adapters.merge import merge
from trainer.adapters.verify import TOLERANCE, LogitsCheck
from trainer.errors import MissingTool, UnusableInput
from trainer.model.base import TINY_FOLDER
from trainer.model.load import load_base
from trainer.model.lora import add_adapter
from trainer.recipe import Base, pinned
from trainer.run_dir import verify_manifest, write_manifest

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the logits a lot, as a run exports it."""
    recipe = short_recipe()
    base = load_base(Base(model=recipe.base.model, quantization="none", compute_dtype="float32"), torch.device("cpu"))
    adapted = add_adapter(base, recipe.lora, parent=None, seed=1)
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    folder = tmp_path_factory.mktemp("adapters") / "v000003"
    export_adapter(folder, adapted, tokenizer(), recipe, facts={})
    return folder


def copied(adapter: Path, to: Path, **config: Any) -> Path:
    """A copy with other entries in adapter_config.json, and a manifest that matches."""
    to.mkdir()
    for path in adapter.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    record = json.loads((to / "adapter_config.json").read_text()) | config
    (to / "adapter_config.json").write_text(json.dumps(record))
    write_manifest(to)
    return to


def test_the_merged_model_is_the_base_and_the_change_rounded_once(adapter: Path, tmp_path: Path):
    to = tmp_path / "merged"
    merged = merge(short_recipe(), adapter, to, dtype="float16", card="# card\n")
    assert merged.modules == 28 and merged.dtype == "float16" and merged.logits.same
    assert merged.logits.difference < 0.01 < 0.1 < merged.logits.effect
    assert verify_manifest(to)["merged"]["base"] == "tiny-qwen2"
    assert (to / "README.md").read_text() == "# card\n" and (to / "generation_config.json").is_file()
    name = "model.layers.0.self_attn.q_proj"
    lora = load_file(adapter / WEIGHTS)
    a, b = (lora[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    before = load_file(TINY_FOLDER / "model.safetensors")[f"{name}.weight"].to(torch.float16)
    wanted = (before.float() + short_recipe().lora.alpha / short_recipe().lora.rank * (b @ a)).to(torch.float16)
    written = load_file(to / "model.safetensors")
    assert torch.equal(written[f"{name}.weight"], wanted)
    config = json.loads((to / "config.json").read_text())
    assert config["dtype"] == "float16" and "quantization_config" not in config and config["use_cache"] is True
    model = AutoModelForCausalLM.from_pretrained(to, dtype="auto")
    assert model.dtype == torch.float16
    with pytest.raises(UnusableInput, match="exists already"):
        merge(short_recipe(), adapter, to)


def test_a_merge_that_did_nothing_is_not_written(adapter: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(merging, "merge_weights", lambda _: (28, 0.0))
    with pytest.raises(UnusableInput, match="differs from base and adapter"):
        merge(short_recipe(), adapter, tmp_path / "merged", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_reads_back_differently_is_not_written(adapter: Path, tmp_path: Path, monkeypatch):
    def damaged(base: Base, *rest: Any) -> Any:
        path = Path(base.model) / "model.safetensors"
        if base.model != "tiny-qwen2":
            weights = load_file(path)
            weights["model.norm.weight"][0] += 0.01  # too little for the logits to tell
            save_file(weights, path, metadata={"format": "pt"})
        return load(base, *rest)

    load = merging.load_16_bit
    monkeypatch.setattr(merging, "load_16_bit", damaged)
    with pytest.raises(UnusableInput, match=r"model.norm.weight reads back differently"):
        merge(short_recipe(), adapter, tmp_path / "merged", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_the_limit_of_the_logits():
    def check(difference: float, effect: float, from_base: float) -> bool:
        return LogitsCheck(difference=difference, effect=effect, from_base=from_base, tokens=1, top_1=1.0).same

    assert check(0.01, 0.2, 0.2) and check(TOLERANCE, 1.0, 1.0) and check(0.0, 0.0, 0.0)
    assert check(0.01, 0.01, 0.014), "a weak adapter drowns in rounding, but the base is farther away"
    assert not check(0.01, 0.01, 0.0), "nothing was merged"
    assert not check(TOLERANCE + 0.01, 1.0, 1.0) and not check(float("nan"), 1.0, 1.0)


def test_what_cannot_be_merged_is_refused(adapter: Path, tmp_path: Path):
    recipe = short_recipe()
    with pytest.raises(UnusableInput, match="use_dora"):
        merge(recipe, copied(adapter, tmp_path / "dora", use_dora=True), tmp_path / "to")
    other = pinned(recipe, model="Qwen/Qwen2.5-Coder-14B-Instruct", revision="a" * 40)
    with pytest.raises(UnusableInput, match=r"was trained on tiny-qwen2.*--recipe"):
        merge(other, adapter, tmp_path / "to")
    damaged = copied(adapter, tmp_path / "damaged")
    (damaged / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(UnusableInput, match="has changed"):
        merge(recipe, damaged, tmp_path / "to")
    four_bit = tmp_path / "base"
    four_bit.mkdir()
    for path in TINY_FOLDER.iterdir():
        (four_bit / path.name).write_bytes(path.read_bytes())
    config = json.loads((four_bit / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (four_bit / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnusableInput, match="16-bit repository"):
        merging.choose_dtype(Base(model=str(four_bit)), "auto")
    assert merging.choose_dtype(Base(model="tiny-qwen2"), "auto") == torch.bfloat16
    assert merging.choose_dtype(Base(model="tiny-qwen2"), "float16") == torch.float16
    assert not (tmp_path / "to").exists()


def request(adapter: Path, to: Path, form: str, **options: Any) -> ExportRequest:
    made = ExportRequest(recipe=short_recipe(), adapter=adapter, to=to, form=form, dtype="float16", card="# c\n")
    return replace(made, **options)


def test_an_adapter_is_exported_as_it_is_and_answers(adapter: Path, tmp_path: Path):
    found = export(request(adapter, tmp_path / "copy", "adapter"))
    assert found["answer"] and found["base"] == "tiny-qwen2"
    assert (tmp_path / "copy" / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    verify_manifest(tmp_path / "copy")


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


CONVERTER = """\
import os, struct, sys
from pathlib import Path
assert (Path(sys.argv[1]) / "model.safetensors").is_file() and sys.argv[4:] == ["--outtype", "f16"]
assert "HF_TOKEN" not in os.environ, "a foreign program gets no token"
Path(sys.argv[3]).write_bytes({content})
"""


def test_gguf_needs_a_converter(adapter: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match=r"none of convert_hf_to_gguf.py.*git clone") as caught:
        export(request(adapter, tmp_path / "to", "gguf"))
    assert caught.value.exit_code == 3 and not (tmp_path / "to").exists()
    with pytest.raises(MissingTool, match="--converter nowhere does not exist"):
        find_converter("nowhere")


def test_gguf_is_checked_and_answers(adapter: Path, tmp_path: Path, monkeypatch):
    """A stand-in for llama.cpp, which is not installed here."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "secret")
    good = program(tools, "convert_hf_to_gguf.py", CONVERTER.format(content="struct.pack('<4sIQQ', b'GGUF', 3, 50, 9)"))
    program(tools, "llama-cli", '#!/bin/sh\ncase "$*" in *"-m "*.gguf*) echo " an answer";; *) exit 1;; esac\n')
    notes: list[str] = []
    found = export(request(adapter, tmp_path / "to", "gguf", on_note=notes.append))
    assert found["tensors"] == 50 and found["answer"].strip() == "an answer"
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"to-float16.gguf", "README.md", "MANIFEST.json"}
    verify_manifest(tmp_path / "to")
    good.write_text("import sys; sys.exit('this tokenizer is unknown')")
    with pytest.raises(UnusableInput, match="code 1: this tokenizer is unknown"):
        export(request(adapter, tmp_path / "again", "gguf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["to", "tools"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"GGML", "begins with b'GGML'"), (b"", "begins with b''"), (HEADER.pack(b"GGUF", 3, 0, 1), "0 tensors"),
     (struct.pack(">4sIQQ", b"GGUF", 3, 1, 1), "version 50331648")],
)  # fmt: skip
def test_what_is_not_gguf(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UnusableInput, match=message):
        check_gguf(tmp_path / "x.gguf")
