"""The locked requirements are pinned and hashed. The CUDA set resolves, although it cannot run here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")


def pins(name: str) -> dict[str, str]:
    """Return the version of each package in a requirements file."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", text, re.M))


@pytest.mark.parametrize("name", ["cpu", "dev", "gpu", "flash-attn", "flash-attn-build"])
def test_every_requirement_is_pinned_and_hashed(name: str):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    hashed = re.findall(r"^([a-z0-9._-]+)==[^\n]+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.M)
    assert hashed and len(hashed) == len(re.findall(r"^\S", text, re.M))


def test_one_torch_everywhere():
    torch = re.search(r"^torch==(\S+)", (ROOT / "requirements" / "torch.txt").read_text(), re.M)
    assert torch and pins("gpu")["torch"] == torch.group(1)
    assert "torch" not in pins("cpu")


def test_the_programs_packages_are_the_same_with_and_without_cuda():
    cpu, gpu = pins("cpu"), pins("gpu")
    assert {name: gpu.get(name) for name in cpu} == cpu


def test_the_cuda_set_resolves(tmp_path: Path):
    """A resolver finds nothing missing or contradictory in gpu.txt."""
    if UV is None:
        pytest.skip("uv is not installed")
    wanted = tmp_path / "gpu.in"
    wanted.write_text("".join(f"{name}=={version}\n" for name, version in pins("gpu").items()))
    done = subprocess.run(
        [UV, "pip", "compile", str(wanted), "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28",
         "--no-header", "--no-annotate", "--quiet"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if re.search("Failed to fetch|error sending request|Connection", done.stderr):
        pytest.skip(f"the package index does not answer: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    assert dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\n]+)", done.stdout, re.M)) == pins("gpu")


def test_the_image_has_the_programs_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    label = re.search(r'image\.version="(.+?)"', (ROOT / "Dockerfile.qwen-5090").read_text())
    assert version and label and version.group(1) == label.group(1)
