"""The verdict goes to the trackers after the run: in the background, and again at the next start if that failed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from run_folder import short_recipe, short_run

from db.runs import Run
from service.cycle import verdicts
from service.cycle.verdicts import VerdictSender, energy_cost
from service.gate.judge import Verdict
from service.settings.home import Home
from service.settings.parsers import Price
from trainer.__main__ import main as trainer
from trainer.run_dir import RunDirectory, read_json, write_json

VERDICT: dict[str, Any] = {"decision": "promote", "promote": True, "reasons": [], "rules": [], "intervals": {}}
REFUSED = Verdict(decision="refuse", findings=(), measured={}, overruled="the parent moved")
REPORT: dict[str, Any] = {
    "steps": {"done": 5},
    "evaluation": {name: {"loss": 1.5} for name in ("anchor", "current", "candidate")},
    "energy_joules": 7.2e6,
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with one finished run that TensorBoard followed."""
    home = Home(tmp_path / "home")
    home.prepare()
    run = short_run(home.run(1).root, short_recipe(tracking__tensorboard=True))
    write_json(run.report, REPORT)
    (run.root / "tensorboard").mkdir()
    return home


def sender(home: Home) -> VerdictSender:
    return VerdictSender(home, {}, Price(per_kwh=0.3, currency="EUR"))


def ended(run_id: int, report: dict[str, Any] | None) -> Run:
    now = datetime.now(UTC)
    return Run(
        run_id=run_id, stream="tiny-codelupe", state="refused", parent_version=None, seed=1, launches=1, created_at=now,
        started_at=now, ended_at=now, reason=None, report=report,
    )  # fmt: skip


def board(run: RunDirectory) -> dict[str, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run.root / "tensorboard"))
    shown.Reload()
    return {name: shown.Scalars(name)[-1].value for name in shown.Tags()["scalars"]}


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The events that the sender logs."""
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(verdicts, "log", lambda message, level=0, **fields: found.append((message, fields)))
    return found


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_verdict_is_written_at_once_and_sent_in_the_background(home: Home) -> None:
    sending = sender(home)
    began = time.monotonic()
    sending.tell(1, REFUSED, REPORT)
    assert time.monotonic() - began < 0.5
    written = read_json(home.run(1).verdict)
    assert written["decision"] == "refuse" and written["reasons"] == ["the parent moved"] and written["adapter"] is None
    assert written["energy_cost"] == {"amount": 0.6, "per_kwh": 0.3, "currency": "EUR"}
    sending.close(20)
    assert read_json(home.run(1).verdict_sent) == {"decision": "refuse"}
    shown = board(home.run(1))
    assert shown["gate/promoted"] == 0 and shown["energy/kwh"] == 2 and shown["gate/loss/current"] == 1.5
    assert shown["energy/cost"] == pytest.approx(0.6)


def test_an_adapter_is_named_relative_to_its_run(home: Home) -> None:
    verdicts.write_verdict(home, 1, VERDICT, None)
    written = read_json(home.run(1).verdict)
    assert written["version"] == 1 and written["adapter"] == "../../models/adapters/v000001"
    assert (home.run(1).root / written["adapter"]).resolve() == home.adapter(1).resolve()


def test_a_tracker_that_hangs_is_killed_with_the_service_and_told_at_its_next_start(
    home: Home, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(verdicts, "TRAINER", (sys.executable, "-c", "import time; time.sleep(60)"))
        sending = sender(home)
        sending.tell(1, REFUSED, REPORT)
        until(lambda: sending._process is not None)
        began = time.monotonic()
        sending.close(0.2)
        assert time.monotonic() - began < 2
        assert sending._process is not None and sending._process.wait(5) == -9
    assert not home.run(1).verdict_sent.exists()
    later = sender(home)
    later.catch_up([ended(1, {**REPORT, "verdict": REFUSED.as_record(), "energy_cost": None})])
    later.close(20)
    assert home.run(1).verdict_sent.exists() and logged == [("Verdict sent to the trackers", {"run": 1})]


def test_a_failure_is_logged_with_its_reason_and_waits_for_the_next_start(
    home: Home, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    said = "import sys; sys.exit('wandb: no route to the server')"
    monkeypatch.setattr(verdicts, "TRAINER", (sys.executable, "-c", said))
    sending, run = sender(home), ended(1, {**REPORT, "verdict": REFUSED.as_record()})
    sending.tell(1, REFUSED, REPORT)
    sending.catch_up([run])  # the same service does not try again
    sending.close(20)
    assert logged == [("Verdict not sent", {"run": 1, "reason": "wandb: no route to the server"})]


def test_one_that_takes_too_long_is_killed(home: Home, monkeypatch: pytest.MonkeyPatch, logged: list[Any]) -> None:
    monkeypatch.setattr(verdicts, "TRAINER", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(verdicts, "SEND_SECONDS", 0.3)
    sending = sender(home)
    sending.tell(1, REFUSED, REPORT)
    sending.close(20)
    assert logged == [("Verdict not sent", {"run": 1, "reason": "no answer within 0 s"})]


def test_only_ended_runs_with_a_verdict_are_caught_up(home: Home) -> None:
    sending = sender(home)
    sending.catch_up(
        [ended(1, None), replace(ended(1, {"verdict": VERDICT}), ended_at=None), ended(2, {"verdict": VERDICT})]
    )
    sending.close(5)
    assert not home.run(1).verdict.exists() and not home.run(2).root.exists()


def test_a_run_without_trackers_needs_no_process(home: Home) -> None:
    (home.run(1).root / "tensorboard").rmdir()
    sending = sender(home)
    sending.tell(1, REFUSED, REPORT)
    assert home.run(1).verdict.exists() and sending._thread is None
    sending.close(5)


def test_a_run_without_a_verdict_is_unusable_input(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    assert trainer(["track", str(home.run(1).root)]) == 2
    assert "has no verdict.json" in capfd.readouterr().err
    home.run(1).verdict.write_text("{}")
    assert trainer(["track", str(home.run(1).root)]) == 2
    assert "cannot be sent: KeyError" in capfd.readouterr().err


def test_without_a_price_or_a_card_there_is_no_cost() -> None:
    price = Price(per_kwh=0.3, currency="")
    assert energy_cost(REPORT, None) is None
    assert energy_cost({"energy_joules": None}, price) is None
    assert energy_cost({"energy_joules": 3.6e6}, price) == {"amount": 0.3, "per_kwh": 0.3, "currency": ""}
