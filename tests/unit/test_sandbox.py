"""The sandbox: what tests and candidate may exchange, what the limits are, and when it refuses to run."""

from __future__ import annotations

import math
import os
import platform
import re
import struct
import tempfile
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sandboxed import USERS, as_user, double
from trainer.errors import UnusableInput
from trainer.evaluate.sandbox import bubblewrap
from trainer.evaluate.sandbox import run as run_module
from trainer.evaluate.sandbox.bubblewrap import Sandbox, check_available
from trainer.evaluate.sandbox.cgroup import MemoryGroup, memory_parent
from trainer.evaluate.sandbox.limits import MIB, Limits, Outcome
from trainer.evaluate.sandbox.run import run_task
from trainer.evaluate.sandbox.seccomp import ALLOW, DENIED, DENIED_ON_X86_64, KILL, filter_program
from trainer.evaluate.sandbox.wire import WireError, decode, encode
from trainer.evaluate.suites import Task

DOUBLE = "def double(x):\n    return 2 * x"


def run(code: str, tests: str) -> Outcome:
    outcome = as_user("an ordinary user", lambda: run_task(double(tests), code, Limits(wall_seconds=60)))
    assert isinstance(outcome, Outcome)
    return outcome


@pytest.fixture
def nothing_found() -> Iterator[None]:
    """Forget what was found, before and after."""
    bubblewrap._found.cache_clear()
    yield
    bubblewrap._found.cache_clear()


@pytest.mark.parametrize("user", USERS)
def test_a_right_answer_passes_and_a_wrong_one_fails(user: str) -> None:
    right, wrong = as_user(
        user, lambda: [run_task(double("assert double(2) == 4"), code) for code in (DOUBLE, "def double(x): return x")]
    )
    assert right.passed and not right.reason
    assert not wrong.passed
    assert wrong.reason == "AssertionError (in `assert double(2) == 4`)"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def double(x): return (", "SyntaxError"),
        ("", "AttributeError"),
        ("def double(x): raise KeyError('x')", "KeyError"),
        ("raise RuntimeError('at import')", "RuntimeError: at import"),
        ("import numpy", "ModuleNotFoundError|ImportError"),
        ("class Own(Exception): pass\ndef double(x): raise Own('mine')", "CandidateError: Own: mine"),
    ],
)
def test_the_reason_says_what_the_candidate_did(code: str, reason: str) -> None:
    outcome = run(code, "assert double(2) == 4")
    assert not outcome.passed
    assert re.search(reason, outcome.reason), outcome


def test_tests_pass_functions() -> None:
    code = "def double(function, values):\n    return [function(function(value)) for value in values]"
    assert run(code, "assert double(lambda number: 2 * number, [1, 2]) == [4, 8]").passed
    assert not run(code, "assert double(lambda number: 1 / 0, [1, 2]) == [4, 8]").passed


def test_tests_name_arguments() -> None:
    assert run("def double(x, *, times=2): return times * x", "assert double(x=2, times=3) == 6").passed


def test_tests_compare_floats() -> None:
    code = "def double(x): return 2 * x + 1e-9"
    assert run(code, "import math\nassert math.isclose(double(0.1), 0.2, rel_tol=1e-6)").passed
    assert not run(code, "assert double(0.1) == 0.2").passed


def test_tests_expect_exceptions() -> None:
    tests = "try:\n    double(None)\n    assert False\nexcept TypeError:\n    pass\nassert double(1) == 2"
    assert run(DOUBLE, tests).passed
    assert not run("def double(x): return 2", tests).passed


def test_tests_that_never_call_the_candidate_do_not_pass() -> None:
    assert run(DOUBLE, "assert True").reason == "the tests never called the candidate"


def test_the_candidate_may_print_and_read_nothing() -> None:
    assert run(f"print('hello')\nimport sys\nassert sys.stdin.read() == ''\n{DOUBLE}", "assert double(2) == 4").passed


def test_hashes_are_the_same_in_every_run() -> None:
    code = "def double(x): return hash(x)"
    assert run(code, "assert double('a') == hash('a')").passed


def test_a_candidate_may_use_dataclasses_and_its_own_temporary_files() -> None:
    code = (
        "from __future__ import annotations\nimport tempfile\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Pair:\n    left: int\n    right: int\n"
        "def double(x):\n    with tempfile.TemporaryFile('w+') as file:\n        file.write(str(Pair(x, x).left * 2))\n"
        "        file.seek(0)\n        return int(file.read())"
    )
    assert run(code, "assert double(2) == 4").passed


def test_humanevals_form_calls_check() -> None:
    task = Task(
        task_id="Own/0",
        form="humaneval",
        prompt="def double(x):\n",
        entry_point="double",
        tests="def check(candidate):\n    assert candidate(2) == 4\n",
        solution="    return 2 * x\n",
        helpers="def double(x): pass",
    )
    outcomes = as_user("an ordinary user", lambda: [run_task(task, code) for code in (task.solution, "    return x\n")])
    assert [outcome.passed for outcome in outcomes] == [True, False]


VALUES = [
    None, True, 0, -1, 2**63, -(2**200), 10**5000, 0.1, -0.0, math.inf, "", "ä\ud800\n", b"\x00\xff", 1 + 2j,
    [1, [2]], (1, (2,)), {1, 2}, frozenset({(1, 2)}), {"a": 1, (1, 2): [3]}, [], (), set(), {}, {None: {True: 0.5}},
    int, str, bool,
]  # fmt: skip


def refuse(value: Any) -> Any:
    raise TypeError(value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20] if value != 10**5000 else "10**5000")
def test_plain_data_comes_back_as_it_was(value: object) -> None:
    found = decode(encode(value, refuse), refuse)
    assert found == value
    assert type(found) is type(value)


def test_nan_comes_back() -> None:
    assert math.isnan(decode(encode(math.nan, refuse), refuse))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(int, a=1), {"a": 1}),
        (namedtuple("Point", "x y")(1, 2), (1, 2)),
        (type("Own", (int,), {"__pos__": lambda self: 5})(3), 3),
        (type("Own", (str,), {"__str__": lambda self: "no"})("yes"), "yes"),
    ],
)
def test_a_subclass_becomes_its_builtin_type(value: object, plain: object) -> None:
    found = decode(encode(value, refuse), refuse)
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize(
    "data",
    [
        {}, {"a": 1, "b": 2}, {"eval": "1"}, {"int": 5}, {"int": "x"}, {"dict": 5}, {"dict": [[1]]}, {"set": [[1]]},
        {"dict": [[[1], 2]]}, {"tuple": 5}, {"bytes": "x"}, {"complex": [1]}, {"object": "a"}, {"object": True},
        {"type": "eval"}, {"type": []},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_value_is_refused(data: object) -> None:
    with pytest.raises(WireError):
        decode(data, lambda number: None)


@pytest.mark.parametrize("name", ["wall_seconds", "memory_bytes", "output_bytes"])
def test_limits_are_greater_than_zero(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})


def test_it_refuses_without_bubblewrap(nothing_found: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "_binaries", list)
    with pytest.raises(UnusableInput, match=r"bubblewrap is missing.*apt install bubblewrap"):
        check_available()
    with pytest.raises(UnusableInput, match="bubblewrap is missing"):
        run_task(double("assert True"), DOUBLE)


def test_it_refuses_where_the_kernel_forbids_namespaces(nothing_found: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        refusing = Path(folder) / "bwrap"
        refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
        refusing.chmod(0o755)
        monkeypatch.setattr(bubblewrap, "_binaries", lambda: [str(refusing)])
        with pytest.raises(UnusableInput, match=r"(?s)No permissions to create new namespace.*user namespaces"):
            check_available()


@pytest.mark.parametrize(("name", "path"), [("bwrap", "/nowhere/bwrap"), ("interpreter", "/usr/lib")])
def test_a_sandbox_that_does_not_start_is_no_failure_of_the_candidate(
    monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    found = as_user("root" if os.geteuid() == 0 else "an ordinary user", check_available)
    monkeypatch.setattr(run_module, "check_available", lambda: replace(found, **{name: path}))
    with pytest.raises(UnusableInput, match=r"did not start \(.+\)|bubblewrap ended \(.+\)"):
        run_task(double("assert double(2) == 4"), DOUBLE)


def test_nothing_stays_open_and_no_process_is_left() -> None:
    def counts() -> list[int]:
        numbers = []
        for _ in range(5):
            run_task(double("assert double(2) == 4"), DOUBLE)
            numbers.append(len(list(Path("/proc/self/fd").iterdir())) + len(children()))
        return numbers

    assert len(set(as_user("an ordinary user", counts))) == 1


def children() -> list[str]:
    """Processes that this one started, zombies included."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_it_refuses_on_other_systems_and_machines(nothing_found: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UnusableInput, match="no seccomp filter for 'riscv64'"):
        check_available()
    monkeypatch.setattr(bubblewrap.sys, "platform", "darwin")
    bubblewrap._found.cache_clear()
    with pytest.raises(UnusableInput, match="needs Linux"):
        check_available()


def test_it_says_which_memory_limit_is_in_force() -> None:
    sandbox = Sandbox(bwrap="/usr/bin/bwrap", interpreter="/usr/bin/python3", libraries=(), cgroup=None)
    assert "rlimits only" in sandbox.describe()


def decide(program: bytes, number: int, architecture: int, argument: int = 0) -> int:
    """Run a filter as the kernel does."""
    steps = list(struct.iter_unpack("=HBBI", program))
    data = struct.pack("=IIQQQ", number, architecture, 0, argument, argument)
    place, held = 0, 0
    while True:
        code, if_true, if_false, value = steps[place]
        place += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (held,) = struct.unpack_from("=I", data, value)
        else:
            holds = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
            place += if_true if holds else if_false


EPERM, ENOSYS = 0x50001, 0x50026


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_denies_what_it_names_and_nothing_else(machine: str, column: int) -> None:
    program = filter_program(machine)
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    denied = {numbers[column] for numbers in DENIED.values()} | (
        set(DENIED_ON_X86_64.values()) if not column else set()
    )
    clone, clone3, socket, ioctl = [(56, 435, 41, 16), (220, 435, 198, 29)][column]
    for number in range(460):
        if number not in (clone3, socket):
            assert decide(program, number, architecture) == (EPERM if number in denied else ALLOW), number
    assert decide(program, clone, architecture, 0x11) == ALLOW
    assert {decide(program, clone, architecture, 0x11 | 1 << bit) for bit in (17, 25, 26, 27, 28, 29, 30)} == {EPERM}
    assert decide(program, clone3, architecture) == ENOSYS
    assert [decide(program, socket, architecture, family) for family in (1, 2, 10, 16, 38, 40)] == [ALLOW] + [EPERM] * 5
    assert [decide(program, ioctl, architecture, request) for request in (0x5401, 0x5412, 0x541C)] == [
        ALLOW, EPERM, EPERM,
    ]  # fmt: skip
    assert decide(program, 0, 0x40000003) == KILL
    assert decide(program, 0x40000000, architecture) == (ALLOW if column else EPERM)


@pytest.mark.parametrize(
    ("header", "column", "prefix"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0, "__NR_"), ("/usr/include/asm-generic/unistd.h", 1, "__NR_")],
)
def test_the_numbers_are_the_kernels(header: str, column: int, prefix: str) -> None:
    if not Path(header).is_file():
        pytest.skip(f"{header} is not there")
    known = dict(re.findall(rf"^#define {prefix}(\w+)\s+(\d+)$", Path(header).read_text(), re.M))
    numbers = {name: pair[column] for name, pair in DENIED.items()} | (DENIED_ON_X86_64 if not column else {})
    assert {name: int(known.get(name, number)) for name, number in numbers.items()} == numbers
    assert len(set(numbers) & set(known)) > 50


def delegated(folder: Path, *, own: str, controllers: str) -> tuple[Path, Path]:
    """A folder like a cgroup file system, whose group `service` is delegated, and the two files of /proc."""
    for group in (folder / "service", folder / "service" / "main"):
        group.mkdir(parents=True)
        (group / "cgroup.procs").write_text("")
        (group / "cgroup.subtree_control").write_text("")
    (folder / "service" / "cgroup.subtree_control").write_text(controllers)
    (folder / "own").write_text(f"4:memory:/x\n0::{own}\n")
    (folder / "mounts").write_text(f"proc /proc proc rw 0 0\ncgroup2 {folder} cgroup2 rw 0 0\n")
    return folder / "own", folder / "mounts"


def test_a_delegated_cgroup_is_used(tmp_path: Path) -> None:
    assert memory_parent(*delegated(tmp_path, own="/service/main", controllers="cpu memory\n")) == tmp_path / "service"


def test_a_cgroup_without_the_memory_controller_is_not_used(tmp_path: Path) -> None:
    assert memory_parent(*delegated(tmp_path, own="/service/main", controllers="cpu pids\n")) is None
    (tmp_path / "mounts").write_text("proc /proc proc rw 0 0\n")
    assert memory_parent(tmp_path / "own", tmp_path / "mounts") is None
    assert memory_parent(tmp_path / "missing", tmp_path / "mounts") is None


def test_a_memory_group_has_the_limits_and_takes_a_process(tmp_path: Path) -> None:
    group = MemoryGroup(tmp_path, Limits(memory_bytes=64 * MIB))
    group.add(123)
    assert (group.path / "memory.max").read_text() == f"{64 * MIB}\n"
    assert (group.path / "memory.oom.group").read_text() == "1\n"
    assert (group.path / "cgroup.procs").read_text() == "123\n"
