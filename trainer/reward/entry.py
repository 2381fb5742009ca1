"""The command `python -m trainer reward`: its arguments and its exit code. (no torch)"""

from __future__ import annotations

import argparse
from typing import Any

from trainer.errors import Stopped, TrainerError
from trainer.imports import import_trainer, set_up_torch
from trainer.reward.request import add_arguments, request_from
from trainer.stop import StopRequest, write_stderr


def add_reward(commands: Any) -> None:
    """Add the command to a parser's commands."""
    add_arguments(commands.add_parser("reward", help="train on tasks: run the model's own answers in the sandbox"))


def reward_command(chosen: argparse.Namespace) -> int:
    """Train on rewards. Returns 75 if it was stopped; the same command goes on."""
    set_up_torch()
    stop = StopRequest()
    try:
        stop.listen()
        import_trainer()  # takes seconds; requests to stop already work
        from trainer.reward import command

        command.reward_command(request_from(chosen), stop)
        return 0
    except Stopped as stopped:
        write_stderr(f"stopped: {stopped}. The same command goes on from here")
        return stopped.exit_code
    except TrainerError as error:
        write_stderr(str(error))
        return error.exit_code
