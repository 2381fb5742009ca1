"""vLLM serves the current adapter, even after failures."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Response, jsonify
from following import Followed, wait_until
from vllm_stand_in import KEY, StandIn, error

from service.logs import LOG, _TextLines
from service.publish import vllm as protocol
from service.publish.serving import ALIAS, reconcile, serving, version_name
from service.publish.vllm import Vllm, VllmRefused, VllmUnavailable
from service.settings.home import Home
from service.web.board import Board, Snapshot

ROOT = Path(__file__).parents[2]


@pytest.fixture
def followed(vllm: StandIn, home: Home) -> Followed:
    return Followed(vllm.url, home, KEY)


def served_by(vllm: StandIn, home: Home, version: int) -> bool:
    folder = str(home.adapter(version))
    return vllm.loaded == {version_name(version): folder, ALIAS: folder}


@pytest.fixture
def lines() -> Iterator[Callable[[], list[str]]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_TextLines())
    LOG.setLevel(logging.INFO)
    LOG.addHandler(handler)
    yield lambda: stream.getvalue().splitlines()
    LOG.removeHandler(handler)


def test_a_publish_and_a_rollback_move_the_alias_after_a_test(vllm, home, followed, publish, lines):
    publish(1), publish(2)
    assert followed.poll(1) is None and served_by(vllm, home, 1) and followed.served == 1
    vllm.calls.clear()
    assert followed.poll(2) is None and served_by(vllm, home, 2) and followed.served == 2
    new, old = version_name(2), version_name(1)
    assert [call for call in vllm.calls if call[0] != "models"] == [
        ("load", new), ("complete", new), ("unload", ALIAS), ("load", ALIAS), ("unload", old)
    ]  # fmt: skip
    assert followed.poll(1) is None and served_by(vllm, home, 1) and followed.served == 1
    assert [line.partition("INFO ")[2] for line in lines()] == [
        f"Serving adapter version=1 model={ALIAS}", f"Serving adapter version=2 before=1 model={ALIAS}",
        f"Serving adapter version=1 before=2 model={ALIAS}",
    ]  # fmt: skip


def test_a_correct_server_is_left_unchanged(vllm, followed, publish):
    publish(1)
    followed.poll(1)
    vllm.calls.clear()
    followed.poll(1)
    assert {what for what, _ in vllm.calls} == {"models"}


def test_without_a_current_adapter_none_of_ours_is_served(vllm, followed, publish, home):
    publish(1)
    followed.poll(1)
    vllm.loaded["somebody-elses"] = "/elsewhere"
    assert followed.poll(None) is None
    assert vllm.loaded == {"somebody-elses": "/elsewhere"} and followed.served is None


def test_nothing_changes_during_startup_or_standby(vllm, followed, publish):
    publish(1)
    followed.poll(1)
    before = dict(vllm.loaded)
    followed.follower.poll(Snapshot(state="starting"))
    followed.follower.poll(Snapshot(state="standby", current_known=True))
    assert vllm.loaded == before


@pytest.mark.parametrize("answers", [float("nan"), float("inf")])
def test_an_adapter_that_answers_nan_is_not_served(vllm, home, followed, publish, answers):
    publish(1), publish(2, answers)
    followed.poll(1)
    trouble = followed.poll(2)
    assert trouble is not None and "version 2" in trouble and "not finite" in trouble and "rollback" in trouble
    assert followed.board.read().health()[0] == "degraded"
    assert served_by(vllm, home, 1) and followed.served == 1
    assert followed.poll(1) is None


@pytest.mark.parametrize("what", ["load", "complete"])
def test_a_server_error_keeps_the_old_adapter_and_is_retried(vllm, home, followed, publish, what):
    publish(1), publish(2)
    followed.poll(1)
    vllm.faults[what, version_name(2)] = vllm.broken
    trouble = followed.poll(2)
    assert trouble is not None and "EngineCore" in trouble
    assert served_by(vllm, home, 1) and followed.served == 1
    vllm.faults.clear()
    assert followed.poll(2) is None and served_by(vllm, home, 2)


def test_retries_wait_longer_each_time_but_a_new_version_is_tried_at_once(vllm, followed, publish, lines):
    publish(1, float("nan")), publish(2)
    waits = []
    for _ in range(12):
        followed.poll(1)
        waits.append(round(followed.follower._retry_at - time.monotonic()))
    assert waits[:4] == [5, 10, 20, 40] and waits == sorted(waits) and waits[-1] == 300
    assert sum("Adapter not served" in line for line in lines()) == 1  # each trouble is logged once
    vllm.calls.clear()
    followed.poll(1, patient=True)
    assert {what for what, _ in vllm.calls} == {"models"}
    assert followed.poll(2, patient=True) is None and followed.served == 2


def test_an_unreachable_server_is_retried_within_15_seconds(vllm, followed, publish):
    publish(1)
    vllm.stop()
    for _ in range(12):
        followed.poll(1)
    assert followed.follower._retry_at - time.monotonic() <= 15
    vllm.start()


def test_a_failed_move_restores_the_alias(vllm, home, publish):
    publish(1), publish(2)
    server = Vllm(vllm.url, KEY)
    assert server.adapters() == {}  # the base is not an adapter
    reconcile(server, home, 1)
    asked = []

    def once() -> Response | None:
        asked.append(1)
        return vllm.broken() if len(asked) == 1 else None

    vllm.faults["load", ALIAS] = once
    with pytest.raises(VllmRefused):
        reconcile(server, home, 2)
    assert vllm.loaded[ALIAS] == str(home.adapter(1))
    reconcile(server, home, 2)
    assert served_by(vllm, home, 2)


def test_a_kill_between_unload_and_load_of_the_alias_is_repaired(vllm, home, followed, publish):
    publish(1), publish(2)
    followed.poll(1)
    vllm.faults["load", ALIAS] = vllm.die
    trouble = followed.poll(2)
    assert trouble is not None and "Check that vLLM is running" in trouble and followed.served is None
    vllm.faults.clear()
    vllm.start()
    assert followed.poll(2) is None and served_by(vllm, home, 2) and followed.served == 2


def test_an_adapter_loaded_before_a_kill_is_tested_before_the_alias_moves(vllm, home, followed, publish):
    publish(1), publish(2, float("nan"))
    followed.poll(1)
    vllm.loaded[version_name(2)] = str(home.adapter(2))
    assert Followed(vllm.url, home, KEY).poll(2) is not None
    assert served_by(vllm, home, 1)


def test_names_lost_in_a_restart_are_loaded_again(vllm, home, followed, publish):
    publish(1)
    followed.poll(1)
    vllm.stop()
    assert followed.poll(1) is not None and followed.served is None
    vllm.start()
    assert vllm.loaded == {}
    assert followed.poll(1) is None and served_by(vllm, home, 1) and followed.served == 1


def test_after_a_restart_the_last_good_adapter_replaces_a_bad_current_one(vllm, home, followed, publish):
    publish(1), publish(2, float("nan"))
    followed.poll(1), followed.poll(2)
    vllm.stop()
    followed.poll(2)
    vllm.start()
    assert followed.poll(2, patient=True) is not None
    assert vllm.loaded == {ALIAS: str(home.adapter(1))} and followed.served == 1


def test_a_name_with_the_wrong_folder_is_loaded_again(vllm, home, followed, publish):
    publish(1), publish(2)
    vllm.loaded |= {version_name(2): str(home.adapter(1)), ALIAS: str(home.adapter(1))}
    assert followed.poll(2) is None and served_by(vllm, home, 2)


def test_a_folder_the_server_cannot_see_is_reported_with_a_remedy(vllm, followed):
    trouble = followed.poll(7)
    assert trouble is not None and "same path" in trouble
    assert vllm.loaded == {}


# --- the protocol ---------------------------------------------------------------------------------------------


def test_a_wrong_key_is_reported_but_not_shown(vllm, home, lines):
    followed = Followed(vllm.url, home, "wrong-secret")
    trouble = followed.poll(1)
    assert trouble is not None and "VLLM_API_KEY" in trouble
    assert "wrong-secret" not in trouble + "".join(lines())


def test_a_key_repeated_by_the_server_is_hidden(vllm):
    vllm.faults["models", ""] = lambda: error(500, f"no {KEY} here", "InternalServerError")
    with pytest.raises(VllmRefused) as caught:
        Vllm(vllm.url, KEY).adapters()
    assert "no … here" in str(caught.value) and KEY not in str(caught.value)


def test_a_missing_loading_switch_is_named(home, publish):
    publish(1)
    vllm = StandIn()
    vllm.stop()
    vllm.runtime_loading = False
    vllm.start()
    try:
        trouble = Followed(vllm.url, home, KEY).poll(1)
    finally:
        vllm.stop()
    assert trouble is not None and "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in trouble


def test_a_refused_connection_is_reported(home):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    trouble = Followed(url, home, None).poll(1)
    assert trouble is not None and "cannot be reached" in trouble


def test_a_hanging_call_has_a_deadline(vllm, home, followed, publish, monkeypatch):
    publish(1), publish(2)
    followed.poll(1)
    monkeypatch.setattr(protocol, "LOAD_SECONDS", 0.3)
    vllm.faults["load", version_name(2)] = vllm.hang
    trouble = followed.poll(2)
    assert trouble is not None and "no answer" in trouble
    assert followed.served == 1


def test_a_slow_answer_has_a_deadline(monkeypatch):
    monkeypatch.setattr(protocol, "CALL_SECONDS", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        ended = threading.Event()

        def trickle() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not ended.wait(0.1):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        threading.Thread(target=trickle, daemon=True).start()
        try:
            with pytest.raises(VllmUnavailable, match="no answer"):
                Vllm(f"http://127.0.0.1:{server.getsockname()[1]}", None)._call("GET", "/v1/models", seconds=0.5)
        finally:
            ended.set()


@pytest.mark.parametrize(
    "body", ["<html>", "[]", "[" * 200_000, '{"data": 3}', '{"data": [{"id": 1}]}', '{"data": ["x"]}']
)
def test_an_answer_from_another_server_is_rejected(vllm, body):
    vllm.faults["models", ""] = lambda: Response(body)
    loaded: dict[str, str] | None = None
    try:
        loaded = Vllm(vllm.url, KEY).adapters()
    except VllmRefused as refusal:
        assert "VLLM_URL" in str(refusal)
    assert not loaded


@pytest.mark.parametrize("numbers", [None, {"token_logprobs": [10**400]}])
def test_an_answer_without_log_probabilities_is_rejected(vllm, followed, publish, numbers):
    publish(1)
    vllm.faults["complete", version_name(1)] = lambda: jsonify({"choices": [{"text": "x", "logprobs": numbers}]})
    trouble = followed.poll(1)
    assert trouble is not None and "log probabilities" in trouble and vllm.loaded == {}


# --- the thread -----------------------------------------------------------------------------------------------


def test_the_thread_follows_but_sends_no_heartbeat(vllm, home, publish):
    publish(1), publish(2)
    board = Board(Snapshot(state="waiting", current_version=1, current_known=True))
    heartbeat = board.read().heartbeat
    with serving(vllm.url, KEY, home, board):
        wait_until(lambda: board.read().served_version == 1)
        board.note(current_version=2)
        wait_until(lambda: board.read().served_version == 2)
    assert board.read().heartbeat == heartbeat
    assert served_by(vllm, home, 2)  # vLLM keeps serving after the service ends


@pytest.mark.slow
def test_the_service_starts_the_follower(vllm, tmp_path):
    """Without a published adapter, the service unloads the adapters left by an earlier service."""
    vllm.loaded |= {ALIAS: "/earlier", version_name(9): "/earlier"}
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CODELUPE_HOME": str(tmp_path / "home"),
        "METRICS_PORT": "0", "VLLM_URL": vllm.url, "VLLM_API_KEY": KEY,
    }  # fmt: skip
    command = [sys.executable, "-c", "from service.cli.main import main; main()", "up", "--no-demo"]
    with (tmp_path / "out").open("w") as out:
        service = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=out, stderr=out)
    try:
        wait_until(lambda: not vllm.loaded, seconds=120)
    finally:
        service.terminate()
        service.wait(60)
    assert KEY not in (tmp_path / "out").read_text()


def test_the_service_stops_while_a_load_hangs(vllm, home, publish):
    publish(1)
    vllm.faults["load", version_name(1)] = vllm.hang
    board = Board(Snapshot(state="waiting", current_version=1, current_known=True))
    with serving(vllm.url, KEY, home, board):
        wait_until(lambda: ("load", version_name(1)) in vllm.calls)
    assert vllm.loaded == {}


@pytest.fixture
def _often_interrupted():
    """Switch threads every microsecond, as on a busy machine."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_often_interrupted")
def test_troubles_of_many_threads_do_not_overwrite_each_other():
    board = Board(Snapshot())

    def work(name: str) -> None:
        for _ in range(300):
            board.trouble(name, name)
            board.update(state=name)
            board.clear(name)
        board.trouble(name, name)

    names = [f"cause {number}" for number in range(8)]
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(board.read().troubles) == names
    assert json.dumps(dict(board.read().troubles))
