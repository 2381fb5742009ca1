"""The wheel contains everything that the program needs. `codelupe up` runs from it in any folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from driver import ROOT

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment or None, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture(scope="module")
def codelupe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command of an environment with the wheel and, as its dependencies, this interpreter's packages.

    A `.pth` file adds those packages. Python does not process the `.pth` files among them, so an editable installation
    of the checkout stays invisible.
    """
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "var", "build", "*.egg-info", "tests"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, checkout, cwd=folder)
    assert built.returncode == 0, built.stderr
    [wheel] = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    [packages] = environment.glob("lib/python*/site-packages")
    its_python = environment / "bin" / "python"
    installed = run(*pip, "--python", its_python, "install", "-q", "--no-deps", wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "codelupe"


def test_it_trains_and_publishes_in_an_empty_folder(codelupe: Path, tmp_path: Path):
    kept = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "METRICS_PORT": "0", "SAMPLE_PREDICTIONS": "0"}
    done = run(codelupe, "up", "--once", cwd=tmp_path, **kept)
    assert "verdict:" in done.stdout, done.stdout + done.stderr
    assert "migrations   0001_initial.sql" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "var" / "models" / "tiny-codelupe").is_symlink()
    assert "site-packages" in (tmp_path / "var/models/tiny-codelupe/adapter_config.json").read_text()
