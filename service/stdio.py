"""The process' own stdout and stderr: closed ones, and those that cannot show every character."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def prepare() -> None:
    """Make stdin, stdout and stderr usable, whatever the process was started with.

    A closed one leads nowhere: otherwise the next file that is opened would take its number. A character that stdout's
    encoding does not have becomes a question mark.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            while os.open(os.devnull, os.O_RDWR) < number:
                pass
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def give_up(stream: TextIO | None) -> None:
    """Lead a stream to nowhere after its reader has gone, so that later writes do not fail."""
    try:
        target = stream.fileno() if stream is not None else -1
    except (OSError, ValueError):  # not a real file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, target)
    os.close(nowhere)
