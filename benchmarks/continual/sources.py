"""The stream: twelve batches of files from source distributions, in an order that comes back to each language.

pip and npm fetch the distributions once, by pinned version and sha256, into build/bench/continual. A batch takes files
of one folder of one distribution, in an order by hash. The first ones are held out: they are never trained on.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from service.admission.filters import refusal
from trainer.recipe import Hygiene
from trainer.records import Row
from trainer.run_dir import sha256_file

LEAST_CHARS, LEAST_LINES = 300, 8
HYGIENE = Hygiene(longest_line_chars=200)
"""Stricter than a run's: a single line of encoded data would outweigh a slice's other files."""
EXCERPT_CHARS = 700
TRAIN_FILES, HELD_OUT_FILES, STOPPING_FILES = 26, 10, 4
"""Files of a batch. The first `STOPPING_FILES` held-out ones choose the best step, and the others judge."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A source distribution of PyPI, or of npm."""

    name: str
    version: str
    sha256: str
    npm: bool = False


DISTRIBUTIONS = {
    found.name: found
    for found in (
        Distribution(name="networkx", version="3.4.2",
                     sha256="307c3669428c5362aab27c8a1260aa8f47c4e91d3891f48be0141738d8d053e1"),
        Distribution(name="rich", version="13.9.4",
                     sha256="439594978a49a09530cff7ebc4b5c7103ef57baf48d5ea3184f21d9a2befa098"),
        Distribution(name="sqlalchemy", version="2.0.36",
                     sha256="7f2767680b6d2398aea7082e45a774b2b0767b5c8d8ffb9c8b683088ea9b29c5"),
        Distribution(name="psutil", version="6.1.0",
                     sha256="353815f59a7f64cdaca1c0307ee13558a0512f6db064e92fe833784f08539c7a"),
        Distribution(name="pycryptodome", version="3.21.0",
                     sha256="f7787e0d469bdae763b876174cf2e6c0f7be79808af26b1da96f1a64bcf47297"),
        Distribution(name="mercurial", version="6.9.5",
                     sha256="d3f22aeef9e9dcd6e562132950226c2c955d35271bd00a01481efca2b1cc65fd"),
        Distribution(name="cryptography", version="42.0.8",
                     sha256="8d09d05439ce7baa8e9e95b07ec5b6c886f548deb7e0f69ef25f64b3bce842f2"),
        Distribution(name="zstandard", version="0.25.0",
                     sha256="7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b"),
        Distribution(name="webpack", version="5.99.9", npm=True,
                     sha256="2382f23c1e85641b38cc9d374ca3a50d8c396a51925dfca5f0e747a35f356675"),
        Distribution(name="eslint", version="9.15.0", npm=True,
                     sha256="8a400a3c6ac4cadaed2d7c2656ca4ac2d98722ddaf5d8e615670b72557b4e77e"),
        Distribution(name="undici", version="6.21.0", npm=True,
                     sha256="3aa7df5476eeb26e7322dec54cc00f261e155ee9430018777d059d0962b6f665"),
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The files of one batch, before they are read."""

    name: str
    distribution: str
    language: str
    suffixes: tuple[str, ...]
    folder: str = ""
    """Part of the path that every file has."""
    without: str | None = None
    """Part of the path that no file has."""


STREAM = (
    Slice(name="Python 1", distribution="networkx", language="python", suffixes=(".py",)),
    Slice(name="Python 2", distribution="rich", language="python", suffixes=(".py",)),
    Slice(name="C 1", distribution="psutil", language="c", suffixes=(".c", ".h")),
    Slice(name="C 2", distribution="pycryptodome", language="c", suffixes=(".c", ".h")),
    Slice(name="JavaScript 1", distribution="webpack", language="javascript", suffixes=(".js",), folder="/lib/"),
    Slice(name="JavaScript 2", distribution="eslint", language="javascript", suffixes=(".js",), folder="/lib/"),
    Slice(name="Rust 1", distribution="mercurial", language="rust", suffixes=(".rs",), folder="rust/hg-core/"),
    Slice(name="Rust 2", distribution="cryptography", language="rust", suffixes=(".rs",)),
    Slice(name="Python 3", distribution="sqlalchemy", language="python", suffixes=(".py",)),
    Slice(name="C 3", distribution="mercurial", language="c", suffixes=(".c", ".h")),
    Slice(name="JavaScript 3", distribution="undici", language="javascript", suffixes=(".js",), folder="/lib/"),
    Slice(name="Rust 3", distribution="mercurial", language="rust", suffixes=(".rs",), folder="rust/",
          without="rust/hg-core/"),
)  # fmt: skip
"""In the order of the runs."""
UNSEEN = Slice(name="unseen", distribution="zstandard", language="c", suffixes=(".c", ".h", ".rs", ".py"))
"""A distribution that no run trains on."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one batch."""

    name: str
    train: tuple[Row, ...]
    stopping: tuple[Row, ...]
    judging: tuple[Row, ...]


def read_stream(work: Path) -> tuple[list[Batch], Batch]:
    """Return the batches in order, and the unseen one. Fetches what is missing."""
    read = [_batch(number, found, work) for number, found in enumerate((*STREAM, UNSEEN))]
    return read[:-1], read[-1]


def _batch(number: int, wanted: Slice, work: Path) -> Batch:
    texts = _texts(wanted, fetched(DISTRIBUTIONS[wanted.distribution], work))
    needed = HELD_OUT_FILES + (0 if wanted is UNSEEN else TRAIN_FILES)
    if len(texts) < needed:
        raise SystemExit(f"{wanted.name}: {wanted.distribution} has {len(texts)} files, and {needed} are needed")
    rows = tuple(
        Row(
            file_id=number * 1000 + place,
            repository=wanted.distribution,
            path=path,
            language=wanted.language,
            content=text,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        for place, (path, text) in enumerate(texts[:needed], 1)
    )
    return Batch(
        name=wanted.name,
        train=rows[HELD_OUT_FILES:],
        stopping=rows[:STOPPING_FILES],
        judging=rows[STOPPING_FILES:HELD_OUT_FILES],
    )


def _texts(wanted: Slice, archive: Path) -> list[tuple[str, str]]:
    """Return paths and excerpts of all files that fit, each text once, in an order by hash."""
    found: dict[str, str] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            fits = member.isfile() and member.name.endswith(wanted.suffixes) and wanted.folder in member.name
            if not fits or (wanted.without and wanted.without in member.name):
                continue
            file = tar.extractfile(member)
            assert file is not None
            text = excerpt(file.read().decode("utf-8", "replace"))
            if len(text) >= LEAST_CHARS and refusal(text, HYGIENE, min_lines=LEAST_LINES) is None:
                found.setdefault(text, member.name)
    return sorted(
        ((path, text) for text, path in found.items()), key=lambda item: hashlib.sha256(item[0].encode()).digest()
    )


def excerpt(text: str) -> str:
    """Return at most EXCERPT_CHARS of a text in whole lines. A long text begins after a third: no licence header."""
    if len(text) <= EXCERPT_CHARS:
        return text
    start = text.find("\n", len(text) // 3) + 1
    stop = text.rfind("\n", start, start + EXCERPT_CHARS) + 1
    return text[start:stop]


# --- fetching -------------------------------------------------------------------------------------------------


def fetched(wanted: Distribution, work: Path) -> Path:
    """Return the packed distribution. It is fetched once and checked against its sha256."""
    archive = work / "sources" / f"{wanted.name}-{wanted.version}.{'tgz' if wanted.npm else 'tar.gz'}"
    if not archive.exists():
        temporary = work / "fetching"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        exact = f"{wanted.name}@{wanted.version}" if wanted.npm else f"{wanted.name}=={wanted.version}"
        print(f"· fetching {exact}", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", exact]
        command = ["npm", "pack", "--silent", exact] if wanted.npm else pip
        try:
            subprocess.run(command, cwd=temporary, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", "") or str(error)).strip()[-2000:]
            raise SystemExit(f"{exact} cannot be fetched. `{' '.join(command)}` said: {reason}") from error
        (packed,) = temporary.iterdir()
        archive.parent.mkdir(exist_ok=True)
        packed.rename(archive)
        temporary.rmdir()
    if (digest := sha256_file(archive)) != wanted.sha256:
        raise SystemExit(f"{archive} has the sha256 {digest}, not {wanted.sha256}. Delete it, and start again")
    return archive
