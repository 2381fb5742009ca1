"""/api/v1 over a real socket: its own document held against it, who may ask, and what a lost database does to it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from stage import STREAM, TOKEN, Stage
from states import STATES, history

from db import holds
from db.errors import Unavailable
from db.history import SHOWN_BYTES
from service.web.api import Pace
from service.web.guard import add_guards
from service.web.views import Views

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


class Client:
    """Sends requests with exactly the headers that a test gives."""

    def __init__(self, address: str) -> None:
        self.host = urlsplit(address).netloc

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        connection = http.client.HTTPConnection(self.host, timeout=20)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        found = json.loads(text) if "json" in answer.headers.get("Content-Type", "") else text
        return answer.status, dict(answer.headers), found

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        status, _, found = self.ask("GET", f"/api/v1/{path}", **headers)
        return status, found

    def post(self, path: str, body: Any = None, **headers: str | None) -> tuple[int, Any]:
        """POST with the token and this service's origin. A header that is None is left out."""
        given = {"Origin": f"http://{self.host}", "Authorization": f"Bearer {TOKEN}", **headers}
        sent = {name: value for name, value in given.items() if value is not None}
        status, _, found = self.ask("POST", f"/api/v1/{path}", {} if body is None else body, **sent)
        return status, found


@pytest.fixture
def client(stage: Stage) -> Iterator[Client]:
    with stage.served() as address:
        yield Client(address)


def test_schemathesis_finds_the_document_true(stage: Stage, client: Client, tmp_path: Path) -> None:
    STATES["experts"](stage)
    done = subprocess.run(
        [SCHEMATHESIS, "run", f"http://{client.host}/api/v1/openapi.json", "--max-examples", "15", "--no-color",
         "--generation-database", "none", "--header", f"Authorization: Bearer {TOKEN}",
         "--header", f"Origin: http://{client.host}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "15 selected / 15 total" in done.stdout and "Tested: 15" in done.stdout


# --- who may ask ------------------------------------------------------------------------------------------------


def test_a_text_is_given_only_with_the_token(stage: Stage, client: Client) -> None:
    history(stage, 1)
    status, found = client.get("rows/1")
    assert status == 200 and found["text"] is None and found["row"]["disposition"] == "trained"
    status, found = client.get("rows/1", Authorization="Bearer wrong")
    assert status == 401 and "text" not in found
    status, found = client.get("rows/1", Authorization=f"Bearer {TOKEN}")
    assert status == 200 and found["text"]["content"].startswith("x = 0.") and found["text"]["path"] == "a.py"
    assert client.get("rows/999", Authorization=f"Bearer {TOKEN}")[0] == 404
    pages = [
        "overview",
        "runs",
        "runs/1",
        "runs/1/files",
        "quality",
        "adapters",
        "answers",
        "log",
        "rows?disposition=trained",
    ]
    assert not [page for page in pages if "x = 0." in json.dumps(client.get(page)[1])]


def test_a_long_or_odd_text_is_cut_and_shown_as_it_can_be(stage: Stage, client: Client) -> None:
    history(stage, 1)
    stage.query("update code_files set content = repeat('ä', %s) where id = 1", (SHOWN_BYTES,))
    _, found = client.get("rows/1", Authorization=f"Bearer {TOKEN}")
    assert found["text"]["content_bytes"] == 2 * SHOWN_BYTES and len(found["text"]["content"]) == SHOWN_BYTES // 2
    stage.query("update code_files set content = repeat('ä', 11000000) where id = 1")
    time.sleep(1.1)  # an answer is kept for a second
    _, found = client.get("rows/1", Authorization=f"Bearer {TOKEN}")
    assert found["text"]["content"] is None and found["text"]["content_bytes"] == 22_000_000


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({"Authorization": None}, 401, "no token"),
        ({"Authorization": "Bearer wrong"}, 401, "wrong token"),
        ({"Origin": None}, 403, "no origin. Send 'Origin: http://127.0.0.1:"),
        ({"Origin": "http://evil.example"}, 403, "another site"),
        ({"Origin": "null"}, 403, "another site"),
        ({"Origin": "http://[::1"}, 403, "another site"),
        ({"Origin": "http://127.0.0.1"}, 403, "another site"),
        ({"Origin": None, "Sec-Fetch-Site": "cross-site"}, 403, "another site"),
        ({"Origin": None, "Sec-Fetch-Site": "same-site"}, 403, "another site"),
    ],
)
def test_a_command_needs_token_and_origin(
    stage: Stage, client: Client, headers: dict[str, str | None], status: int, says: str
) -> None:
    answered, found = client.post("pause", **headers)
    assert (answered, says in found["error"]) == (status, True), found
    assert holds.held(stage.pool, STREAM) is None


def test_a_large_body_is_refused_before_it_is_read(client: Client) -> None:
    status, _, _ = client.ask("POST", "/api/v1/pause", b"x" * 20_000)
    assert status == 413
    connection = http.client.HTTPConnection(client.host, timeout=20)
    connection.putrequest("POST", "/health")
    connection.putheader("Content-Length", "1000000000")
    connection.endheaders()
    assert connection.getresponse().status == 413, "before a byte of it has arrived"


def test_a_foreign_origin_cannot_use_the_earlier_endpoint_either(client: Client) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}
    assert client.ask("POST", "/api/train", **headers)[0] == 403
    assert client.ask("POST", "/api/train", Authorization=f"Bearer {TOKEN}")[0] == 202, "curl needs no origin there"


@pytest.mark.parametrize("path", ["/", "/api/v1/overview", "/static/page.js"])
def test_a_foreign_name_for_this_machine_is_refused(client: Client, path: str) -> None:
    status, _, found = client.ask("GET", path, Host="evil.example", Accept="text/html")
    assert status == 403 and "PUBLIC_URL" in str(found)
    assert client.ask("GET", path, Host="localhost:8090", Accept="text/html")[0] == 200
    assert client.ask("GET", "/health", Host="evil.example")[0] == 200, "probes answer to every name"


@pytest.mark.parametrize(
    ("host", "public_url", "asked", "status"),
    [
        ("0.0.0.0", None, "evil.example", 200),
        ("0.0.0.0", "https://lupe.example", "evil.example", 403),
        ("0.0.0.0", "https://lupe.example", "lupe.example", 200),
        ("0.0.0.0", "http://127.0.0.1:8093", "127.0.0.1:8093", 200),
        ("127.0.0.1", "https://lupe.example", "LUPE.example", 200),
        ("127.0.0.1", None, "127.0.0.1.evil.example", 403),
        ("::1", None, "[::1]:8090", 200),
        ("127.0.0.1", None, "", 403),
        ("127.0.0.1", None, "localhost.", 200),
        ("0.0.0.0", "https://lupe.example:443", "lupe.example", 200),
        ("0.0.0.0", "https://lupe.example", "lupe.example:443", 200),
        ("0.0.0.0", "http://lupe.example:81", "lupe.example", 403),
        ("0.0.0.0", "https://bücher.example", "xn--bcher-kva.example", 200),
        ("0.0.0.0", "https://lupe.example", "[::1", 403),
    ],
)
def test_the_names_of_the_service(host: str, public_url: str | None, asked: str, status: int) -> None:
    app = Flask("names")
    app.add_url_rule("/", view_func=lambda: "page")
    add_guards(app, token=None, host=host, public_url=public_url)
    assert app.test_client().get("/", headers={"Host": asked}).status_code == status


def test_every_answer_has_the_policy(client: Client) -> None:
    for path in ("/", "/health", "/api/v1/overview", "/static/page.js", "/nothing", "/api/v1/runs/7"):
        _, headers, _ = client.ask("GET", path, Accept="text/html")
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["../page.py", "..%2fpage.py", "%2e%2e/page.py", "vendor/", "vendor/README.md", ""])
def test_only_the_pages_own_files_are_served(client: Client, name: str) -> None:
    assert client.ask("GET", f"/static/{name}")[0] == 404


def test_a_file_that_has_not_changed_is_not_sent_again(client: Client) -> None:
    _, headers, _ = client.ask("GET", "/static/page.js")
    status, _, body = client.ask("GET", "/static/page.js", If_None_Match=headers["Etag"])
    assert (status, body) == (304, "")


# --- commands ---------------------------------------------------------------------------------------------------


def test_pause_and_resume_reach_the_database(stage: Stage, client: Client) -> None:
    assert client.post("pause", {"stop_training": True})[1]["said"] == "no new run starts"
    stage.board.update(state="judging")
    assert "goes on to its verdict" in client.post("pause", {"stop_training": True})[1]["said"]
    stage.board.update(state="training")
    assert "saves a checkpoint" in client.post("pause", {"stop_training": True})[1]["said"]
    assert holds.held(stage.pool, STREAM) is not None
    assert client.post("resume") == (202, {"accepted": True, "said": "the service goes on"})
    assert client.post("resume") == (202, {"accepted": True, "said": "the service was not paused"})


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("pause", {"stop": True}, "unknown: stop. Allowed: stop_training"),
        ("pause", {"stop_training": "yes"}, "stop_training must be of type bool"),
        ("pause", [1], "the body must be a JSON object"),
        ("pause", b"{", "the body cannot be used"),
        ("pause", b"[" * 9000, "the body cannot be used"),
        ("pause", b"\xff", "the body cannot be used"),
        ("rollback", {}, "version is missing"),
        ("rollback", {"version": True}, "version must be of type int"),
        ("rollback", {"version": 1.0}, "version must be of type int"),
    ],
)
def test_a_body_that_cannot_be_used_says_why(client: Client, path: str, body: Any, says: str) -> None:
    status, found = client.post(path, body)
    assert status == 400 and says in found["error"]


def test_a_roll_back_that_is_not_possible_says_why(stage: Stage, client: Client) -> None:
    history(stage, 2)
    status, found = client.post("rollback", {"version": 1})
    assert status == 409 and "does not exist. Retention removed it" in found["error"]
    for version in (-1, 0, 2**80):
        status, found = client.post("rollback", {"version": version})
        assert status == 409 and "is not a version" in found["error"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("runs?limit=0", "limit=0 is not between 1 and 500"),
        ("runs?limit=ten", "limit=ten is not an integer"),
        ("runs?limit=٣", "is not an integer"),
        ("runs?page=2", "unknown parameter 'page'. Allowed: before, limit"),
        ("rows", "disposition is missing"),
        ("rows?disposition=lost", "disposition=lost is not one of claimed, learning"),
        ("runs/x", "run_id=x is not an integer"),
        ("runs/99999999999999999999", "run_id"),
    ],
)
def test_a_parameter_that_is_not_allowed_says_what_is(client: Client, path: str, says: str) -> None:
    from urllib.parse import quote

    status, found = client.get(quote(path, safe="?=&/"))
    assert status == 400 and says in found["error"]


# --- when something is wrong ------------------------------------------------------------------------------------


def test_without_its_database_the_service_says_so_at_once(stage: Stage, client: Client) -> None:
    history(stage, 2)
    stage.board.trouble("database", "the database does not answer")
    began = time.monotonic()
    for path in ("runs", "quality", "adapters", "rows?disposition=trained"):
        status, headers, found = client.ask("GET", f"/api/v1/{path}")
        assert status == 503 and "does not answer" in found["error"] and headers["Retry-After"]
    assert client.get("overview")[0] == 200, "the present state is in memory"
    assert time.monotonic() - began < 5


def test_readers_that_hang_leave_threads_for_the_probes(
    stage: Stage, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr("db.history.runs", lambda *_, **__: (hanging.wait(20) and []) or [])
    asked = [threading.Thread(target=client.get, args=(f"runs?limit={n}",)) for n in range(1, 11)]
    for thread in asked:
        thread.start()
    time.sleep(0.3)
    began = time.monotonic()
    assert client.ask("GET", "/health")[0] == 200
    assert time.monotonic() - began < 1.0
    hanging.set()
    for thread in asked:
        thread.join()


def test_with_many_pages_each_asks_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("service.web.api.time.monotonic", lambda: now[0])
    pace = Pace()
    for _ in range(250):  # 50 pages, each every 2 s, for 10 s
        now[0] += 0.04
        seconds = pace.seconds()
    assert 16 < seconds < 18, "50 pages, of which 3 ask each second"
    for _ in range(3):
        now[0] += 17
        seconds = pace.seconds()
    assert seconds == Pace.LEAST_SECONDS, "one page alone asks often again"


def test_before_the_tables_are_there_the_service_says_that_it_starts(stage: Stage, client: Client) -> None:
    views = Views(stage.pool, stage.board, stage.settings)
    with pytest.raises(Unavailable, match="the service is starting"):
        views.runs(None, 10)


def test_a_run_of_another_stream_is_not_shown(stage: Stage, client: Client) -> None:
    history(stage, 1)
    stage.events(1, 5)
    stage.query("insert into codelupe.streams values ('other', 's', 'm', 'r', '{}')")
    stage.query("update codelupe.runs set stream = 'other'")
    assert client.get("runs/1")[0] == 404 and client.get("runs/1/files")[0] == 404
    assert client.get("runs/1/curves")[0] == 404
    assert client.get("runs")[1]["runs"] == []
