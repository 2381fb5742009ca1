"""The W&B process of `wandb_tracker`. Reads one JSON command per line, and writes one JSON answer per line.

It is a separate process that can be killed, because wandb's exit hooks wait minutes for an unreachable server.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any, TextIO

ORPHAN_SECONDS = 30


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
                    settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
                    run = wandb.init(**command, settings=settings)
                case "log":
                    run.log(command["values"], step=command["step"])
                case "predictions":
                    table = wandb.Table(columns=command["columns"], data=command["rows"])
                    run.log({"predictions": table}, step=command["step"])
                case "finish":
                    run.finish()
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
        run.finish(exit_code=1)


if __name__ == "__main__":
    replies, sys.stdout = sys.stdout, sys.stderr  # wandb's output must not be read as an answer
    serve(sys.stdin, replies)
