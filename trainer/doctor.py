"""`python -m trainer doctor RECIPE.yaml`: checks card, memory, base model, Hub and W&B.

Each finding is printed at once as a JSON line on stdout, so that a crash does not lose earlier findings.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import torch
from httpx2 import HTTPError as HubUnreachable
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from trainer.errors import UnusableInput
from trainer.finding import Finding
from trainer.model.base import local_folder, resolve
from trainer.model.shapes import architecture
from trainer.plan.cards import CARDS, GIB, card_named
from trainer.plan.choose import fastest_fitting, possible_plans, smallest_plan
from trainer.plan.memory import CUDA_BYTES
from trainer.plan.model import NotPlanned, read_model
from trainer.plan.sharding import unsharded
from trainer.readiness import readiness_findings
from trainer.recipe import Recipe
from trainer.track.wandb_tracker import wandb_mode

ANSWER_SECONDS = 10.0
INSTALL_FOR_CARDS = "rm -rf .venv && make install TORCH_INDEX="
"""Installs torch's CUDA build, the default of the package index."""

PCI = Path("/sys/bus/pci/devices")


def doctor_command(recipe: Recipe, folder: Path | None = None) -> int:
    """Print all findings. Returns 1 if one failed.

    Args:
        folder: where a training is going to write. None: no training is planned
    """
    failed = False
    planned = () if folder is None else readiness_findings(recipe, folder)
    for finding in chain(planned, findings(recipe, os.environ)):
        sys.stdout.write(json.dumps(asdict(finding)) + "\n")
        sys.stdout.flush()
        failed = failed or finding.state == "failed"
    return 1 if failed else 0


def findings(recipe: Recipe, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Run all checks in turn. Without a card, skip the card's checks."""
    driver = driver_finding(nvidia_smi())
    yield driver
    if driver.state == "ok":
        arch = arch_finding(torch.cuda.get_device_capability(), torch.cuda.get_arch_list())
        yield arch
        if arch.state == "ok":
            yield kernel_finding(recipe)
            yield memory_finding(recipe)
    yield base_finding(recipe)
    yield hub_finding(environment)
    yield wandb_finding(environment)


# --- the card -----------------------------------------------------------------------------------------------


def has_nvidia_card(devices: Path) -> bool:
    """Whether the kernel lists an NVIDIA display controller."""
    return any(
        (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x03")
        for device in devices.glob("*")
        if (device / "vendor").is_file() and (device / "class").is_file()
    )


def nvidia_smi() -> str | None:
    """Return the first card's name and driver, or nvidia-smi's error. None if nvidia-smi is not installed."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {ANSWER_SECONDS:.0f} s"
    return next(iter((done.stdout + done.stderr).strip().splitlines()), "no card")


def driver_finding(driver: str | None) -> Finding:
    """Check that torch can use the driver's card."""
    if torch.cuda.is_available():
        return Finding(
            check="driver",
            state="ok",
            said=f"{driver or torch.cuda.get_device_name()}; torch {torch.__version__} for CUDA {torch.version.cuda}",
        )
    if driver is None and has_nvidia_card(PCI):
        said = "there is an NVIDIA card but no driver (a container needs --gpus all to use the host's driver)"
        return Finding(check="driver", state="failed", said=said, mend="sudo ubuntu-drivers install")
    if driver is None:
        return Finding(check="driver", state="note", said="no NVIDIA card: training runs on the CPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding(
            check="driver", state="note", said=f"{driver}; CUDA_VISIBLE_DEVICES hides it, so training runs on the CPU"
        )
    if torch.version.cuda is None:
        said = f"{driver}, but torch {torch.__version__} is built for the CPU only"
        return Finding(check="driver", state="failed", said=said, mend=INSTALL_FOR_CARDS)
    said = f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no card. The driver says: {driver}"
    return Finding(check="driver", state="failed", said=said, mend="sudo ubuntu-drivers install")


def arch_finding(capability: tuple[int, int], built_for: list[str]) -> Finding:
    """Check that torch has code for the card.

    It can be for the same architecture, an earlier one of the same generation, or PTX, which the driver compiles."""
    major, minor = capability
    for name in built_for:
        kind, _, digits = name.partition("_")
        number = "".join(character for character in digits if character.isdigit())
        if not number:
            continue
        same = int(number[:-1]) == major and int(number[-1]) <= minor
        if kind == "sm" and same and (digits == number or digits == f"{major}{minor}a"):
            return Finding(check="architecture", state="ok", said=f"sm_{major}{minor}, served by {name}")
        if kind == "compute" and digits == number and (int(number[:-1]), int(number[-1])) <= capability:
            return Finding(check="architecture", state="ok", said=f"sm_{major}{minor}, translated from {name}")
    return Finding(
        check="architecture",
        state="failed",
        said=f"the card is sm_{major}{minor}, but torch is built for {', '.join(built_for) or 'no card'}",
        mend=INSTALL_FOR_CARDS,
    )


def kernel_finding(recipe: Recipe) -> Finding:
    """Run training's kernels: a bfloat16 matrix product and, for a 4-bit base, quantization."""
    try:
        rows = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
        expected = rows.float().cpu() @ rows.float().cpu()
        off = float(((rows @ rows).float().cpu() - expected).norm() / expected.norm())
        if recipe.base.quantization == "nf4":
            from bitsandbytes import functional

            packed, state = functional.quantize_4bit(rows, quant_type="nf4")
            back = functional.dequantize_4bit(packed, state)
            off = max(off, float((back - rows).float().norm() / rows.float().norm()) - 0.15)  # NF4's own error is 0.1
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        said = "another program uses the card's memory"
        return Finding(check="kernel", state="failed", said=said, mend="nvidia-smi  # shows the program to stop")
    except (RuntimeError, ImportError, OSError) as error:
        said = f"a kernel failed: {' '.join(str(error).split())[:300]}"
        return Finding(check="kernel", state="failed", said=said, mend=INSTALL_FOR_CARDS)
    if off > 0.02:
        said = f"the card computes wrong results: a matrix product is off by {off:.1%}"
        return Finding(check="kernel", state="failed", said=said, mend="nvidia-smi -q -d ECC,TEMPERATURE")
    return Finding(check="kernel", state="ok", said="matrix product and quantization give correct results")


def memory_finding(recipe: Recipe) -> Finding:
    """Check that the plan with the least memory fits the card's free memory."""
    free, _ = torch.cuda.mem_get_info()
    try:
        model = read_model(architecture(recipe.base)[0], recipe.lora)
    except NotPlanned as error:
        return Finding(check="memory", state="note", said=f"no plan for this base: {error}")
    except UnusableInput as error:
        return Finding(check="memory", state="note", said=f"no plan: {error}")
    plans = possible_plans(model, unsharded(recipe, 1), CARDS[card_named(torch.cuda.get_device_name())])
    available = free + CUDA_BYTES  # the CUDA context is allocated already
    if plan := fastest_fitting(plans, available):
        said = f"{plan.peak_bytes / GIB:.1f} GiB planned, {available / GIB:.1f} GiB free"
        return Finding(check="memory", state="ok", said=said)
    said = f"{smallest_plan(plans).peak_bytes / GIB:.1f} GiB required, but only {available / GIB:.1f} GiB free"
    return Finding(
        check="memory",
        state="failed",
        said=said,
        mend=f"codelupe plan --vram-gib {available / GIB:.1f}  # shows what would fit",
    )


# --- what is elsewhere --------------------------------------------------------------------------------------


def base_finding(recipe: Recipe) -> Finding:
    """Check that the base model is available, locally or from the Hub."""
    try:
        model, revision = resolve(recipe.base)
        where = "on this machine" if local_folder(recipe.base.model) else "of the Hub"
    except UnusableInput as error:
        name = recipe.base.model
        folder = name.startswith(("/", "./", "../", "~"))
        mend = f"hf download OWNER/NAME --local-dir {name}" if folder else f"hf download {name}"
        return Finding(check="base", state="failed", said=str(error), mend=mend)
    return Finding(check="base", state="ok", said=f"{model} at {revision[:12]}, {where}")


def hub_finding(environment: Mapping[str, str]) -> Finding:
    """Check the Hub token. An unreachable Hub is only a note, because the base may be available locally."""
    token = environment.get("HF_TOKEN", "").strip()
    if not token:
        return Finding(check="hub", state="note", said="no HF_TOKEN: only public models are available, no gated ones")
    try:
        found = HfApi(token=token).whoami()
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            said = "the Hub rejects the token in HF_TOKEN"
            return Finding(check="hub", state="failed", said=said, mend=in_env_file("HF_TOKEN"))
        return Finding(check="hub", state="note", said=f"the Hub answers {error.response.status_code}")
    except (HubUnreachable, OSError) as error:
        return Finding(check="hub", state="note", said=f"the Hub does not answer ({type(error).__name__})")
    return Finding(check="hub", state="ok", said=f"the Hub accepts the token of {found['name']}")


def in_env_file(name: str) -> str:
    """Return the command that changes a variable in .env."""
    return f"sed -i 's/^{name}=.*/{name}=…/' .env"


def wandb_finding(environment: Mapping[str, str], ask: Callable[[str, str], Any] | None = None) -> Finding:
    """Check the W&B key. Without a key or offline, there is no request."""
    mode = wandb_mode(environment)
    if mode is None:
        return Finding(check="wandb", state="note", said="disabled: WANDB_API_KEY is not set, or WANDB_MODE=disabled")
    if importlib.util.find_spec("wandb") is None:
        return Finding(check="wandb", state="failed", said="wandb is not installed", mend="make install")
    if mode == "offline":
        return Finding(
            check="wandb", state="note", said="offline: runs are written to files (`codelupe wandb-sync` sends them)"
        )
    server = environment.get("WANDB_BASE_URL", "").strip() or "https://api.wandb.ai"
    try:
        name = (ask or viewer)(server, environment["WANDB_API_KEY"].strip())
    except (HTTPError, URLError, OSError, ValueError) as error:
        said = f"{server} cannot be reached ({error}). Training works without it"
        return Finding(check="wandb", state="failed", said=said, mend="echo WANDB_MODE=offline >> .env")
    if name is None:
        said = f"{server} rejects the key in WANDB_API_KEY"
        return Finding(check="wandb", state="failed", said=said, mend=in_env_file("WANDB_API_KEY"))
    return Finding(check="wandb", state="ok", said=f"{server} accepts the key of {name}")


def viewer(server: str, key: str) -> str | None:
    """Return the W&B user of a key, or None for an unknown key.

    Raises:
        URLError, OSError, ValueError: no answer, or an unreadable one.
    """
    login = base64.b64encode(f"api:{key}".encode()).decode()
    request = urllib.request.Request(
        f"{server.rstrip('/')}/graphql",
        data=json.dumps({"query": "query { viewer { username } }"}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Basic {login}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            found = json.load(answer)
    except HTTPError as error:
        if error.code in (401, 403):
            return None
        raise
    person = (found.get("data") or {}).get("viewer") if isinstance(found, dict) else None
    return str(person["username"]) if person else None
