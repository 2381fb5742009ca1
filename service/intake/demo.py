"""The demo corpus: the interpreter's standard library, inserted in batches."""

from __future__ import annotations

import hashlib
import sysconfig
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from db.chunks import count
from db.files import NewFile, insert_files, known_paths
from db.pool import Pool
from db.source import Eligibility, Source, is_empty
from service.intake.folders import new_file
from service.intake.records import Given
from service.settings.load import Settings

REPOSITORY = "python-standard-library"
BATCHES = 3
MOST_FILES = 300
LEFT_OUT = frozenset({"test", "tests", "site-packages", "__pycache__", "idlelib", "lib2to3", "turtledemo"})


def demo_files(eligibility: Eligibility) -> Iterator[NewFile]:
    """Yield standard library files of an eligible length, in a fixed order.

    The tiny base was pre-trained on one half of them (first byte of sha256(path) even). That half is left out, so that
    the held-out loss is meaningful.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        digest = hashlib.sha256(name.encode()).digest()
        if digest[0] % 2 == 1 and not LEFT_OUT & set(path.relative_to(root).parts):
            found.append((digest, path, name))
    for _, path, name in sorted(found):
        file = new_file(path, Given(score=100.0), repository=REPOSITORY, name=name)
        if isinstance(file, NewFile) and eligibility.min_chars <= len(file.content) <= eligibility.max_chars:
            yield file


def wanted(pool: Pool, source: Source) -> bool:
    """Whether the table is empty, or an earlier demo was interrupted."""
    return source.name == "code_files" and (is_empty(pool, source) or bool(known_paths(pool, REPOSITORY)))


def feed(
    pool: Pool,
    settings: Settings,
    stop: threading.Event,
    on_batch: Callable[[int, int], None],
) -> None:
    """Insert the missing files batch by batch.

    A batch follows when the previous one is claimed: fewer rows are pending than a run needs.
    """

    def is_claimed() -> bool:
        waiting = count(pool, settings.source, settings.eligibility, settings.recipe.stream)
        return waiting < settings.min_new_files

    known = known_paths(pool, REPOSITORY)
    corpus = list(islice(demo_files(settings.eligibility), MOST_FILES))
    files = [file for file in corpus if file.path not in known]
    batch_files = -(-len(corpus) // BATCHES)
    for start in range(0, len(files), batch_files):
        while start and not stop.is_set() and not is_claimed():
            stop.wait(1.0)
        if stop.is_set():
            return
        batch = files[start : start + batch_files]
        insert_files(pool, batch)
        on_batch(start // batch_files + 1, len(batch))
