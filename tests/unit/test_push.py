"""Uploading to a stand-in of the Hub, in a process of its own as `codelupe export --push` does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import TOKEN, Hub, hub

from service.cycle.trainer_commands import export_or_push


@pytest.fixture
def server(monkeypatch) -> Iterator[Hub]:
    with hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "v000003"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# card\n")
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(3000))
    return folder


def push(folder: Path, *more: str, token: str = TOKEN, seconds: float = 60) -> tuple[int, dict[str, str]]:
    return export_or_push(["push", str(folder), "me/lupe", *more], {"HF_TOKEN": token}, seconds=seconds)


def test_all_files_arrive_in_a_private_repository(server: Hub, folder: Path):
    code, found = push(folder)
    assert code == 0 and found["commit"].endswith("b" * 40)
    there = server.repositories["me/lupe"]
    assert there["private"] is True
    assert there["files"] == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_public_repository_needs_the_word(server: Hub, folder: Path, capfd):
    server.repositories["me/lupe"] = {"private": False, "files": {}}
    assert push(folder)[0] == 2
    assert "me/lupe is a public repository. Add --public" in capfd.readouterr().err
    assert server.repositories["me/lupe"]["files"] == {}
    assert push(folder, "--public")[0] == 0 and len(server.repositories["me/lupe"]["files"]) == 2


def test_a_wrong_token_and_a_hub_that_is_away_are_said(server: Hub, folder: Path, monkeypatch, capfd):
    assert push(folder, token="hf_wrong")[0] == 1
    said = capfd.readouterr().err
    assert "the Hub answered 401" in said and "hf upload me/lupe" in said and "Traceback" not in said
    assert "hf_wrong" not in said
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert push(folder)[0] == 1
    said = capfd.readouterr().err
    assert "the Hub cannot be reached" in said and "Traceback" not in said


def test_an_upload_that_hangs_is_ended(server: Hub, folder: Path):
    server.hangs = True
    began = time.monotonic()
    assert push(folder, seconds=2.0)[0] == -9
    assert time.monotonic() - began < 20
