"""The result of a check of this machine. (no torch)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "failed"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    check: str
    state: State
    """`note`: not a failure, but worth knowing."""
    said: str
    mend: str | None = None
    """For a failure: the command that fixes it."""
