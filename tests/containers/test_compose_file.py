"""The compose file as compose reads it. These tests start no containers."""

import json

import yaml
from stack import Stack, checkout

PROFILES = [
    (),
    ("--profile", "cpu"),
    ("--profile", "serve"),
    ("--profile", "cpu", "--profile", "serve"),
    ("--profile", "evaluation"),
    ("--profile", "monitoring"),
]


def test_the_compose_file_gives_no_warnings(compose, tmp_path):
    """This holds with and without `.env`, in every profile, and with the password from a file."""
    stack = Stack(checkout(tmp_path), compose)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "postgres_password").write_text("x")
    with_secrets = ("-f", "docker-compose.yml", "-f", "docker-compose.secrets.yml")
    for env_file in (False, True):
        if env_file:
            (tmp_path / ".env.example").rename(tmp_path / ".env")
        for options in [*PROFILES, with_secrets]:
            done = stack.compose(*options, "config")
            assert done.stderr == "", f"{options}: {done.stderr}"
            assert "codelupe-qwen-5090" in done.stdout


def services(compose, tmp_path, *options: str, **environment: str) -> dict:
    stack = Stack(checkout(tmp_path), compose, environment)
    profiles = ("--profile", "cpu", "--profile", "serve", "--profile", "evaluation", "--profile", "monitoring")
    return yaml.safe_load(stack.compose(*options, *profiles, "config").stdout)["services"]


def test_public_names_stay_the_same(compose, tmp_path):
    found = services(compose, tmp_path)
    trainer = found["qwen-5090-trainer"]
    assert trainer["container_name"] == "codelupe-qwen-5090"
    assert trainer["image"] == "codelupe-qwen-5090:latest"
    assert "codelupe-network" in trainer["networks"]
    assert trainer["restart"] == "unless-stopped"
    limits = trainer["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) == 16 and str(limits["memory"]) in ("48g", str(48 * 1024**3))
    assert trainer["environment"]["POSTGRES_DB"] == "coding_db"
    assert trainer["environment"]["POSTGRES_USER"] == "coding_user"
    text = json.dumps(trainer["volumes"])
    for folder in ("models", "checkpoints", "logs", "cache"):
        assert f"{tmp_path}/{folder}" in text


def test_services_are_hardened_and_listen_on_loopback(compose, tmp_path):
    for name, service in services(compose, tmp_path).items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["logging"]["options"]["max-size"], name
        if name != "vllm":  # its image writes to its root file system
            assert service["read_only"] is True, name
        if name != "init":
            assert service["deploy"]["resources"]["limits"]["memory"], name
        for port in service.get("ports", []):
            where = port["host_ip"] if isinstance(port, dict) else str(port).rpartition(":")[0]
            assert where.startswith("127.0.0.1"), (name, port)


def test_the_password_from_a_file_is_in_no_environment(compose, tmp_path):
    folder = checkout(tmp_path)
    (folder / "secrets").mkdir()
    (folder / "secrets" / "postgres_password").write_text("from-a-file")
    stack = Stack(folder, compose)
    done = stack.compose("-f", "docker-compose.yml", "-f", "docker-compose.secrets.yml", "--profile", "cpu", "config")
    found = yaml.safe_load(done.stdout)["services"]
    assert "coding_pass" not in json.dumps(found)
    for name in ("postgres", "trainer-cpu", "qwen-5090-trainer"):
        assert found[name]["environment"]["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres_password"
        assert not found[name]["environment"]["POSTGRES_PASSWORD"]


def test_a_user_name_with_special_characters_reaches_no_shell(compose, tmp_path):
    found = services(compose, tmp_path, POSTGRES_USER="o'brien; true")["postgres"]
    assert found["environment"]["PGUSER"] == "o'brien; true"
    assert found["healthcheck"]["test"][0] == "CMD" and "o'brien" not in str(found["healthcheck"]["test"])
