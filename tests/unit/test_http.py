"""The endpoints over a real socket, under waitress."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from db.errors import Unavailable
from service.errors import PreconditionError
from service.web.board import STALE_HEARTBEAT_SECONDS, Board, Progress, Snapshot
from service.web.http import Actions, HttpServer, create_app, listen
from service.web.metrics import METRICS


class Service:
    def __init__(self, token: str | None = "right") -> None:
        self.board = Board(Snapshot(stream="s", model="m", batch_size=4, lora_rank=256, state="waiting"))
        self.asked = 0
        self.broken = False
        listening = listen("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        actions = Actions(request_training=self.ask, run_history=self.history, adapter_history=list)
        self.server = HttpServer(create_app(self.board, actions, token=token), listening)
        self.server.start()

    def ask(self) -> None:
        self.asked += 1

    def history(self) -> list[dict[str, object]]:
        if self.broken:
            raise Unavailable("no answer")
        return [{"run_id": 1}]

    def call(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read().decode()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.server.close()


def test_health_is_one_status_with_a_reason(service: Service):
    status, kind, body = service.call("/health")
    assert (status, kind) == (200, "application/json")
    assert json.loads(body)["status"] == "healthy"
    service.board.trouble("database", "the database does not answer")
    status, _, body = service.call("/health")
    assert (status, json.loads(body)["status"]) == (200, "degraded")
    assert "database" in json.loads(body)["reason"]
    service.board.clear("database")
    assert json.loads(service.call("/health")[2])["status"] == "healthy"


def test_the_served_version_is_shown_where_there_is_one(service: Service):
    assert json.loads(service.call("/health")[2])["served_version"] is None
    assert "\ncodelupe_served_version" not in service.call("/metrics?format=prometheus")[2]
    service.board.note(served_version=3)
    assert json.loads(service.call("/health")[2])["served_version"] == 3
    assert "\ncodelupe_served_version 3.0\n" in service.call("/metrics?format=prometheus")[2]


def test_a_stale_heartbeat_is_unhealthy_and_not_alive(service: Service):
    assert service.call("/livez")[0] == 200
    old = time.monotonic() - STALE_HEARTBEAT_SECONDS - 1
    service.board._snapshot = replace(service.board.read(), heartbeat=old)
    assert service.call("/health")[0] == 503
    assert service.call("/livez")[0] == 503


def test_readyz_names_what_is_missing(service: Service):
    status, _, body = service.call("/readyz")
    assert status == 503
    assert json.loads(body)["checks"] == {"database": False, "migrations": False, "disk": True}
    service.board.update(database_ready=True, migrations_ready=True)
    assert service.call("/readyz")[0] == 200


def test_curl_gets_the_documented_metrics_keys(service: Service):
    status, kind, body = service.call("/metrics", Accept="*/*")
    assert (status, kind) == (200, "application/json")
    answer = json.loads(body)
    assert set(answer["state"]) == {
        "last_trained_id", "total_training_runs", "total_samples_trained", "last_training_time"
    }  # fmt: skip
    assert set(answer["training_metrics"]) == {"eval_loss", "train_loss"}
    assert answer["config"] == {"model": "m", "batch_size": 4, "lora_r": 256}


def test_a_scrape_gets_metrics_in_the_text_format(service: Service):
    service.board.update(progress=Progress(run_id=1, step=3, learning_rate=1e-4), losses={"eval": 1.5})
    for path, accept in (("/metrics", "text/plain;version=0.0.4"), ("/metrics?format=prometheus", "*/*")):
        status, kind, body = service.call(path, Accept=accept)
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        families = {family.name: family for family in text_string_to_metric_families(body)}
        assert {f"codelupe_{definition.name}" for definition in METRICS} == set(families)
        samples = {(s.name, *s.labels.values()): s.value for f in families.values() for s in f.samples}
        assert samples["codelupe_state", "waiting"] == 1
        assert samples["codelupe_loss", "eval"] == 1.5
        assert samples["codelupe_learning_rate",] == 1e-4
        assert samples["codelupe_runs_total", "published"] == 0


def test_a_modern_prometheus_gets_openmetrics(service: Service):
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    _, kind, body = service.call("/metrics", Accept=accept)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert list(parse_openmetrics(body))


def test_the_json_form_can_be_asked_for(service: Service):
    assert service.call("/metrics?format=json", Accept="text/plain")[1] == "application/json"


@pytest.mark.parametrize(
    ("token", "header", "expected"),
    [
        (None, "Bearer right", 403),
        (None, "", 403),
        ("right", "", 403),
        ("right", "Bearer wrong", 403),
        ("right", "Bearer rightandmore", 403),
        ("right", "Bearer right", 202),
        ("gehörig", "Bearer " + "gehörig".encode().decode("latin-1"), 202),
    ],
)
def test_posts_need_the_token(token: str | None, header: str, expected: int):
    service = Service(token)
    try:
        assert service.call("/api/train", "POST", Authorization=header)[0] == expected
        assert service.asked == (1 if expected == 202 else 0)
    finally:
        service.server.close()


def test_errors_are_json(service: Service):
    assert service.call("/nowhere")[:2] == (404, "application/json")
    assert service.call("/api/train")[:2] == (405, "application/json")
    service.broken = True
    status, kind, body = service.call("/api/runs")
    assert (status, kind) == (503, "application/json")
    assert "no answer" in body


def test_half_open_requests_do_not_block_the_server(service: Service):
    slow = []
    try:
        for _ in range(600):
            connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            slow.append(connection)
        assert service.call("/health")[0] == 200
    finally:
        for connection in slow:
            connection.close()


def test_a_port_in_use_says_which_and_what_to_do(service: Service):
    with pytest.raises(PreconditionError, match=rf"127.0.0.1:{service.port}.*METRICS_PORT"):
        listen("127.0.0.1", service.port)
