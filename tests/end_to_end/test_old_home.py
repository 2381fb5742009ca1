"""A service takes over the home of an earlier release. Each archive in releases/ is restored to a new folder."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Codelupe, wait_for

from db import embedded
from trainer.run_dir import verify_manifest

pytestmark = pytest.mark.timeout(300)

RELEASES = sorted((Path(__file__).parent / "releases").glob("*.tar.xz"))
NEW_FILES = 24


def restore(home: Path, dump: Path) -> None:
    """Restore the dump to the home's own database, as a user would."""
    url = embedded.start(home / "postgres")
    try:
        command = [embedded.programs() / "psql", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={dump}", url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        embedded.stop(home / "postgres")


def pointer(service: Codelupe) -> Path:
    """Return the stream's pointer, which is the only symlink in the models folder."""
    [link] = [path for path in (service.home / "models").iterdir() if path.is_symlink()]
    return link


def feed(service: Codelupe) -> None:
    """Drop enough new files for one run."""
    root = service.home.parent / "later"
    root.mkdir()
    for n in range(NEW_FILES):
        lines = "".join(f"    later_{i} = values[{i}] * {n + i}\n" for i in range(20))
        (root / f"file_{n}.py").write_text(f"def later_{n}(values):\n{lines}    return later_0\n")
    assert service.json("drop", str(root))["inserted"] == NEW_FILES


def judged_runs(service: Codelupe) -> int:
    """Return how many runs have a verdict."""
    runs = service.metric("runs")
    return int(runs["published"]) + int(runs["refused"])


@pytest.fixture(scope="module", params=RELEASES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def service(request: pytest.FixtureRequest) -> Iterator[Codelupe]:
    """Yield the present service on the home of a release. `left` names the adapter that was current there."""
    root = Path(tempfile.mkdtemp(prefix="codelupe-tests-"))
    with tarfile.open(request.param) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(root)
    taken = Codelupe(root / "home", SAMPLE_PREDICTIONS="1", MAX_DATASET_SIZE="40", MIN_NEW_FILES="8")
    taken.left = pointer(taken).readlink().name  # type: ignore[attr-defined]
    try:
        restore(taken.home, root / "database.sql")
        taken.up("--no-demo")
        yield taken
    finally:
        taken.stop()
        embedded.stop(taken.home / "postgres")
        shutil.rmtree(root)


def test_at_least_one_release_has_a_home():
    assert RELEASES


def test_it_starts_with_the_current_version(service: Codelupe):
    assert service.health()["status"] == "healthy"
    [current] = [adapter for adapter in service.json("adapters") if adapter["is_current"]]
    assert current["folder"] == service.left == pointer(service).readlink().name  # type: ignore[attr-defined]
    folders = {path.name for path in (service.home / "models" / "adapters").iterdir()}
    assert {adapter["folder"] for adapter in service.json("adapters")} == folders > {"v000001"}
    verify_manifest(pointer(service))


def test_the_old_home_passes_the_audit(service: Codelupe):
    found = service.json("audit")
    assert found["problems"] == [] and found["claimed"] == 0
    assert found["settled"]["trained"] > 0 and found["settled"]["held_out"] > 0 and found["pending"] > 0


def test_it_trains_on_new_files(service: Codelupe):
    before, total = judged_runs(service), service.json("audit")["total"]
    feed(service)
    wait_for(lambda: judged_runs(service) > before, "a verdict on a new run", 60)
    latest = max(service.json("runs"), key=lambda run: run["run_id"])
    assert latest["state"] in ("published", "refused")
    assert f"v{latest['parent_version']:06d}" == service.left  # type: ignore[attr-defined]
    assert latest["report"]["rows"]["trained"] > 0
    assert service.json("audit")["total"] == total + NEW_FILES


def test_it_rolls_back_to_a_version_of_the_release(service: Codelupe):
    done = service.run("rollback", "1")
    assert done.returncode == 0, done.stderr
    assert pointer(service).readlink().name == "v000001"
    [current] = [adapter for adapter in service.json("adapters") if adapter["is_current"]]
    assert current["version"] == 1


def test_the_audit_passes_at_the_end(service: Codelupe):
    done = service.run("audit")
    assert done.returncode == 0, done.stdout + done.stderr
