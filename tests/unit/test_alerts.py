"""Alerts reach a real webhook, or fail in a way that costs the service nothing and shows no secret."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner
from webhook import PASSWORD, SECRET, Webhook, webhook

from service import logs
from service.alerts import alerting as alerting_module
from service.alerts import outbox as outbox_module
from service.alerts import targets
from service.alerts.alert import Alert
from service.alerts.alerting import alerting
from service.alerts.limiter import HOUR_SECONDS, MOST_PER_HOUR, Limiter
from service.alerts.observer import OVER_SECONDS, PATIENCE_SECONDS, SILENT_TRAINER_SECONDS, Observer
from service.alerts.outbox import LONGEST_QUEUE, Outbox
from service.alerts.targets import open_targets, shown, try_all
from service.cli.doctor import alert_findings
from service.cli.main import app
from service.errors import PreconditionError, SettingsError
from service.settings.environment import PROJECT_RECIPES
from service.settings.load import Settings, load_settings
from service.settings.variables import ALERT_KINDS
from service.web.board import STALE_HEARTBEAT_SECONDS, Board, Progress, Snapshot
from service.web.exposition import json_metrics, prometheus_metrics


def settings_with(*urls: str, **more: str) -> Settings:
    environment = {"ALERT_URLS": " ".join(urls), **more}
    return load_settings(PROJECT_RECIPES / "embedded.yaml", environment=environment, env_file=None)


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as hook:
        yield hook


@pytest.fixture
def board() -> Board:
    return Board(Snapshot(stream="s", state="waiting"))


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Return what the service's own log file has, with every library at its most talkative."""
    for hook in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, hook, getattr(sys, hook))  # put back afterwards
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    loggers = (logging.getLogger(), logs.LOG)
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    logs.set_up("json", tmp_path / "log")
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    yield lambda: (tmp_path / "log").read_text()
    logging.captureWarnings(False)
    for logger, handlers, level, propagate in before:
        for added in set(logger.handlers) - set(handlers):
            logger.removeHandler(added)
            added.close()
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting_module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(outbox_module, "RETRY_SECONDS", (0.05, 0.05, 0.05))


@contextmanager
def sending(board: Board, *urls: str, once: bool = False, **more: str) -> Iterator[None]:
    settings = settings_with(*urls, **more)
    with alerting(open_targets(settings.alert_urls), settings, board, once=once):
        yield


def alert(number: int = 1, kind: str = "refused", topic: str | None = None) -> Alert:
    return Alert(
        kind=kind, severity="bad", title=f"title {number}", text=f"text {number}.", topic=topic or f"t{number}"
    )


# --- what is told -----------------------------------------------------------------------------------------------


def test_a_promoted_and_a_refused_run_arrive_with_stream_run_reason_and_page(hook: Webhook, board: Board):
    with sending(board, hook.url, PUBLIC_URL="https://train.example"):
        board.ended(7, "promote", "gain: on new files better by 0.15")
        board.ended(8, "refuse", "loss: worse by 0.2.\nSecond line")
        hook.wait(2)
    assert hook.titles() == ["CodeLupe s: run 7 promoted", "CodeLupe s: run 8 refused"]
    first, second = (body["message"] for body in hook.taken)
    assert first == (
        "Run 7 of the stream s was promoted and published as version 7: gain: on new files better by 0.15. "
        "https://train.example"
    )
    assert "loss: worse by 0.2. Second line." in second and "\n" not in second
    assert [body["type"] for body in hook.taken] == ["success", "warning"]
    assert {path for path, _ in hook.requests} == {f"/hooks/{SECRET}"}


def test_only_the_chosen_kinds_are_sent(hook: Webhook, board: Board):
    with sending(board, hook.url, ALERT_ON="failed, inconclusive"):
        for run, decision in enumerate(("promote", "refuse", "inconclusive", "failed"), 1):
            board.ended(run, decision, f"reason {run}")  # type: ignore[arg-type]
        board.trouble("disk", "full")
    assert hook.wait(2) == ["CodeLupe s: run 3 inconclusive", "CodeLupe s: run 4 failed"]


class Watch:
    """An observer with a clock of its own."""

    def __init__(self, *kinds: str) -> None:
        self.now = 1000.0
        self.limiter = Limiter(lambda: self.now)
        self.observer = Observer(kinds or ALERT_KINDS, None, self.limiter, lambda: self.now)

    def titles(self, snapshot: Snapshot, seconds: float = 1.0) -> list[str]:
        self.now += seconds
        return [found.title for found in self.observer.look(snapshot)]


def test_a_disk_that_fills_is_told_once_and_its_end_too(board: Board):
    watch = Watch()
    for free in ("3.1", "3.0", "2.9"):
        board.trouble("disk", f"{free} GB are free")
        found = watch.titles(board.read())
        assert found == (["CodeLupe s: disk (disk)"] if free == "3.1" else [])
    board.clear("disk")
    assert watch.titles(board.read()) == []
    board.trouble("disk", "2 GB are free")  # the service tried again
    assert watch.titles(board.read(), OVER_SECONDS / 2) == []
    board.clear("disk")
    assert watch.titles(board.read(), OVER_SECONDS / 2) == []
    assert watch.titles(board.read(), OVER_SECONDS + 1) == ["CodeLupe s: over (disk)"]
    board.trouble("disk", "1 GB are free")
    assert watch.titles(board.read()) == ["CodeLupe s: disk (disk)"], "after its end, it is news"


def test_a_short_outage_of_the_database_is_not_told_and_a_long_one_is(board: Board):
    watch = Watch()
    board.trouble("database", "the database does not answer")
    assert watch.titles(board.read()) == []
    board.clear("database")
    assert watch.titles(board.read(), 2 * OVER_SECONDS) == []
    board.trouble("database", "the database does not answer")
    assert watch.titles(board.read()) == []
    assert watch.titles(board.read(), PATIENCE_SECONDS["degraded"] + 1) == ["CodeLupe s: degraded (database)"]


def test_a_failed_run_and_its_pause_are_one_alert(board: Board):
    watch = Watch()
    board.ended(7, "failed", "run 7 failed: CUDA is out of memory")
    board.trouble("trainer", "run 7 failed: CUDA is out of memory")
    assert watch.titles(board.read()) == ["CodeLupe s: run 7 failed"]
    board.clear("trainer")
    assert watch.titles(board.read()) == []
    assert watch.titles(board.read(), OVER_SECONDS + 1) == ["CodeLupe s: over (trainer)"]
    board.ended(9, "failed", "run 9 failed: CUDA is out of memory")
    assert watch.titles(board.read()) == ["CodeLupe s: run 9 failed"], "after its end, it is news"
    only_pauses = Watch("paused")
    board.trouble("trainer", "run 7 failed: CUDA is out of memory")
    assert only_pauses.titles(board.read()) == ["CodeLupe s: paused (trainer)"]


def test_a_loop_that_hangs_and_a_silent_trainer_are_stuck(board: Board):
    watch = Watch()
    fresh = replace(board.read(), state="training", progress=Progress(run_id=4), last_event=time.monotonic())
    assert watch.titles(fresh) == []
    silent = replace(fresh, last_event=time.monotonic() - SILENT_TRAINER_SECONDS - 1)
    assert watch.titles(silent) == [] and watch.titles(silent, 6) == ["CodeLupe s: stuck (trainer silent)"]
    assert watch.titles(replace(silent, state="judging"), OVER_SECONDS + 1) == ["CodeLupe s: over (trainer silent)"]
    hanging = replace(board.read(), heartbeat=time.monotonic() - STALE_HEARTBEAT_SECONDS - 1)
    assert watch.titles(hanging) == [], "a process that was suspended beats again at once"
    assert watch.titles(hanging, 6) == ["CodeLupe s: stuck (main loop)"]


def test_a_pause_by_a_person_is_told(board: Board):
    watch = Watch()
    board.note(held_since=time.time())
    assert watch.titles(board.read()) == ["CodeLupe s: paused (on hold)"]


# --- the rate limit ---------------------------------------------------------------------------------------------


def test_at_most_ten_an_hour_of_a_kind_and_the_rest_is_summed_up():
    now = 0.0
    limiter = Limiter(lambda: now)
    admitted = [limiter.admit(alert(n)) for n in range(MOST_PER_HOUR + 3)]
    assert [found is not None for found in admitted] == [True] * MOST_PER_HOUR + [False] * 3
    assert limiter.admit(alert(1, kind="failed", topic="x")) is not None, "another kind has its own limit"
    now = HOUR_SECONDS - 1
    assert limiter.due() == []
    now = HOUR_SECONDS
    (late,) = limiter.due()
    assert late.title == f"title {MOST_PER_HOUR + 2}"
    assert late.text == f"text {MOST_PER_HOUR + 2}. And 2 more like it. This was held back for 1 hour."
    assert limiter.due() == [] and limiter.held() == 0


def test_the_same_reason_is_not_repeated_within_an_hour_but_counted():
    now = 0.0
    limiter = Limiter(lambda: now)
    assert limiter.admit(alert(1, topic="same")) is not None
    assert limiter.admit(alert(2, topic="same")) is None
    assert limiter.admit(alert(3, topic="same")) is None
    now = 60.0
    other = limiter.admit(alert(4, topic="other"))
    assert other is not None and other.text == "text 4. And 2 more like it in the last 1 minute."


def test_runs_that_fail_for_the_same_reason_are_one_alert(board: Board):
    watch = Watch()
    for run in range(5):
        board.ended(run, "failed", f"run {run} failed: step {run} ran out of memory")
        assert watch.titles(board.read()) == (["CodeLupe s: run 0 failed"] if run == 0 else [])
    assert watch.observer.held == 4
    assert watch.titles(board.read(), HOUR_SECONDS) == ["CodeLupe s: run 4 failed"]


def test_a_trouble_that_was_held_back_is_told_later_with_its_state(board: Board):
    watch = Watch()
    for n in range(MOST_PER_HOUR):
        board.trouble("service", f"reason {'x' * (n + 1)}")
        assert len(watch.titles(board.read())) == 1
    board.trouble("service", "one too many")
    assert watch.titles(board.read()) == []
    watch.now += HOUR_SECONDS
    (late,) = watch.observer.look(board.read())
    assert "one too many" in late.text and "It is over" not in late.text
    board.clear("service")
    assert watch.titles(board.read()) == []
    assert watch.titles(board.read(), OVER_SECONDS + 1) == ["CodeLupe s: over (service)"]


# --- delivery ---------------------------------------------------------------------------------------------------


def test_a_target_that_answers_500_is_tried_again(hook: Webhook, board: Board):
    hook.status = lambda number: 200 if number > 2 else 500
    with sending(board, hook.url):
        board.ended(1, "promote", "better")
        hook.wait(1)
    assert len(hook.requests) == 3
    assert dict(board.read().alerts) == {"delivered": 1}


@pytest.mark.parametrize(("status", "tries"), [(500, 4), (429, 4), (404, 1), (401, 1)])
def test_it_is_given_up_in_the_end(hook: Webhook, board: Board, caplog: pytest.LogCaptureFixture, status, tries):
    caplog.set_level("INFO", "codelupe")
    hook.status = lambda number: status
    with sending(board, hook.url):
        board.ended(1, "promote", "better")
        wait_until(lambda: board.read().alerts.get("failed") == 1)
    assert len(hook.requests) == tries
    (record,) = [record for record in caplog.records if record.message == "Alert not delivered"]
    assert record.fields["reason"] == f"it answered with the status {status}"  # type: ignore[attr-defined]
    assert record.fields["target"] == f"json://127.0.0.1:{hook.port}"  # type: ignore[attr-defined]


def test_a_target_that_hangs_delays_no_other_and_neither_the_end(hook: Webhook, board: Board):
    with webhook() as silent:
        silent.hanging.set()
        with sending(board, silent.url, hook.url):
            began = time.monotonic()
            board.ended(1, "promote", "better")
            assert time.monotonic() - began < 0.5
            wait_until(lambda: silent.requests)
            board.ended(2, "refuse", "worse")
            hook.wait(2, 3.0)
            ending = time.monotonic()
        assert time.monotonic() - ending < alerting_module.END_SECONDS + 1.0
        assert dict(board.read().alerts) == {"delivered": 2, "dropped": 2}


def test_a_redirect_is_not_followed_and_does_not_count_as_delivered(hook: Webhook):
    """A login page would answer 200, and another host would see the message."""
    with webhook() as elsewhere:
        hook.status = lambda number: 302
        hook.location = f"http://127.0.0.1:{elsewhere.port}/login"
        [target] = open_targets((hook.url,))
        refusal = target.send(alert())
        assert refusal is not None and refusal.is_final and "302" in refusal.reason
        assert elsewhere.requests == []


def test_an_answer_that_never_ends_is_left_alone(hook: Webhook, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "SEND_SECONDS", 0.3)
    hook.hanging.set()
    [target] = open_targets((hook.url,))
    first, second = target.send(alert()), target.send(alert())
    assert first is not None and "no end of its answer" in first.reason and not first.is_final
    assert second is not None and "not ended its last answer" in second.reason
    assert len(hook.requests) == 1


def test_what_waits_at_the_end_is_still_delivered(hook: Webhook, board: Board, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(alerting_module, "LOOK_SECONDS", 60.0)  # the watching thread does not see it
    hook.status = lambda number: 200 if number > 3 else 503
    with sending(board, hook.url, once=True):
        board.ended(1, "promote", "better")
        ending = time.monotonic()
    assert hook.titles() == ["CodeLupe s: run 1 promoted"]
    assert time.monotonic() - ending > 2 * outbox_module.LAST_RETRY_SECONDS, "the tries have a pause between them"


def test_what_is_held_back_is_counted(hook: Webhook, board: Board):
    with sending(board, hook.url):
        for run in (1, 2, 3):
            board.ended(run, "failed", "no memory")
        hook.wait(1)
    assert dict(board.read().alerts) == {"delivered": 1, "held": 2}


def test_an_error_that_ends_the_service_is_told_without_its_text(hook: Webhook, board: Board):
    with pytest.raises(KeyError), sending(board, hook.url):
        raise KeyError("row-text")
    (body,) = hook.taken
    assert "KeyError" in body["message"] and "row-text" not in str(body)


def test_a_full_queue_drops_the_oldest(hook: Webhook):
    hook.hanging.set()
    shown: dict[str, int] = {}
    box = Outbox(open_targets((hook.url,)), shown.update)
    box.post(alert(0))
    wait_until(lambda: hook.requests)
    for number in range(1, LONGEST_QUEUE + 4):
        box.post(alert(number))
    assert shown == {"dropped": 3}
    waiting = [waits.title for waits in box._lines[0]._queue]
    assert (waiting[0], waiting[-1], len(waiting)) == ("title 4", f"title {LONGEST_QUEUE + 3}", LONGEST_QUEUE)
    box.close(0.0)


def test_a_hanging_target_does_not_keep_the_process(hook: Webhook):
    hook.hanging.set()
    program = (
        "from service.alerts.outbox import Outbox\nfrom service.alerts.targets import open_targets\n"
        "from service.alerts.alert import Alert\nimport time\n"
        f"box = Outbox(open_targets(({hook.url + '?rto=50'!r},)), dict)\n"
        "box.post(Alert(kind='k', severity='bad', title='t', text='x', topic='y'))\ntime.sleep(0.5)\nbox.close(0.2)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0 and time.monotonic() - began < 10, done.stderr
    assert len(hook.requests) == 1


# --- addresses and secrets --------------------------------------------------------------------------------------


def test_secrets_are_in_no_log_no_error_and_no_metric(
    hook: Webhook, board: Board, logged: Callable[[], str], capfd: pytest.CaptureFixture[str]
):
    nowhere = f"json://someone:{PASSWORD}@127.0.0.1:1/{SECRET}"
    hook.status = lambda number: 500
    settings = settings_with(hook.url, nowhere)
    with alerting(open_targets(settings.alert_urls), settings, board, once=False):
        board.ended(1, "failed", "no memory")
        wait_until(lambda: board.read().alerts.get("failed") == 2)
    answers = try_all(open_targets(settings.alert_urls), alert())
    assert [refusal is not None for _, refusal in answers] == [True, True]
    outputs = [
        logged(), str(settings), str(capfd.readouterr()), *(thread.name for thread in threading.enumerate()),
        str(json_metrics(board.read())), prometheus_metrics(board, "text/plain")[0].decode(),
        str([(target.name, refusal) for target, refusal in answers]),
    ]  # fmt: skip
    for output in outputs:
        assert SECRET not in output and PASSWORD not in output
    assert "Alert not delivered" in logged()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"slack://{SECRET}", "apprise knows slack://, but a part of the address is missing or wrong"),
        (f"https://hooks.example/{SECRET}", "for a plain webhook, write jsons:// instead of https://"),
        (f"http://hooks.example/{SECRET}", "for a plain webhook, write json:// instead of http://"),
        (f"slakc://{SECRET}/b/c", "apprise has no service slakc://"),
    ],
)
def test_a_wrong_address_is_refused_by_number_and_scheme(address: str, said: str, logged: Callable[[], str]):
    with pytest.raises(SettingsError) as caught:
        open_targets(("json://127.0.0.1/x", address))
    scheme = address.partition(":")[0]
    assert f"ALERT_URLS: the address number 2 ({scheme}://…) is not allowed: {said}" in str(caught.value)
    assert SECRET not in str(caught.value) + logged()
    assert caught.value.exit_code == 2


def test_addresses_are_separated_by_spaces_or_commas_and_may_come_from_a_file(tmp_path: Path):
    two = ("json://host/a?to=x,y", "mailto://u:p@example.org")
    for text in (" ".join(two), ",".join(two), " , \n".join(two) + ",\n"):
        assert settings_with(text).alert_urls == two
        file = tmp_path / "urls"
        file.write_text(text)
        assert settings_with(ALERT_URLS_FILE=str(file)).alert_urls == two
    (tmp_path / "empty").write_text("\n")
    for bad in ({"ALERT_URLS": f"hello {SECRET}"}, {"ALERT_URLS_FILE": str(tmp_path / "empty")},
                {"ALERT_URLS_FILE": str(tmp_path / "none")}):  # fmt: skip
        with pytest.raises(SettingsError, match="ALERT_URLS") as caught:
            settings_with(**bad)
        assert SECRET not in str(caught.value)


def test_all_kinds_but_inconclusive_are_on():
    assert settings_with().alert_on == ("promoted", "refused", "failed", "paused", "stuck", "disk", "degraded")
    assert settings_with(ALERT_ON="none").alert_on == ()
    with pytest.raises(SettingsError, match="ALERT_ON: 'promotions' is not allowed"):
        settings_with(ALERT_ON="promotions")


def test_a_name_shows_no_token_in_the_hosts_place():
    assert shown(f"slack://{SECRET}/b/c") == "slack://…"
    assert shown(f"discord://{SECRET}/b") == "discord://…"
    assert shown(f"ntfy://{SECRET}") == "ntfy://…"
    assert shown(f"mailtos://u:{PASSWORD}@mail.example:587/?to={SECRET}") == "mailtos://mail.example:587"
    assert shown(f"https://hooks.slack.com/services/{SECRET}") == "https://hooks.slack.com"


def test_one_dead_target_of_two_is_named(hook: Webhook):
    answers = try_all(open_targets((hook.url, "json://127.0.0.1:1/x")), alert())
    assert [(target.name, refusal and refusal.reason) for target, refusal in answers] == [
        (f"json://127.0.0.1:{hook.port}", None),
        ("json://127.0.0.1:1", "it could not be reached, or did not answer"),
    ]


def test_the_command_tries_all_targets_and_its_exit_code_says_how_it_went(
    hook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # no .env is here

    def alert_test(*arguments: str, urls: str) -> Result:
        environment = {"ALERT_URLS": urls, "CODELUPE_RECIPE": "embedded"}
        return CliRunner().invoke(app, ["alert-test", *arguments], env=environment)

    good = alert_test(urls=hook.url)
    assert good.exit_code == 0 and "took a test message" in good.output
    assert hook.titles() == ["CodeLupe tiny-codelupe: test"]
    bad = alert_test("--json", urls=f"{hook.url} json://u:{PASSWORD}@127.0.0.1:1/{SECRET}")
    assert bad.exit_code == 1
    assert [found["state"] for found in json.loads(bad.stdout)] == ["ok", "failed"]
    assert SECRET not in bad.output and PASSWORD not in bad.output
    none, wrong = alert_test(urls="").exception, alert_test(urls=f"slack://{SECRET}").exception
    assert isinstance(none, PreconditionError) and "set ALERT_URLS" in str(none)
    assert isinstance(wrong, SettingsError) and "address number 1 (slack://…)" in str(wrong)


def test_a_wrong_address_stops_the_service_before_anything_is_made(tmp_path: Path):
    command = [sys.executable, "-c", "from service.cli.main import main; main()", "up", "--recipe", "embedded"]
    environment = os.environ | {"CODELUPE_HOME": str(tmp_path / "home"), "ALERT_URLS": f"slack://{SECRET}"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 2 and "address number 1 (slack://…)" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "home").exists()
    assert SECRET not in done.stdout + done.stderr


def test_doctor_names_a_wrong_address_and_goes_on():
    (found,) = alert_findings(settings_with(f"slack://{SECRET}"))
    assert found.state == "failed" and "slack://…" in found.said and SECRET not in found.said
    assert list(alert_findings(settings_with())) == []


def wait_until(condition, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
