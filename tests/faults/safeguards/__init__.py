"""The list of the program's safeguards. Each names the test that fails when the safeguard is removed.

Row 19 removes them one at a time. It matches earlier results by title, so a safeguard with a new title is tried again.

Some safeguards are not listed, because no test can notice their removal:

- the fsyncs: only a power cut shows the difference
- TCP keepalives: the sentinel acts first
- `flock` around the swap of the pointer: only one service writes, and the swap is a single rename
- the index that allows a stream one current adapter: the statement before each insertion retires the old one
"""

from __future__ import annotations

from safeguards import (
    announced,
    columns,
    commands,
    database,
    fused,
    limits,
    live_adapter,
    long_texts,
    lost_rows,
    neighbours,
    one_writer,
    ranks,
    running,
    settings,
    shared_packs,
    trained_twice,
    versions,
)
from safeguards.mutant import Mutant

__all__ = ["MUTANTS", "Mutant"]

MODULES = (
    one_writer,
    lost_rows,
    trained_twice,
    limits,
    live_adapter,
    running,
    database,
    long_texts,
    versions,
    settings,
    columns,
    announced,
    commands,
    neighbours,
    ranks,
    fused,
    shared_packs,
)
MUTANTS: dict[str, Mutant] = {title: mutant for module in MODULES for title, mutant in module.MUTANTS.items()}
"""The safeguards by title."""
