"""The stack works with any user id, a read-only root and the password from a file."""

import os
from collections.abc import Iterator

import pytest
from stack import POSTGRES, TRAINER, Stack, checkout, compose_commands, docker, wait_for

UID = "54321"
FILES = "docker-compose.yml:docker-compose.secrets.yml"


@pytest.fixture(scope="module")
def stack(free_names: None, cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = checkout(tmp_path_factory.mktemp("codelupe"))
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "postgres_password").write_text("p@ss w/rd:%41\n")
    (folder / ".env").write_text(f"CODELUPE_UID={UID}\nCODELUPE_GID={UID}\nCOMPOSE_FILE={FILES}\nLOG_FORMAT=json\n")
    stack = Stack(folder, list(compose_commands().values())[-1])
    yield stack
    stack.down("--volumes")


def test_any_user_id_can_train_and_owns_its_files(stack):
    stack.up()
    wait_for(lambda: stack.published() >= 1, "the first adapter", 300)
    assert docker("exec", TRAINER, "id", "-u") == UID
    pointer = stack.folder / "models" / "tiny-codelupe"
    assert os.lstat(pointer).st_uid == int(UID)
    assert docker("inspect", TRAINER, "--format", "{{.HostConfig.ReadonlyRootfs}}") == "true"
    stack.assert_audit_is_clean()


def test_the_password_is_only_in_a_file(stack):
    for container in (TRAINER, POSTGRES):
        shown = docker("inspect", container)
        assert "p@ss" not in shown and "coding_pass" not in shown
    assert "p@ss" not in stack.compose("logs", "trainer-cpu").stdout


def test_a_setting_makes_the_logs_json(stack):
    import json

    lines = docker("logs", TRAINER).splitlines()
    assert lines
    for line in lines:
        assert {"time", "level", "message"} <= set(json.loads(line)), line


def test_folders_are_given_to_a_new_user_id(stack):
    """After the user id changes, the existing files belong to the new user."""
    stack.compose("stop")
    env_file = stack.folder / ".env"
    env_file.write_text(env_file.read_text().replace(UID, "1000"))
    stack.up()
    assert docker("exec", TRAINER, "id", "-u") == "1000"
    for path in [stack.folder / "models", *(stack.folder / "models").rglob("*")]:
        assert path.lstat().st_uid == 1000, path
