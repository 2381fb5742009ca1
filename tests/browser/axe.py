"""axe-core from npm, at one version with one hash. It is fetched once for each machine, and the project has no copy."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "axe-core@4.14.1"
SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
SERIOUS = ("serious", "critical")


def axe_source() -> str:
    """Return axe.min.js. Skips if npm cannot bring it."""
    cache = Path(os.environ.get("HOME") or "/tmp") / ".cache" / "codelupe-tests" / PACKAGE
    file = cache / "axe.min.js"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                ["npm", "pack", PACKAGE, "--silent"], cwd=cache, capture_output=True, text=True, timeout=90
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"npm cannot bring {PACKAGE}: {error}")
        if done.returncode != 0:
            pytest.skip(f"npm cannot bring {PACKAGE}: {done.stderr.strip()[-200:]}")
        with tarfile.open(cache / done.stdout.split()[-1]) as archive:
            member = archive.extractfile("package/axe.min.js")
            assert member is not None
            file.write_bytes(member.read())
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found == SHA256, f"{file} is another one: {found}"
    return file.read_text()


def serious_problems(page: Any, source: str) -> list[str]:
    """Return what axe-core calls serious or critical on a page. The page's own policy allows no script but its own."""
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": source})
    found = session.send(
        "Runtime.evaluate",
        {"expression": "axe.run().then((r) => r.violations)", "awaitPromise": True, "returnByValue": True},
    )
    violations = found["result"]["value"]
    return [
        f"{one['id']}: {one['help']} ({', '.join(' '.join(node['target']) for node in one['nodes'][:5])})"
        for one in violations
        if one["impact"] in SERIOUS
    ]
