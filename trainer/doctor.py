"""`python -m trainer doctor RECIPE.yaml`: is this machine ready for it: card, memory, base, Hub, W&B.

Each finding is one line of JSON on stdout as soon as it is made, so that what was found before a crash is not lost.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError

import torch
from httpx2 import HTTPError as HubUnreachable
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from trainer.errors import UnusableInput
from trainer.model.base import local_folder, resolve
from trainer.model.shapes import architecture
from trainer.plan.cards import CARDS, GIB, card_named
from trainer.plan.choose import fastest_fitting, leanest, possible_plans
from trainer.plan.memory import CUDA_BYTES
from trainer.plan.model import NotPlanned, read_model
from trainer.recipe import Recipe
from trainer.track.wandb_tracker import wandb_mode

ANSWER_SECONDS = 10.0
INSTALL_FOR_CARDS = "rm -rf .venv && make install TORCH_INDEX="
"""torch's CUDA build, which the package index has by default."""

PCI = Path("/sys/bus/pci/devices")

State = Literal["ok", "note", "failed"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: State
    """note: worth knowing, and as somebody chose it."""
    said: str
    mend: str | None = None
    """The command that mends it, where it failed."""


def doctor_command(recipe: Recipe) -> int:
    """Print every finding; 1 when one of them failed."""
    failed = False
    for finding in findings(recipe, os.environ):
        sys.stdout.write(json.dumps(asdict(finding)) + "\n")
        sys.stdout.flush()
        failed = failed or finding.state == "failed"
    return 1 if failed else 0


def findings(recipe: Recipe, environment: Mapping[str, str]) -> Iterator[Finding]:
    """All checks in turn. Without a card those of the card are left out."""
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


def on_the_bus(devices: Path) -> bool:
    """Whether the kernel lists an NVIDIA display controller."""
    return any(
        (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x03")
        for device in devices.glob("*")
        if (device / "vendor").is_file() and (device / "class").is_file()
    )


def nvidia_smi() -> str | None:
    """Name and driver of the first card as the driver says them, or what it says instead; None without its program."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {ANSWER_SECONDS:.0f} s"
    return next(iter((done.stdout + done.stderr).strip().splitlines()), "no card")


def driver_finding(driver: str | None) -> Finding:
    """Whether torch can use the card that the driver sees."""
    if torch.cuda.is_available():
        return Finding(
            check="driver",
            state="ok",
            said=f"{driver or torch.cuda.get_device_name()}; torch {torch.__version__} for CUDA {torch.version.cuda}",
        )
    if driver is None and on_the_bus(PCI):
        said = "an NVIDIA card is there and no driver for it (a container sees its host's when started with --gpus all)"
        return Finding(check="driver", state="failed", said=said, mend="sudo ubuntu-drivers install")
    if driver is None:
        return Finding(check="driver", state="note", said="no NVIDIA card here: training runs on the CPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding(check="driver", state="note", said=f"{driver}; CUDA_VISIBLE_DEVICES hides it: the CPU trains")
    if torch.version.cuda is None:
        said = f"{driver}, and torch {torch.__version__} is built for the CPU alone"
        return Finding(check="driver", state="failed", said=said, mend=INSTALL_FOR_CARDS)
    said = f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no card, and the driver says: {driver}"
    return Finding(check="driver", state="failed", said=said, mend="sudo ubuntu-drivers install")


def arch_finding(capability: tuple[int, int], built_for: list[str]) -> Finding:
    """Whether torch has code for the card: for its own architecture, for an earlier one of the same generation, or in a
    form that the driver translates (PTX)."""
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
        said=f"the card is sm_{major}{minor}, and torch is built for {', '.join(built_for) or 'no card'}",
        mend=INSTALL_FOR_CARDS,
    )


def kernel_finding(recipe: Recipe) -> Finding:
    """Launch what training launches: a product in bfloat16 and, for a base in 4 bits, its packing and unpacking."""
    try:
        rows = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
        expected = rows.float().cpu() @ rows.float().cpu()
        off = float(((rows @ rows).float().cpu() - expected).norm() / expected.norm())
        if recipe.base.quantization == "nf4":
            from bitsandbytes import functional

            packed, state = functional.quantize_4bit(rows, quant_type="nf4")
            back = functional.dequantize_4bit(packed, state)
            off = max(off, float((back - rows).float().norm() / rows.float().norm()) - 0.15)  # NF4 itself is off by 0.1
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        said = "the card's memory is in use: another program has it"
        return Finding(check="kernel", state="failed", said=said, mend="nvidia-smi  # shows which, to be ended")
    except (RuntimeError, ImportError, OSError) as error:
        said = f"a kernel does not run: {' '.join(str(error).split())[:300]}"
        return Finding(check="kernel", state="failed", said=said, mend=INSTALL_FOR_CARDS)
    if off > 0.02:
        said = f"a product on the card is off by {off:.1%}: the card computes wrongly"
        return Finding(check="kernel", state="failed", said=said, mend="nvidia-smi -q -d ECC,TEMPERATURE")
    return Finding(check="kernel", state="ok", said="a product and the base's quantization ran and are right")


def memory_finding(recipe: Recipe) -> Finding:
    """Whether the leanest way to train fits what is free on the card."""
    free, _ = torch.cuda.mem_get_info()
    try:
        model = read_model(architecture(recipe.base)[0], recipe.lora)
    except NotPlanned as error:
        return Finding(check="memory", state="note", said=f"no plan for this base: {error}")
    except UnusableInput as error:
        return Finding(check="memory", state="note", said=f"no plan: {error}")
    plans = possible_plans(model, recipe, CARDS[card_named(torch.cuda.get_device_name())])
    available = free + CUDA_BYTES  # the context is there already
    if plan := fastest_fitting(plans, available):
        said = f"{plan.peak_bytes / GIB:.1f} GiB planned of {available / GIB:.1f} that are free"
        return Finding(check="memory", state="ok", said=said)
    said = f"{leanest(plans).peak_bytes / GIB:.1f} GiB at the least, and {available / GIB:.1f} are free"
    return Finding(
        check="memory",
        state="failed",
        said=said,
        mend=f"codelupe plan --vram-gib {available / GIB:.1f}  # says what would fit",
    )


# --- what is elsewhere --------------------------------------------------------------------------------------


def base_finding(recipe: Recipe) -> Finding:
    """Whether the base is to be had, here or from the Hub."""
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
    """Whether the Hub knows the token. That it does not answer is the base's matter, which may be here already."""
    token = environment.get("HF_TOKEN", "").strip()
    if not token:
        return Finding(check="hub", state="note", said="no HF_TOKEN: what is public can be had, what is gated cannot")
    try:
        found = HfApi(token=token).whoami()
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            said = "the Hub does not know the token in HF_TOKEN"
            return Finding(check="hub", state="failed", said=said, mend=in_env_file("HF_TOKEN"))
        return Finding(check="hub", state="note", said=f"the Hub answers {error.response.status_code}")
    except (HubUnreachable, OSError) as error:
        return Finding(check="hub", state="note", said=f"the Hub does not answer ({type(error).__name__})")
    return Finding(check="hub", state="ok", said=f"the Hub knows the token, as {found['name']}")


def in_env_file(name: str) -> str:
    """The command that gives a variable of .env another value."""
    return f"sed -i 's/^{name}=.*/{name}=…/' .env"


def wandb_finding(environment: Mapping[str, str], ask: Callable[[str, str], Any] | None = None) -> Finding:
    """Whether W&B knows the key. Without one, or offline, nothing is asked."""
    mode = wandb_mode(environment)
    if mode is None:
        return Finding(check="wandb", state="note", said="off: there is no WANDB_API_KEY, or WANDB_MODE=disabled")
    if importlib.util.find_spec("wandb") is None:
        return Finding(check="wandb", state="failed", said="wandb is not installed", mend="make install")
    if mode == "offline":
        return Finding(check="wandb", state="note", said="offline: runs are written to files (wandb sync sends them)")
    server = environment.get("WANDB_BASE_URL", "").strip() or "https://api.wandb.ai"
    try:
        name = (ask or viewer)(server, environment["WANDB_API_KEY"].strip())
    except (HTTPError, URLError, OSError, ValueError) as error:
        said = f"{server} cannot be asked ({error}); training goes on without it"
        return Finding(check="wandb", state="failed", said=said, mend="echo WANDB_MODE=offline >> .env")
    if name is None:
        said = f"{server} does not know the key in WANDB_API_KEY"
        return Finding(check="wandb", state="failed", said=said, mend=in_env_file("WANDB_API_KEY"))
    return Finding(check="wandb", state="ok", said=f"{server} knows the key, as {name}")


def viewer(server: str, key: str) -> str | None:
    """The name that a key has at a W&B server; None where it has none.

    Raises:
        URLError, OSError, ValueError: no answer, or none that can be read.
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
