"""The sandbox as a container of its own: it judges for a trainer's container, and has nothing else to give."""

import json
from collections.abc import Iterator

import pytest
from stack import Stack, checkout, compose_commands, docker, state, wait_for

SANDBOX = "codelupe-sandbox"
ASK = """
from pathlib import Path
from trainer.evaluate.sandbox.client import RemoteSandbox
from trainer.evaluate.suites import Task
task = Task(task_id="a", form="mbpp", prompt="", entry_point="f", tests="assert f(1) == 2", solution="")
sandbox = RemoteSandbox(Path("/sandbox/socket"))
print([sandbox.run_task(task, f"def f(x): return x + {n}").passed for n in (1, 2)], sandbox.check())
"""
HERE = """
from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.bubblewrap import check_available
try:
    print(check_available())
except UnusableInput as error:
    print(error)
"""
OWN = ("--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--network", "none")


@pytest.fixture(scope="module")
def sandbox(engine: None, cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The sandbox alone, started as docs/evaluation.md says."""
    if SANDBOX in docker("ps", "-a", "--format", "{{.Names}}").split():
        pytest.skip(f"a container {SANDBOX} exists")
    folder = checkout(tmp_path_factory.mktemp("codelupe-sandbox"))
    stack = Stack(folder, next(iter(compose_commands().values())))
    stack.compose("--profile", "evaluation", "up", "-d", "--no-deps", "sandbox")
    try:
        wait_for(lambda: state(SANDBOX)["Health"]["Status"] == "healthy", f"{SANDBOX} to be healthy", 90)
        yield stack
    finally:
        print(docker("logs", SANDBOX, check=False))
        stack.compose("--profile", "evaluation", "down", "--volumes")


def in_sandbox(code: str, check: bool = True) -> str:
    return docker("exec", SANDBOX, "python", "-c", code, check=check)


def test_a_trainers_container_gets_verdicts_over_the_shared_socket(sandbox, cpu_image):
    (volume,) = (
        mount["Name"]
        for mount in json.loads(docker("inspect", SANDBOX, "--format", "{{json .Mounts}}"))
        if mount["Destination"] == "/sandbox"
    )
    answered = docker(
        "run", *OWN, "--user", "1000:1000", "-v", f"{volume}:/sandbox:ro", "--entrypoint", "python", cpu_image,
        "-c", ASK,
    )  # fmt: skip
    assert answered.startswith("[True, False]") and "bwrap" in answered


def test_the_trainers_own_container_refuses_to_execute(sandbox, cpu_image):
    """Docker's default profile forbids namespaces, and there is no way around the sandbox."""
    refused = docker(
        "run", *OWN, "--tmpfs", "/tmp", "--user", "1000:1000", "--entrypoint", "python", cpu_image, "-c", HERE
    )  # fmt: skip
    assert refused.startswith("the sandbox does not start") and "seccomp profile" in refused


def test_the_container_has_no_network_no_capabilities_and_a_user_of_its_own(sandbox):
    status = dict(line.split(":", 1) for line in in_sandbox("print(open('/proc/self/status').read())").splitlines())
    assert {status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {"0" * 16}
    assert status["NoNewPrivs"].strip() == "1" and status["Seccomp"].strip() == "2"
    assert status["Uid"].split() == ["65533"] * 4
    interfaces = in_sandbox("import os; print(os.listdir('/sys/class/net'))")
    assert interfaces == "['lo']"
    assert "Read-only file system" in in_sandbox(
        "import contextlib\ntry: open('/app/x', 'w')\nexcept OSError as error: print(error)"
    )
    host = json.loads(docker("inspect", SANDBOX, "--format", "{{json .HostConfig}}"))
    assert host["PidsLimit"] == 256 and host["Memory"] == 4 * 1024**3 and not host["Privileged"]
    assert not [mount for mount in host["Binds"] or [] if mount.startswith("/")], "no folder of the host"


@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x20000)",  # a mount namespace without a user namespace
        "libc.setns(0, 0)",
        "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        "libc.sethostname(b'x', 1)",
        "libc.syscall(321, 0, 0, 0)",  # bpf
        "libc.syscall(250, 0, 0, 0)",  # keyctl
    ],
)
def test_what_the_profile_adds_gives_the_container_nothing(sandbox, call):
    code = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint({call}, ctypes.get_errno())"
    assert in_sandbox(code) == "-1 1", "the kernel or the profile refuses it: EPERM"


def test_it_comes_back_after_a_kill(sandbox):
    docker("kill", "--signal", "KILL", SANDBOX)
    docker("start", SANDBOX)
    wait_for(lambda: state(SANDBOX)["Health"]["Status"] == "healthy", f"{SANDBOX} to be healthy", 90)
    answered = in_sandbox(ASK)
    assert answered.startswith("[True, False]"), "the socket of the killed one was replaced"
