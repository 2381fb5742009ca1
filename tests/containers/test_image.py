"""The contents of the images."""

import os
import re
import subprocess

import pytest
from stack import BUILD, ROOT, docker

CUDA_IMAGE = "codelupe-qwen-5090:latest"


def run(image: str, *command: str) -> str:
    return docker("run", "--rm", "--network", "none", "--entrypoint", command[0], image, *command[1:])


@pytest.fixture(scope="session")
def cuda_image(engine) -> str:
    if os.environ.get("CUDA_IMAGE") != "1":
        pytest.skip("set CUDA_IMAGE=1 to build the CUDA image too (6 GB)")
    docker("build", "-q", "-f", str(ROOT / "Dockerfile.qwen-5090"), "-t", CUDA_IMAGE, str(ROOT), timeout=1700)
    return CUDA_IMAGE


TORCH = "import torch; print(torch.__version__.partition('+')[0], torch.version.cuda)"


def test_the_cpu_image_has_torch_without_cuda(cpu_image):
    assert run(cpu_image, "python", "-c", TORCH) == "2.13.0 None"


def test_the_cuda_image_has_torch_with_cuda(cuda_image):
    version, cuda = run(cuda_image, "python", "-c", TORCH).split()
    assert version == "2.13.0" and cuda.startswith("13.")
    assert "sm_120" in run(cuda_image, "python", "-c", "import torch; print(torch._C._cuda_getArchFlags())")
    report_size(cuda_image)


def test_the_image_contains_no_compiler_secret_or_test(cpu_image):
    compilers = "gcc cc g++ c++ clang nvcc ninja curl"
    assert run(cpu_image, "sh", "-c", f"command -v {compilers}; true") == ""
    parts = {"README.md", "db", "migrations", "pyproject.toml", "recipes", "service", "trainer"}
    assert set(run(cpu_image, "ls", "-A", "/app").split()) - {"codelupe.egg-info"} == parts
    report_size(cpu_image)


def test_it_runs_as_an_ordinary_user_in_exec_form(cpu_image):
    assert docker("inspect", cpu_image, "--format", "{{.Config.User}}") == "1000:1000"
    assert docker("inspect", cpu_image, "--format", "{{json .Config.Entrypoint}}") == '["codelupe"]'
    assert docker("inspect", cpu_image, "--format", "{{json .Config.Healthcheck.Test}}").startswith('["CMD","python"')
    assert docker("inspect", cpu_image, "--format", '{{index .Config.Labels "codelupe.torch"}}') == "cpu"


def test_the_health_check_fails_when_nothing_answers(cpu_image):
    done = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint", "python", cpu_image, "-m", "service.web.probe"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no answer at 127.0.0.1:8090" in done.stdout


def test_a_wrong_build_argument_is_refused(engine):
    done = subprocess.run(
        ["docker", "build", "--progress=plain", "--build-arg", "TORCH=gpu",
         "-f", str(ROOT / "Dockerfile.qwen-5090"), str(ROOT)],
        capture_output=True, text=True, check=False, env={**os.environ, **BUILD},
    )  # fmt: skip
    assert done.returncode != 0
    assert re.search(r"^#\d+ [\d.]+ TORCH is 'gpu'; cuda or cpu is allowed$", done.stderr, re.M), done.stderr


def report_size(image: str) -> None:
    size = int(docker("inspect", image, "--format", "{{.Size}}"))
    print(f"\n{image}: {size / 1e9:.2f} GB")
    assert size > 0
