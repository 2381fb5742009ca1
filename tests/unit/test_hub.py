"""A Hub that cannot be reached ends `codelupe drop` with one message."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from service.errors import PreconditionError
from service.intake.drop import read_sources
from service.intake.records import Given

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("call", ["list_repo_files", "hf_hub_download"])
@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("no luck"),
        httpx.ProxyError("no luck"),
        httpx.InvalidURL("no luck"),
        ImportError("no luck: 'socksio' is not installed"),
        RuntimeError("no luck"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unreachable_hub_gives_one_message(monkeypatch: pytest.MonkeyPatch, call: str, error: Exception):
    def refuse(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *a, **o: ["0.parquet"])
    monkeypatch.setattr(f"huggingface_hub.{call}", refuse)
    with pytest.raises(PreconditionError, match=r"owner/name cannot be read from the Hub .*no luck.*HF_TOKEN"):
        list(read_sources(["hf://owner/name"], Given()))


@pytest.mark.parametrize(
    "settings",
    [
        {"HF_HUB_OFFLINE": "1"},
        {"ALL_PROXY": "socks5://127.0.0.1:1"},
        {"HTTPS_PROXY": "foo://user:secret@127.0.0.1:1"},
        {"HF_ENDPOINT": "no-address"},
    ],
    ids=lambda settings: next(f"{name}={value}" for name, value in settings.items()),
)
def test_the_real_hub_library_without_a_connection_gives_one_message(settings: dict[str, str]):
    script = (
        "from service.errors import PreconditionError\n"
        "from service.intake.hub import read_dataset\n"
        "from service.intake.records import Given\n"
        "try:\n    list(read_dataset('owner/name', Given(), None))\n"
        "except PreconditionError as error:\n    print(error)\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=kept | settings, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stderr == ""
    assert "owner/name cannot be read from the Hub" in done.stdout and "secret" not in done.stdout
