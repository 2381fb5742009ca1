"""Returns memory to the system after a claim or verdict, because the trainer needs it."""

from __future__ import annotations

import ctypes

_C_LIBRARY = ctypes.CDLL(None)


def give_back() -> None:
    """Return free pages to the system with glibc's malloc_trim(3). Does nothing elsewhere.

    malloc keeps free memory below a block that is still in use. Without trimming, it grows from claim to claim.
    """
    if trim := getattr(_C_LIBRARY, "malloc_trim", None):
        trim(0)
