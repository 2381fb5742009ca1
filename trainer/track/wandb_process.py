"""The W&B process of `wandb_tracker`. Reads one JSON command per line, and writes one JSON answer per line.

It is a separate process that can be killed, because wandb's exit hooks wait minutes for an unreachable server.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

ORPHAN_SECONDS = 30
STEP = "step"
"""The x axis of all curves. W&B's own count is wrong after a kill: the steps since the last checkpoint are done again,
and `wandb sync` numbers them as new ones."""


def serve(commands: TextIO, answers: TextIO) -> None:
    """Answer commands until `finish` or the end of the input."""
    import wandb

    run: Any = None
    for line in commands:
        command: dict[str, Any] = json.loads(line)
        action = command.pop("action")
        try:
            match action:
                case "open":
                    run = _open(wandb, **command)
                case "log":
                    run.log({**command["values"], STEP: command["step"]}, step=command["step"])
                case "predictions":
                    table = wandb.Table(columns=command["columns"], data=command["rows"], log_mode="MUTABLE")
                    run.log({"predictions": table, STEP: command["step"]}, step=command["step"])
                case "summary":
                    run.summary.update(command["values"])
                case "artifact":
                    _log_artifact(wandb, run, **command)
                case "finish":
                    _finish(run)
                case _:
                    raise ValueError(f"unknown action {action!r}")
            answer: dict[str, str] = {}
        except Exception as error:  # noqa: BLE001 - any error of wandb is reported to the parent
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
        if action == "finish":
            return
    # The trainer has died. Nothing else would end this process if wandb hung now.
    signal.alarm(ORPHAN_SECONDS)
    if run is not None:
        _finish(run, exit_code=1)


def _open(wandb: Any, seconds: float, finish_seconds: float, **arguments: Any) -> Any:
    """Begin or resume the run. Our readings of the machine replace W&B's own.

    Args:
        seconds: how long the server may take to begin it
        finish_seconds: how long the upload of the rest may take. What is left stays on the disk
    """
    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True,
        init_timeout=seconds, finish_timeout=finish_seconds, finish_timeout_raises=True,
    )  # fmt: skip
    run = wandb.init(**arguments, settings=settings, allow_val_change=True)
    run.define_metric(STEP, hidden=True)
    run.define_metric("*", step_metric=STEP)
    return run


def _finish(run: Any, exit_code: int = 0) -> None:
    """Send what is left. Online, leave the mark of `wandb sync`: everything has arrived."""
    file, online = Path(run.settings.sync_file), not run.offline
    run.finish(exit_code=exit_code)
    if online:
        file.with_suffix(".wandb.synced").touch()


def _log_artifact(
    wandb: Any, run: Any, *, name: str, folder: str, metadata: Mapping[str, Any], aliases: Sequence[str],
    parent: str | None, upload: bool,
) -> None:  # fmt: skip
    """Log an adapter's folder, and say which artifact it was trained on from."""
    artifact = wandb.Artifact(name, type="model", metadata=dict(metadata))
    if upload:
        artifact.add_dir(folder, policy="immutable", skip_cache=True)  # a copy would double what it takes on the disk
    else:
        artifact.add_reference(Path(folder).as_uri())
    if parent is not None and not run.offline:
        try:
            run.use_artifact(f"{name}:{parent}")
        except Exception as error:  # noqa: BLE001 - a parent that was never sent is no reason to lose the child
            print(f"{name}:{parent} is not shown as its parent: {error}", file=sys.stderr)
    run.log_artifact(artifact, aliases=list(aliases))


if __name__ == "__main__":
    replies, sys.stdout = sys.stdout, sys.stderr  # wandb's output must not be read as an answer
    serve(sys.stdin, replies)
