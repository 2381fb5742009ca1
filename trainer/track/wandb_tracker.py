"""Sends a run to Weights & Biases: online with WANDB_API_KEY, into files with WANDB_MODE=offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trainer.recipe import Recipe
from trainer.run_dir import RunDirectory
from trainer.track.prediction import Prediction
from trainer.track.wandb_run import COLUMNS, init_arguments, table_rows, wandb_folder

PROGRAM = Path(__file__).with_name("wandb_process.py")
OPEN_SECONDS = 20.0
"""How long the server may take to begin a run."""
FINISH_SECONDS = 7.0
"""How long the rest may take at the end of a training. The run waits a little longer, so that nothing is lost."""
LEAST_FREE_BYTES = 1 << 20
"""With less, wandb loses entries without a word."""

Mode = Literal["online", "offline"]


def wandb_mode(environment: Mapping[str, str]) -> Mode | None:
    """Return W&B's mode, or None if it is disabled (no key, or WANDB_MODE=disabled)."""
    match environment.get("WANDB_MODE", "").strip().lower():
        case "offline" | "dryrun":
            return "offline"
        case "disabled":
            return None
        case _:
            return "online" if environment.get("WANDB_API_KEY", "").strip() else None


class WandbBackend:
    """One W&B run. It keeps its id, so a resumed training continues it."""

    def __init__(
        self,
        recipe: Recipe,
        run_directory: RunDirectory,
        *,
        run_name: str,
        mode: Mode,
        environment: Mapping[str, str],
        facts: Mapping[str, Any] | None = None,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        self._directory = run_directory
        self._root = run_directory.root.absolute()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
            # Files that wait for an upload belong to the run. The user's home may be read-only, or emptied before.
            "WANDB_DATA_DIR": str(wandb_folder(run_directory) / "data"),
            "WANDB_CACHE_DIR": str(wandb_folder(run_directory) / "cache"),
            **environment,
            "PYTHONUNBUFFERED": "1",
        }
        self._recipe, self._run_name, self._mode, self._facts = recipe, run_name, mode, facts
        self._finish_seconds = finish_seconds
        self._process: subprocess.Popen[str] | None = None
        self._abandoned = False

    def open(self) -> str | None:
        """Begin or resume the run. If the server does not take it, the run is written to files."""
        before = self._online_folders()
        try:
            self._start(self._mode)
            return None
        except Exception as error:
            if self._mode == "offline" or self._abandoned:
                raise
            for begun in self._online_folders() - before:  # nothing is in it, and `wandb sync` fails with it
                shutil.rmtree(begun, ignore_errors=True)
            self._start("offline")
            return (
                f"the run is written to files, because the server does not take it ({error}). "
                "Send it later with `codelupe wandb-sync`"
            )

    def _start(self, mode: Mode) -> None:
        arguments = init_arguments(self._recipe, self._directory, run_name=self._run_name, mode=mode, facts=self._facts)
        with (self._root / "wandb.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8",
                env=self._environment, cwd=self._root,
                start_new_session=True,  # still sends the last curves after Ctrl-C
            )  # fmt: skip
        if self._abandoned:  # abandoned during the start
            self._process.kill()
        try:
            self._ask("open", seconds=OPEN_SECONDS, finish_seconds=self._finish_seconds, **arguments)
        except Exception:
            self._kill()
            raise

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._ask("log", step=step, values=dict(values))

    def predictions(self, step: int, records: Sequence[Prediction]) -> None:
        self._ask("predictions", step=step, columns=COLUMNS, rows=table_rows(self._directory, list(records)))

    def texts(self, step: int, values: Mapping[str, str]) -> None:
        self._ask("summary", values=dict(values))

    def artifact(self, **what: Any) -> None:
        """Log an adapter's folder (see `wandb_process._log_artifact`)."""
        self._ask("artifact", **what)

    def close(self) -> None:
        try:
            self._ask("finish")
        except RuntimeError as error:
            raise RuntimeError(f"{error}. `codelupe wandb-sync` sends the rest later") from error
        assert self._process is not None
        self._process.wait()

    def abandon(self) -> None:
        """Kill the process. wandb's own helper ends with it."""
        self._abandoned = True
        self._kill()

    def _online_folders(self) -> set[Path]:
        return set((self._root / "wandb").glob("run-*"))

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _ask(self, action: str, **details: Any) -> None:
        """Send one command and wait for its answer without a limit, because this is the tracker's thread."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"action": action, **details}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the W&B process has ended. See {self._root / 'wandb.log'}")
        if error := json.loads(line).get("error"):
            raise RuntimeError(error)
        if shutil.disk_usage(self._root / "wandb").free < LEAST_FREE_BYTES:
            raise OSError(f"the disk of {self._root / 'wandb'} is full. W&B loses what it cannot write there")
