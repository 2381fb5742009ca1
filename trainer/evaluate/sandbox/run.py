"""Runs one task: candidate and tests in a sandbox each, and the verdict from outside.

    trainer ──▶ tests' sandbox ──calls──▶ candidate's sandbox
       ▲           │      ▲──────answers──────┘
       └──verdict──┘

The candidate's process holds nothing but its own code, and can only answer. The tests' process sees its answers as
plain data, decides, and writes the verdict with a token that the candidate's process never sees.
"""

from __future__ import annotations

import hmac
import json
import secrets
import selectors
import time
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from typing import Any

from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.bubblewrap import check_available
from trainer.evaluate.sandbox.limits import Limits, Outcome
from trainer.evaluate.sandbox.process import Guest, pipe
from trainer.evaluate.suites import Task

CHUNK_BYTES = 65536
LONGEST_VERDICT_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the tests' process said, or why it said nothing."""

    passed: bool
    reason: str


def run_task(task: Task, completion: str, limits: Limits | None = None) -> Outcome:
    """Run a task's tests against what a model wrote.

    Several threads may call this at once. A thread that ends before its call returns kills its sandboxes.

    Raises:
        UnusableInput: the sandbox does not start. The candidate is not judged then.
    """
    limits = limits or Limits()
    sandbox = check_available()
    start = time.monotonic()
    with ExitStack() as owner:
        token = secrets.token_hex(32)
        read_calls, write_calls = pipe(owner)
        read_answers, write_answers = pipe(owner)
        verdict, write_verdict = pipe(owner)
        ends = {"read_from": read_calls, "write_to": write_answers}
        job: dict[str, Any] = {"code": task.program(completion)}
        candidate = owner.enter_context(Guest(sandbox, limits, "candidate_side", job, ends))
        ends = {"read_from": read_answers, "write_to": write_calls, "verdict": write_verdict}
        job = {
            "helpers": task.helpers,
            "tests": task.tests,
            "entry_point": task.entry_point,
            "check": task.form == "humaneval",
            "token": token,
            "answer_bytes": limits.answer_bytes,
        }
        tests = owner.enter_context(Guest(sandbox, limits, "tests_side", job, ends))
        candidate.wait_started()
        tests.wait_started()
        found = _watch(verdict, {candidate.output: "candidate", tests.output: "tests"}, token, limits)
    return Outcome(passed=found.passed, reason=found.reason, seconds=time.monotonic() - start)


def _watch(verdict: FileIO, outputs: dict[FileIO, str], token: str, limits: Limits) -> Verdict:
    """Wait for the verdict, and for a limit to be exceeded."""
    deadline = time.monotonic() + limits.wall_seconds
    printed = dict.fromkeys(outputs, 0)
    text = b""
    with selectors.DefaultSelector() as selector:
        for file in (verdict, *outputs):
            selector.register(file, selectors.EVENT_READ)
        while not text.endswith(b"\n"):
            if (left := deadline - time.monotonic()) <= 0:
                return Verdict(passed=False, reason=f"no verdict after {limits.wall_seconds:g} s")
            for key, _ in selector.select(left):
                file = next(file for file in (verdict, *outputs) if file is key.fileobj)
                part = file.read(CHUNK_BYTES)
                if not part:
                    selector.unregister(file)
                if file is verdict:
                    text += part
                    if not part or len(text) > LONGEST_VERDICT_BYTES:
                        return Verdict(passed=False, reason="the tests ended without a verdict")
                else:
                    printed[file] += len(part)
                    if printed[file] > limits.output_bytes:
                        reason = f"the {outputs[file]} printed more than {limits.output_bytes} bytes"
                        return Verdict(passed=False, reason=reason)
    return _parse(text, token)


def _parse(text: bytes, token: str) -> Verdict:
    """Read the verdict. Only who knows the token may give one."""
    try:
        message = json.loads(text)
        valid = hmac.compare_digest(message["token"], token)
        reason = str(message["reason"])
    except (ValueError, KeyError, TypeError) as error:
        raise UnusableInput("the tests wrote something else than a verdict. Check the benchmark's tests") from error
    if not valid:
        return Verdict(passed=False, reason="the verdict has a wrong token")
    return Verdict(passed=not reason, reason=reason)
