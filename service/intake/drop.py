"""Files, folders, git checkouts and JSONL into code_files; says what was passed over and why. Safe to repeat."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from db.pool import Pool
from db.source import NewFile, insert_files, known_files
from trainer.run_dir import content_sha256

LANGUAGES = {
    ".py": "python", ".pyi": "python", ".rs": "rust", ".go": "go", ".js": "javascript", ".mjs": "javascript",
    ".cjs": "javascript", ".jsx": "javascript", ".ts": "typescript", ".tsx": "typescript", ".java": "java",
    ".kt": "kotlin", ".scala": "scala", ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp",
    ".hh": "cpp", ".hpp": "cpp", ".cs": "csharp", ".swift": "swift", ".rb": "ruby", ".php": "php", ".pl": "perl",
    ".lua": "lua", ".r": "r", ".jl": "julia", ".hs": "haskell", ".ml": "ocaml", ".ex": "elixir", ".exs": "elixir",
    ".erl": "erlang", ".clj": "clojure", ".dart": "dart", ".zig": "zig", ".nim": "nim", ".sh": "bash",
    ".bash": "bash", ".sql": "sql", ".html": "html", ".css": "css", ".scss": "css", ".vue": "vue",
    ".proto": "protobuf", ".cmake": "cmake", ".tf": "terraform", ".asm": "assembly", ".s": "assembly",
}  # fmt: skip
"""Language by extension; a file with another one is passed over."""

KEY_FILES = ("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "credentials", "secrets", "htpasswd")
KEY_ENDINGS = (".pem", ".key", ".p12", ".pfx", ".jks", ".keystore", ".kdbx", ".asc", ".gpg")
MAX_FILE_BYTES = 2_000_000
LARGEST_SCORE = 3e38
"""Scores are stored in single precision."""
PROGRESS_EVERY = 200

Skipped = str
"""Why a file was passed over."""


@dataclass
class Summary:
    """What a drop came to."""

    inserted: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def seen(self) -> int:
        return self.inserted + self.skipped.total()


def drop_paths(
    pool: Pool,
    paths: list[Path],
    *,
    score: float,
    repository: str | None = None,
    on_progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Insert every file below `paths`. A file whose repository, path and text are there already is passed over."""
    summary = Summary()
    known: dict[str, dict[str, str]] = {}

    def fresh() -> Iterator[NewFile]:
        for found in read_paths(paths, score=score, repository=repository):
            if isinstance(found, Skipped):
                summary.skipped[found] += 1
            elif _is_known(pool, known, found):
                summary.skipped["already there"] += 1
            else:
                summary.inserted += 1
                yield found
            if summary.seen % PROGRESS_EVERY == 0:
                on_progress(summary)

    insert_files(pool, fresh())
    on_progress(summary)
    return summary


def _is_known(pool: Pool, known: dict[str, dict[str, str]], file: NewFile) -> bool:
    """Whether this text is the newest at this path; remembers it, so that a path given twice counts once."""
    repository, path = file.repository or "", file.path or ""
    if repository not in known:
        known[repository] = known_files(pool, repository)
    digest = content_sha256(file.content)
    if known[repository].get(path) == digest:
        return True
    known[repository][path] = digest
    return False


def read_paths(paths: list[Path], *, score: float, repository: str | None) -> Iterator[NewFile | Skipped]:
    """Every file below the paths, in a fixed order, or the reason why it is passed over."""
    for path in paths:
        if path.is_symlink():
            yield "symlink"
        elif path.is_dir():
            yield from _read_folder(path.resolve(), score, repository)
        elif path.suffix in (".jsonl", ".ndjson"):
            yield from _read_jsonl(path, score, repository)
        else:
            parent = path.resolve().parent
            yield new_file(path, repository=repository or parent.name, name=path.name, score=score)


def _read_folder(root: Path, score: float, repository: str | None) -> Iterator[NewFile | Skipped]:
    checkout = _git(root, "rev-parse", "--is-inside-work-tree") == "true"
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD") if checkout else None
    for name in _tracked(root) if checkout else _walk(root):
        yield new_file(root / name, repository=repository or root.name, name=name, score=score, commit=commit)


def _tracked(root: Path) -> list[str]:
    """Files that git tracks, or would: .gitignore is honoured."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or ""
    return sorted(name for name in set(listed.split("\0")) if name and (root / name).exists())


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in a folder; None without git or outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        return None
    return done.stdout.decode("utf-8", "surrogateescape").strip("\n") if done.returncode == 0 else None


def _walk(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files]
    return sorted(found)


def _read_jsonl(path: Path, score: float, repository: str | None) -> Iterator[NewFile | Skipped]:
    """One row a line: `content`, and what else there is of language, path, repository, quality_score."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                content = record["content"]
            except (ValueError, KeyError, TypeError, RecursionError):
                yield "JSONL line without a content"
                continue
            about = [record.get(name) or "" for name in ("repository", "path", "language")]
            if not all(_is_storable(text) for text in (content, *about)):
                yield "not text"
                continue
            given = record.get("quality_score")
            if isinstance(given, int | float) and not abs(given) <= LARGEST_SCORE:
                yield "quality_score out of range"
                continue
            yield NewFile(
                repository=about[0] or _stored(repository or path.stem),
                path=about[1] or _stored(f"{path.name}:{number}"),
                language=(about[2] or _language(about[1]) or "text").lower(),
                content=content,
                quality_score=float(given) if isinstance(given, int | float) else score,
            )


def new_file(
    path: Path, *, repository: str, name: str, score: float | None, commit: str | None = None
) -> NewFile | Skipped:
    """One file as a row, or the reason why it is passed over. `score` None: the highest, 100."""
    language = _language(name)
    lowered = path.name.lower()
    if path.is_symlink():
        return "symlink"
    if any(part.startswith(".") for part in Path(name).parts):
        return "dotfile"
    if lowered.endswith(KEY_ENDINGS) or lowered.split(".")[0] in KEY_FILES:
        return "key file"
    if language is None:
        return "not a known language"
    try:
        if not path.is_file():
            return "not a file"
        if path.stat().st_size > MAX_FILE_BYTES:
            return f"over {MAX_FILE_BYTES:,} bytes"
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if "\0" in content:
        return "not text"
    return NewFile(
        repository=_stored(repository),
        path=_stored(name),
        language=language,
        content=content,
        quality_score=100.0 if score is None else score,
        commit_sha=commit,
    )


def _language(name: str) -> str | None:
    return LANGUAGES.get(Path(name).suffix.lower())


def _stored(name: str) -> str:
    """A name of the file system as text; bytes of it that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def _is_storable(text: object) -> bool:
    """Whether Postgres can hold it as text: no NUL character, no half of a surrogate pair."""
    if not isinstance(text, str) or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
