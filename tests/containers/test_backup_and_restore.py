"""Runs the docker-compose commands of docs/backup.md, and restores into a new checkout with new volumes."""

import re
import subprocess
from collections.abc import Iterator

import pytest
from stack import ROOT, Stack, checkout, compose_commands, wait_for


def documented(section: str) -> str:
    """Return the first shell block of a section, which is for docker-compose."""
    text = (ROOT / "docs" / "backup.md").read_text()
    found = re.search(rf"^## {section}.*?```sh\n(.*?)```", text, re.M | re.S)
    assert found and "docker-compose exec" in found.group(1)
    return found.group(1)


def shell(stack: Stack, script: str) -> None:
    """Run a documented block with the CPU trainer and the installed compose command."""
    script = script.replace("docker-compose up -d\n", "docker-compose up -d trainer-cpu\n")
    script = script.replace("docker-compose ", " ".join(stack.command) + " ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=stack.folder, env=stack.environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def stacks(free_names: None, cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Stack]]:
    command = next(iter(compose_commands().values()))
    found = [Stack(checkout(tmp_path_factory.mktemp(name)), command) for name in ("old", "new")]
    yield found
    for stack in reversed(found):  # they share a network name
        stack.down("--volumes")


def test_a_new_machine_continues_the_lineage(stacks: list[Stack]):
    old, new = stacks
    old.up()
    wait_for(lambda: old.published() >= 1, "the first adapter", 300)
    shell(old, documented("Backup"))
    old.down("--volumes")

    (new.folder / "backup").mkdir()
    for name in ("codelupe.dump", "models.tar"):
        (old.folder / "backup" / name).rename(new.folder / "backup" / name)
    shell(new, documented("Restore"))
    new.wait_until_healthy()
    before = new.json("adapters")
    assert before, "the dump contained no adapter"
    wait_for(lambda: new.published() > len(before), "the lineage to continue", 400)
    latest = new.json("adapters")[0]
    assert latest["parent_version"] == before[0]["version"]
    new.assert_audit_is_clean()
