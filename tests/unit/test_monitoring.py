"""Prometheus' own tools read monitoring/, and a real Prometheus scrapes a real service with it.

Grafana is not in Debian or PyPI: a parser checks its dashboard, and a real Prometheus answers each of its queries.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from db.chunks import Pending
from db.runs import Totals
from service.web.board import Board, Progress, Snapshot
from service.web.http import Actions, HttpServer, create_app, listen
from service.web.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
ALERTS = [rule for rule in RULES if "alert" in rule]
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "codelupe.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
KNOWN = {f"codelupe_{found.name}{'_total' if found.kind == 'counter' else ''}" for found in METRICS}
ELSEWHERE = {"codelupe:had_work", "codelupe_gpu_memory_total_bytes"}
"""A recorded series, and one that only a machine with an NVIDIA card has."""


def tool(name: str, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of Prometheus' programs."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (apt-get install prometheus)")
    return subprocess.run([path, *arguments], input=given, capture_output=True, text=True, timeout=120, check=False)


# --- the files --------------------------------------------------------------------------------------------------


def test_promtool_accepts_the_configuration_and_the_rules():
    done = tool("promtool", "check", "config", "--lint=all", "--lint-fatal", str(MONITORING / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_each_alert_fires_when_it_should_and_not_else():
    done = tool("promtool", "test", "rules", str(MONITORING / "alerts.test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_is_untested_or_undocumented():
    tests = yaml.safe_load((MONITORING / "alerts.test.yml").read_text())["tests"]
    fires, silent = set(), set()
    for case in (case for test in tests for case in test.get("promql_expr_test", ())):
        names = re.findall(r'alertname="(\w+)"', case["expr"])
        (fires if case["exp_samples"] else silent).update(names)
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for rule in ALERTS:
        assert rule["alert"] in fires and rule["alert"] in silent, rule["alert"]
        assert f"`{rule['alert'].removeprefix('Codelupe')}`" in page
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"].endswith(".") and len(rule["annotations"]["description"]) > 30


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in RULES), *QUERIES])
def test_every_metric_of_rules_and_dashboard_exists(expression: str):
    named = set(re.findall(r"\bcodelupe[_:][a-z_:]+", expression))
    assert named - KNOWN - ELSEWHERE == set()
    assert named or expression.startswith(("up{", "count(ALERTS", "(up{"))


def test_the_dashboard_shows_every_metric():
    shown = set(re.findall(r"\bcodelupe_[a-z_]+", " ".join(QUERIES)))
    assert KNOWN - shown == {
        "codelupe_build_info", "codelupe_learning_rows", "codelupe_oldest_sweep_age_seconds",
        "codelupe_trained_tokens_total", "codelupe_unknown_ranges",
    }  # fmt: skip


def test_the_dashboard_is_one_that_grafana_can_place():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) and DASHBOARD["uid"] == "codelupe"
    areas = [(panel["title"], panel["gridPos"]) for panel in DASHBOARD["panels"]]
    for title, area in areas:
        assert area["x"] + area["w"] <= 24, title
    for (one, a), (other, b) in combinations(areas, 2):
        apart = (
            a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        )  # fmt: skip
        assert apart, (one, other)
    for panel in PANELS:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs)) and panel["type"] in ("stat", "timeseries", "state-timeline")


def test_the_dashboard_reads_the_provisioned_data_source():
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r'"type": "prometheus", "uid": "([^"]+)"', text)) == {source["uid"]}
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert compose[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "codelupe.yml").read_text())["providers"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in compose["grafana"]["volumes"])
    assert mounts == {
        "./monitoring/grafana/provisioning": "/etc/grafana/provisioning",
        "./monitoring/grafana/dashboards": provider["options"]["path"],
    }


def test_nobody_can_log_in_to_grafana_and_only_this_machine_reaches_it():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    environment = compose["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true" and environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    for name in ("prometheus", "grafana"):
        service = compose[name]
        assert service["profiles"] == ["monitoring"] and re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["restart"] == "unless-stopped" and service["cap_drop"] == ["ALL"] and service["read_only"]
        assert service["healthcheck"]["test"][0] == "CMD" and service["deploy"]["resources"]["limits"]["memory"]


def test_prometheus_finds_the_trainer_of_the_compose_file():
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    host, port = target.split(":")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("qwen-5090-trainer", "trainer-cpu"):
        assert host in compose[name]["networks"]["codelupe-network"]["aliases"]
        assert compose[name]["ports"][0].endswith(f":{port}")


# --- a real scrape ----------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[tuple[Board, int]]:
    """Yield a board, and the port of the HTTP server that shows it."""
    totals = Totals(
        runs={"published": 3, "refused": 12}, rows={"trained": 100, "rejected": 7}, rejected={"generated": 7},
        trained_rows=100, trained_tokens=1000, last_trained_id=5, last_success_at=datetime(2026, 1, 1, tzinfo=UTC),
        last_run_seconds=60.0, refusals_in_a_row=12,
    )  # fmt: skip
    board = Board(
        Snapshot(
            stream="s", model="m", state="training", min_new_files=8, totals=totals, database_ready=True,
            pending=Pending(rows=9, ineligible={"too_short": 2}, oldest_age_seconds=90_000.0, at=datetime.now(UTC),
                            oldest_sweep_age_seconds=5.0, unknown_ranges=0, changed=0),
            progress=Progress(run_id=4, step=3, steps_total=9, learning_rate=1e-4, grad_norm=0.5,
                              tokens_per_second=900.0, gpu_memory_bytes=3 * 10**9, gpu_utilization=0.9,
                              gpu_card_used_bytes=9e9, gpu_card_total_bytes=3e10, gpu_power_watts=400.0,
                              gpu_temperature_celsius=60.0, process_memory_bytes=4e9, process_cpu_percent=150.0),
            losses={"train": 2.0, "eval": 1.9, "current": 2.0, "anchor": 2.5}, phase_seconds={"fit": 60.0},
            last_verdict={"rules": [{"rule": "loss", "outcome": "fail"}],
                          "intervals": {"new": {"difference": 0.1, "low": -0.1, "high": 0.3}}},
            current_version=3, served_version=2, last_event=time.monotonic(), non_finite=0,
            disk_free_bytes=50 * 10**9, disk_needed_bytes=6 * 10**9, alerts={"delivered": 2},
            gpu_energy_joules=3.0e6,
        )
    )  # fmt: skip
    listening = listen("127.0.0.1", 0)
    nothing: Any = Actions(request_training=lambda: None, run_history=list, adapter_history=list)
    server = HttpServer(create_app(board, nothing, token=None), listening)
    server.start()
    yield board, listening.getsockname()[1]
    server.close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_promtool_finds_nothing_wrong_with_the_metrics(service: tuple[Board, int]):
    _, port = service
    text = get(f"http://127.0.0.1:{port}/metrics?format=prometheus")
    done = tool("promtool", "check", "metrics", given=text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert set(re.findall(r"^(codelupe_\w+)", text, re.M)) == KNOWN, "every metric has a value here"


class Prometheus:
    """The API of a running Prometheus."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **arguments: str) -> Any:
        answer = json.loads(get(f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, query: str) -> float | None:
        result = self.ask("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None


@pytest.fixture
def prometheus(service: tuple[Board, int], tmp_path: Path) -> Iterator[Prometheus]:
    """Yield a Prometheus that runs with the real configuration, only faster, and scrapes the service."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (apt-get install prometheus)")
    config = (MONITORING / "prometheus.yml").read_text()
    assert "trainer:8090" in config and config.count("interval: 15s") == 2
    config = config.replace("trainer:8090", f"127.0.0.1:{service[1]}").replace("interval: 15s", "interval: 1s")
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=(tmp_path / "log").open("w"),
    )  # fmt: skip
    try:
        found = Prometheus(port)
        deadline = time.monotonic() + 30
        while True:
            try:
                if found.value("codelupe:had_work") == 1:  # scraped, and evaluated once
                    break
            except OSError:
                pass
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        yield found
    finally:
        process.terminate()
        process.wait(20)


def test_a_real_prometheus_scrapes_the_service_and_evaluates_every_rule(prometheus: Prometheus):
    assert prometheus.value('up{job="codelupe"}') == 1
    assert prometheus.value("codelupe_gate_refusals_in_a_row") == 12
    deadline = time.monotonic() + 30
    while True:
        (group,) = prometheus.ask("rules")["groups"]
        if {rule["health"] for rule in group["rules"]} == {"ok"}:
            break
        assert time.monotonic() < deadline, [(rule["name"], rule.get("lastError")) for rule in group["rules"]]
        time.sleep(0.2)
    states = {rule["name"]: rule["state"] for rule in group["rules"] if rule["type"] == "alerting"}
    assert len(states) == len(ALERTS)
    assert {name for name, state in states.items() if state == "firing"} == {"CodelupeGateRefusesAll"}
    assert {name for name, state in states.items() if state == "pending"} == {
        "CodelupeNoSuccess", "CodelupeOldestFileWaits", "CodelupeNotServed"
    }  # fmt: skip
    time.sleep(2)  # a rate needs two scrapes
    for query in QUERIES:
        answer = prometheus.ask("query", query=query.replace("$instance", ".+"))["result"]
        assert answer or "gpu_memory_total" in query, f"{query}: no answer"  # there is no card here
