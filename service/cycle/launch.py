"""Starts, watches and stops trainer processes. Their environment is an allow-list without database or token."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from trainer.run_dir import RunDirectory

PROJECT = Path(__file__).resolve().parents[2]
TRAINER = (sys.executable, "-m", "trainer")

WATCH_SECONDS = 0.25
STOP_GRACE_SECONDS = 60.0
"""Time for a trainer to write its checkpoint before it is killed. Otherwise the last checkpoint is used."""

PASSED_ON = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LC_ALL",
        "TZ",
        "TMPDIR",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "XDG_CACHE_HOME",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "HF_HUB_DISABLE_XET",
        "TRANSFORMERS_OFFLINE",
        "WANDB_BASE_URL",
        "WANDB_ENTITY",
        "WANDB_DIR",
        "WANDB_CACHE_DIR",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NCCL_DEBUG",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    ]
)


def trainer_environment(environment: Mapping[str, str], secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a trainer process."""
    passed = {name: value for name, value in environment.items() if name in PASSED_ON and value}
    quiet = {} if sys.stderr.isatty() else {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**passed, **secrets, **quiet, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


class TrainerProcess:
    """One `python -m trainer run` or `examine`, in its own session.

    The trainer ends when its stdin closes, so it never outlives a killed service.
    """

    def __init__(
        self,
        run: RunDirectory,
        secrets: Mapping[str, str],
        command: Literal["run", "examine"] = "run",
        *,
        waits: bool = False,
    ) -> None:
        """Start the process. One that `waits` imports its libraries, and does nothing more before `begin()`."""
        self.run = run
        with run.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*TRAINER, command, str(run.root), *(["--wait"] if waits else [])],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=PROJECT,
                env=trainer_environment(os.environ, secrets),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self) -> bool:
        """Tell a process that waits to begin. Returns False if it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return self._process.poll() is None

    def wait(self, seconds: float) -> int | None:
        """Wait up to `seconds`. Return the exit code (negative: a signal), or None if the trainer still runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_stop(self) -> None:
        """Ask for a checkpoint and exit code 75."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process group at once. Checkpoints stay."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return  # it ended just now


def watch_to_end(process: TrainerProcess, must_stop: Callable[[], bool], each_moment: Callable[[], None]) -> int | None:
    """Wait for a trainer and call `each_moment` meanwhile. If that fails, kill the trainer.

    Returns:
        The exit code, or None if the trainer was stopped because `must_stop` said so.
    """
    try:
        while (code := process.wait(WATCH_SECONDS)) is None:
            each_moment()
            if must_stop():
                process.ask_to_stop()
                deadline = time.monotonic() + STOP_GRACE_SECONDS
                while process.wait(WATCH_SECONDS) is None:
                    each_moment()
                    if time.monotonic() > deadline:
                        process.kill()
                return None
    except BaseException:
        process.kill()
        raise
    return code
