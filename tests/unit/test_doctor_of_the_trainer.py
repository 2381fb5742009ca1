"""`python -m trainer doctor` with a local Hub and W&B, and its messages about cards that this machine lacks."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import RECIPES, embedded

from trainer import doctor
from trainer.recipe_file import dump_recipe, load_recipe

ROOT = Path(__file__).parents[2]
KNOWN, GUEST = (base64.b64encode(login).decode() for login in (b"api:good-key", b"api:guest"))
"""A key with an account, and a valid key without one."""


class Answers(BaseHTTPRequestHandler):
    """Answers the doctor's two requests. It knows one key and one token."""

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self.headers["Authorization"] == "Bearer hf_good", {"name": "ada", "type": "user"}, 401)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        who = self.headers["Authorization"]
        viewer = {"username": "ada"} if who == f"Basic {KNOWN}" else None
        self._answer(viewer is not None or who == f"Basic {GUEST}", {"data": {"viewer": viewer}}, 401)

    def _answer(self, known: bool, said: Any, otherwise: int) -> None:
        body = json.dumps(said if known else {"error": "no"}).encode()
        self.send_response(200 if known else otherwise)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()


def ask(folder: Path, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code and the findings of the doctor's process."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump_recipe(embedded()))
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB_"))}
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "doctor", str(recipe)],
        env={**usual, **environment}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found, done.stderr
    return done.returncode, {finding["check"]: finding for finding in found}


needs_no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")


@needs_no_card
def test_a_disabled_feature_is_not_a_failure(tmp_path: Path) -> None:
    code, found = ask(tmp_path)
    assert code == 0
    assert {name: finding["state"] for name, finding in found.items()} == {
        "driver": "note", "base": "ok", "hub": "note", "wandb": "note",
    }  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
def test_accounts_are_checked(tmp_path: Path, server: str, known: bool) -> None:
    code, found = ask(
        tmp_path,
        HF_ENDPOINT=server, WANDB_BASE_URL=server,
        HF_TOKEN="hf_good" if known else "hf_bad", WANDB_API_KEY="good-key" if known else "bad-key",
    )  # fmt: skip
    for name, variable in {"hub": "HF_TOKEN", "wandb": "WANDB_API_KEY"}.items():
        assert found[name]["state"] == ("ok" if known else "failed")
        assert ("ada" in found[name]["said"]) is known
        assert known or variable in found[name]["mend"]
    assert "bad" not in json.dumps(found)
    assert known or code == 1


def test_an_unknown_key(server: str) -> None:
    assert doctor.viewer(server, "guest") is None


@pytest.mark.long
def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    code, found = ask(
        tmp_path, HF_ENDPOINT=nowhere, WANDB_BASE_URL=nowhere, HF_TOKEN="hf_good", WANDB_API_KEY="good-key"
    )
    assert (code, found["hub"]["state"], found["wandb"]["state"]) == (1, "note", "failed")
    assert ask(tmp_path, WANDB_MODE="offline", WANDB_API_KEY="good-key")[1]["wandb"]["state"] == "note"


def test_a_base_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = doctor.base_finding(load_recipe(RECIPES / "qwen-5090.yaml"))
    assert (found.state, found.mend) == ("failed", "hf download Qwen/Qwen2.5-Coder-14B-Instruct")


# --- cards --------------------------------------------------------------------------------------------------


@needs_no_card
@pytest.mark.parametrize(
    ("says", "built_for", "state", "mend"),
    [
        ("NVIDIA GeForce RTX 5090, 570.86", None, "failed", doctor.INSTALL_FOR_CARDS),
        ("NVIDIA-SMI has failed because it could not communicate with the driver", "12.8", "failed", "ubuntu"),
        ("No devices were found", "12.8", "failed", "ubuntu"),
    ],
)
def test_a_card_that_torch_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, built_for: str | None, state: str, mend: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    found = doctor.driver_finding(doctor.nvidia_smi())
    assert found.state == state and says in found.said and mend in str(found.mend)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.driver_finding(doctor.nvidia_smi()).state == "note"


@needs_no_card
def test_a_card_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PCI", tmp_path)
    for number, (vendor, kind) in enumerate([("0x10de", "0x040300"), ("0x8086", "0x030000")]):  # its sound; another's
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vendor").write_text(f"{vendor}\n")
        (tmp_path / str(number) / "class").write_text(f"{kind}\n")
    assert doctor.driver_finding(None).state == "note"
    (tmp_path / "0" / "class").write_text("0x030000\n")
    assert doctor.driver_finding(None).state == "failed"


@pytest.mark.parametrize(
    ("capability", "built_for", "ok"),
    [
        ((12, 0), ["sm_80", "sm_90", "sm_100", "sm_120"], True),
        ((12, 0), ["sm_80", "sm_90", "sm_100"], False),
        ((12, 0), ["sm_80", "sm_90", "compute_90"], True),
        ((8, 9), ["sm_80", "sm_86", "sm_90"], True),
        ((8, 0), ["sm_86", "sm_90"], False),
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((10, 0), ["sm_90", "compute_90a"], False),
        ((7, 5), ["compute_80", "sm_80"], False),
        ((8, 0), [], False),
    ],
)
def test_architectures(capability: tuple[int, int], built_for: list[str], ok: bool) -> None:
    found = doctor.arch_finding(capability, built_for)
    assert (found.state == "ok") is ok
    assert ok or found.mend
