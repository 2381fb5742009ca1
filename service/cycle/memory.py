"""Memory that a claim or a verdict took goes back to the system: for hours the trainer is the one who needs it."""

from __future__ import annotations

import ctypes

_C_LIBRARY = ctypes.CDLL(None)


def give_back() -> None:
    """Give back the pages that nothing lies in any more (glibc's malloc_trim(3); elsewhere nothing happens).

    malloc keeps what was freed below something that is still in use, and with every claim of another shape there is
    more of that.
    """
    if trim := getattr(_C_LIBRARY, "malloc_trim", None):
        trim(0)
