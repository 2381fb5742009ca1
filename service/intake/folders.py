"""Reads files, folders and git checkouts as rows: which files they have, and which are passed over."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from db.files import NewFile
from service.intake.fields import stored
from service.intake.formats import PassedOver, Skipped
from service.intake.git import git_fields, is_git_layout
from service.intake.languages import language
from service.intake.names import refused_name
from service.intake.records import Given
from service.intake.source_texts import UNKNOWN, can_be_source, is_notebook, source_text
from service.source_files import FolderKind, is_vendored, kind_below, plain

MAX_FILE_BYTES = 2_000_000
MAX_NOTEBOOK_BYTES = 50_000_000
"""A notebook may be larger than its code: it holds pictures."""
FIRST_BYTES = 4096
"""Bytes to read of a file whose name gives no language, to detect the language from its text."""
VENDORED = "vendored"
ENVIRONMENTS = frozenset({"pyvenv.cfg", "conda-meta"})
"""What a Python environment has at its top, whatever its name."""
OURS = "instance-id"
"""What the folder of a service or a training has at its top. Its runs hold copies of rows, held-out ones as well."""


def files_of(
    root: Path, on_error: Callable[[OSError], None], *, is_checkout: bool, given: Given
) -> Iterator[str | PassedOver]:
    """Yield the names of the files and nested checkouts of a folder, or why one is passed over. Both are sorted.

    In a checkout, what git tracks is the project's own, wherever it is.
    """
    for name, vendored in _tracked(root) if is_checkout else _walk(root, on_error):
        if vendored and not given.include_vendored:
            yield PassedOver(name=stored(name), reason=VENDORED)
        else:
            yield name


def _tracked(root: Path) -> Iterator[tuple[str, bool]]:
    """Yield tracked files, then untracked files that .gitignore does not exclude, and whether they are vendored."""
    for which in (["--cached"], ["--others", "--exclude-standard"]):
        names = [os.fsdecode(name).rstrip("/") for name in git_fields(root, "ls-files", "-z", *which)]
        ours = tuple(name.removesuffix(OURS) for name in names if name.endswith(f"/{OURS}"))
        for name, _ in itertools.groupby(names):
            if name and os.path.lexists(root / name):
                yield name, which[0] == "--others" and (is_vendored(name) or name.startswith(ours))


def _walk(root: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, bool]]:
    """Yield the files below a folder, nested checkouts and bare repositories, and whether they are vendored."""
    kinds: dict[str, FolderKind] = {}
    for folder, folders, files in os.walk(root, onerror=on_error):
        here, kind = Path(folder), kinds.pop(folder, "open")
        if folder != str(root):
            if "__init__.py" in files and kind == "open":  # a Python package, which may be named `build`
                kind = "sources"
            is_foreign = OURS in files or ENVIRONMENTS.intersection([*files, *folders])
            kind = "vendored" if is_foreign else kind_below(kind, here.name)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        inner = {name: here / name for name in folders}
        checkouts = {name for name, path in inner.items() if os.path.lexists(path / ".git") or is_git_layout(path)}
        folders[:] = [name for name in folders if name not in checkouts]
        kinds |= {os.path.join(folder, name): kind for name in folders}  # noqa: PTH118 - as os.walk joins them
        within = here.relative_to(root)
        for name in sorted([*files, *checkouts]):
            yield (within / name).as_posix(), (kind_below(kind, name) if name in checkouts else kind) == "vendored"


def new_file(path: Path, given: Given, *, repository: str, name: str, commit: str | None = None) -> NewFile | Skipped:
    """Return a file as a row, or the reason why it is skipped."""
    try:
        if path.is_symlink():
            return "symlink"
        if (refused := refused_name(name)) is not None:
            return refused
        if not path.is_file():
            return "not a file"
        known = can_be_source(name)
        if not known and (known is False or not _may_be_script(path)):
            return UNKNOWN
        if path.stat().st_size > (MAX_NOTEBOOK_BYTES if is_notebook(name) else MAX_FILE_BYTES):
            return f"over {MAX_NOTEBOOK_BYTES if is_notebook(name) else MAX_FILE_BYTES:,} bytes"
        found = source_text(name, path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if isinstance(found, str):
        return found
    spoken, content = found
    return NewFile(
        repository=stored(repository),
        path=stored(name),
        language=spoken,
        content=content,
        quality_score=given.score_of(content),
        commit_sha=commit,
        phase=given.phase,
    )


def _may_be_script(path: Path) -> bool:
    """Whether to look for a language in the text: only a file without an extension can be a script."""
    if path.suffix:
        return False
    with path.open("rb") as file:
        return language(path.name, plain(file.read(FIRST_BYTES).decode("utf-8", "replace"))) is not None
