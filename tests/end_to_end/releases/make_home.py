"""Write releases/<version of pyproject.toml>.tar.xz: the home that a service of this release leaves when it stops.

    .venv/bin/python tests/end_to_end/releases/make_home.py

Run it once per release, on the release's commit and with its packages. It needs write access to /srv. The archive
never changes afterwards. test_old_home.py starts every later service on it. The archive contains:

    home/          CODELUPE_HOME, without Postgres's own folder and without logs
    database.sql   pg_dump of the embedded database, which replaces that folder

The embedded recipe publishes two adapters, the second on top of the first. A few rows wait for a run. The home, the
committed code, the cache and the source files lie in /srv/codelupe, /srv/release, /srv/cache and /srv/sources, so that
the archive contains no paths of the local machine. It leaves out everything that a service creates again.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[3])]

from driver import ROOT, Codelupe, wait_for

from db import embedded

FOLDER = Path(__file__).parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
HOME, CODE, CACHE, SOURCES = (Path("/srv") / name for name in ("codelupe", "release", "cache", "sources"))
LEFT_OUT = {"postgres", "logs", "up.out", "up.err", "service.lock", "trainer.log", "tensorboard"}
"""Postgres's folder, and files that only inform about this machine."""
RUN_FILES, WAITING_FILES = 24, 3


def feed(service: Codelupe, name: str, count: int) -> None:
    """Drop `count` small modules."""
    folder = SOURCES / name
    folder.mkdir(parents=True)
    for n in range(count):
        lines = "".join(f"    {name}_{i} = values[{i}] * {n + i}\n" for i in range(20))
        (folder / f"file_{n}.py").write_text(f"def {name}_{n}(values):\n{lines}    return {name}_0\n")
    service.json("drop", str(folder))


def lineage(service: Codelupe) -> None:
    """Publish two adapters, and leave too few rows for another run."""
    service.up("--no-demo")
    feed(service, "first", RUN_FILES)
    wait_for(lambda: service.published() >= 1, "the first adapter", 200)
    feed(service, "second", RUN_FILES)
    wait_for(lambda: service.published() >= 2, "the second adapter", 200)
    wait_for(lambda: service.health()["state"] == "waiting", "the service to wait", 60)
    feed(service, "waiting", WAITING_FILES)


def dump() -> bytes:
    """Return the stopped service's database as SQL."""
    url = embedded.start(HOME / "postgres")
    try:
        command = [embedded.programs() / "pg_dump", "--no-owner", url]
        return subprocess.run(command, check=True, capture_output=True).stdout
    finally:
        embedded.stop(HOME / "postgres")


def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return the member without its owner, or None if it is left out."""
    if LEFT_OUT.intersection(Path(member.name).parts):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def pack(target: Path, database: bytes) -> None:
    """Write the home and the dump to one archive."""
    with tarfile.open(target, "w:xz", preset=9) as archive:
        archive.add(HOME, "home", filter=without_owner)
        member = tarfile.TarInfo("database.sql")
        member.size = len(database)
        archive.addfile(member, io.BytesIO(database))


def committed_code() -> None:
    """Copy the commit's files to a folder that can exist on any machine."""
    CODE.mkdir(parents=True)
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(CODE)


def main() -> None:
    target = FOLDER / f"{VERSION}.tar.xz"
    for path in (target, HOME, CODE, CACHE, SOURCES):
        if path.exists():
            sys.exit(f"{path} exists. A release's home never changes. Before the release, remove it and run this again")
    places = {"PYTHONPATH": str(CODE), "XDG_CACHE_HOME": str(CACHE)}
    service = Codelupe(HOME, SAMPLE_PREDICTIONS="1", MAX_DATASET_SIZE="40", MIN_NEW_FILES="8", **places)
    try:
        committed_code()
        lineage(service)
        service.stop()
        pack(target, dump())
    finally:
        service.stop()
        for path in (HOME, CODE, CACHE, SOURCES):
            shutil.rmtree(path, ignore_errors=True)
    print(f"{target} written. Commit it")


if __name__ == "__main__":
    main()
