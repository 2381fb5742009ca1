"""Returns freed memory to the system after a claim or a verdict. For the next hours the trainer needs it."""

from __future__ import annotations

import ctypes

_C_LIBRARY = ctypes.CDLL(None)


def return_freed_memory() -> None:
    """Return unused pages to the system with glibc's malloc_trim(3). Does nothing where the C library has no such call.

    malloc keeps freed memory that lies below memory still in use. Without this call, every claim of another shape
    leaves more of it.
    """
    if trim := getattr(_C_LIBRARY, "malloc_trim", None):
        trim(0)
