"""The endpoints over a real socket, under waitress."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from db.errors import Unavailable
from service.errors import PreconditionError
from service.web.board import STALE_HEARTBEAT_SECONDS, Board, Progress, Snapshot
from service.web.http import Actions, HttpServer, create_app, listen
from service.web.metrics import METRICS
from service.web.probe import address, alive


class Service:
    def __init__(self, token: str | None = "right", host: str = "127.0.0.1") -> None:
        self.board = Board(Snapshot(stream="s", model="m", batch_size=4, lora_rank=256, state="waiting"))
        self.asked = 0
        self.broken = False
        listening = listen(host, 0)
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
        status, given, body = self.ask_for(path, method, **headers)
        return status, given["Content-Type"], body

    def ask_for(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Message, str]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()


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


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json, text/plain, */*", "json"),  # axios
        ("text/plain, application/json", "plain"),
        ("text/plain;q=0.5, application/json;q=0.9", "json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),  # a browser
        ("*/*, application/json;q=0", "plain"),
        ("text/*", "plain"),
        ("application/*", "json"),
        ("APPLICATION/JSON, text/plain", "json"),
        ("image/png", "json"),
        ("text/plain;q=x, */*;q=", "json"),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,"
         "text/plain;version=0.0.4;q=0.3,*/*;q=0.1", "plain"),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.4,"
         "*/*;q=0.3", "openmetrics"),
    ],
)  # fmt: skip
def test_the_accept_header_is_weighed(service: Service, accept: str, kind: str):
    assert kind in service.call("/metrics", Accept=accept)[1]


@pytest.mark.parametrize("wanted", ["xml", "text", ""])
def test_an_unknown_format_is_refused_with_the_allowed_ones(service: Service, wanted: str):
    status, _, body = service.call(f"/metrics?format={wanted}")
    assert (status, json.loads(body)["error"]) == (
        400, f"format={wanted} is not known. Use one of json, prometheus, openmetrics"
    )  # fmt: skip


@pytest.mark.parametrize(("form", "kind"), [("JSON", "json"), ("openmetrics", "openmetrics"), ("prometheus", "plain")])
def test_a_format_beats_the_accept_header(service: Service, form: str, kind: str):
    assert kind in service.call(f"/metrics?format={form}", Accept="image/png")[1]


@pytest.mark.parametrize("token", [None, "right"])
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", "/health", "GET"), ("DELETE", "/metrics/", "GET"), ("PATCH", "/api/train", "POST")],
)
def test_a_wrong_method_is_405_with_the_right_ones(token: str | None, method: str, path: str, allowed: str):
    service = Service(token)
    try:
        status, headers, _ = service.ask_for(path, method)
        assert status == 405 and allowed in headers["Allow"].split(", ")
        assert service.call("/nowhere", method)[0] == 404
    finally:
        service.server.close()


@pytest.mark.parametrize("path", ["/health", "/livez", "/api/runs"])
def test_a_slash_at_the_end_changes_nothing(service: Service, path: str):
    assert service.call(f"{path}/")[:2] == service.call(path)[:2] == (200, "application/json")


@pytest.mark.parametrize(
    ("host", "wrong"), [("127.0.0.1", "127.0.0.2"), ("127.0.0.3", "127.0.0.1"), ("::1", "127.0.0.1")]
)
def test_the_probe_asks_where_the_service_listens(host: str, wrong: str):
    service = Service(host=host)
    try:
        assert alive(service.port, host)[0]
        assert not alive(service.port, wrong)[0]
    finally:
        service.server.close()


@pytest.mark.parametrize(
    ("host", "asked"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("0:0::0", "[::1]"), ("10.1.2.3", "10.1.2.3"), ("[::1]", "[::1]"),
     ("localhost", "localhost")],
)  # fmt: skip
def test_the_probe_of_a_service_that_listens_everywhere(host: str, asked: str):
    assert address(host) == asked


def test_the_json_form_can_be_asked_for(service: Service):
    assert service.call("/metrics?format=json", Accept="text/plain")[1] == "application/json"


@pytest.mark.parametrize(
    ("token", "header", "expected"),
    [
        (None, "Bearer right", 403),
        (None, "", 403),
        ("right", "", 401),
        ("right", "right", 401),
        ("right", "Basic cmlnaHQ=", 401),
        ("right", "Bearer", 401),
        ("right", "Bearer wrong", 401),
        ("right", "Bearer rightandmore", 401),
        ("right", "Bearer right", 202),
        ("right", "bearer right", 202),
        ("right", "BEARER   right ", 202),
        ("gehörig", "Bearer " + "gehörig".encode().decode("latin-1"), 202),
    ],
)
def test_posts_need_the_token(token: str | None, header: str, expected: int):
    service = Service(token)
    try:
        status, headers, body = service.ask_for("/api/train", "POST", Authorization=header)
        assert status == expected
        assert (headers["WWW-Authenticate"] or "").startswith("Bearer") == (status == 401)
        assert status == 202 or "CODELUPE_TOKEN" in json.loads(body)["error"]
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
