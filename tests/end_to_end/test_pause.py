"""A person's pause of a running service: with the command, over a restart, and over HTTP."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from driver import Codelupe, wait_for

pytestmark = pytest.mark.long
TOKEN = "only-for-tests"


def post(service: Codelupe, path: str, body: object) -> str:
    request = urllib.request.Request(
        f"http://{service.address}/api/v1/{path}", json.dumps(body).encode(), method="POST",
        headers={"Authorization": f"Bearer {TOKEN}", "Origin": f"http://{service.address}"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(json.load(answer)["said"])


def test_stop_and_save_then_restart_then_resume(tmp_path: Path) -> None:
    service = Codelupe(tmp_path / "home", CODELUPE_TOKEN=TOKEN, MAX_DATASET_SIZE="60", SAMPLE_PREDICTIONS="0")
    service.up()
    try:
        wait_for(lambda: (service.metric("step") or 0) >= 2, "the second step", 90)
        assert "is paused" in service.run("pause", "--now").stdout
        wait_for(lambda: service.health()["state"] == "on_hold", "the pause", 60)
        assert service.trainer_pid() is None
        events = service.home / "runs" / "000001" / "events.jsonl"
        before = events.read_text()
        assert '"stopping"' in before and service.health()["status"] == "healthy"
        assert service.get("/", accept="text/html")[2].count("Healthy. Paused on request") == 1
        service.stop()
        service.up()
        wait_for(lambda: service.health()["state"] == "on_hold", "the pause after a restart", 60)
        assert events.read_text() == before, "nothing trained meanwhile"
        assert post(service, "resume", {}) == "the service goes on"
        wait_for(lambda: service.published() or service.metric("runs")["refused"], "the verdict", 120)
        resumed = [json.loads(line) for line in events.read_text().splitlines()]
        steps = [event["step"] for event in resumed if event["event"] == "step"]
        assert len(steps) == len(set(steps)), "no step was trained twice"
    finally:
        service.stop()
    assert json.loads(service.run("audit", "--json").stdout)["problems"] == []
