"""What the page shows, without a browser: the sentence, the counts, the curves, the quality over runs, the answers."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from db.chunks import Pending
from db.history import JudgedRun
from db.runs import Totals
from service.cycle.watch import Watcher
from service.gate.evidence import Evidence
from service.gate.quality import quality_of
from service.settings.home import Home
from service.web import curves as curves_module
from service.web import quality as quality_module
from service.web.answers import compared_answers
from service.web.board import Board, Progress, Snapshot
from service.web.curves import MAX_POINTS, Curve, Curves, RunCurves
from service.web.guard import is_loopback
from service.web.log_tail import TAIL_BYTES, log_tail
from service.web.overview import counted, duration, sentence
from service.web.pipeline import pipeline
from service.web.quality import Quality, thinned
from service.web.schema import dumps, from_json, schema_of
from trainer.recipe import Gate
from trainer.records import SampleEvaluation, append_event
from trainer.run_dir import RunDirectory


def pending(rows: int, **ineligible: int) -> Pending:
    return Pending(
        rows=rows, oldest_age_seconds=1.0, ineligible=ineligible, unknown_ranges=0, oldest_sweep_age_seconds=1.0,
        at=datetime.now(UTC),
    )  # fmt: skip


def totals(rows: dict[str, int], rejected: dict[str, int]) -> Totals:
    return Totals(
        runs={}, rows=rows, rejected=rejected, trained_rows=0, trained_tokens=0, last_trained_id=None,
        last_success_at=None, last_run_seconds=None,
    )  # fmt: skip


# --- the sentence -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": "starting"}, "Healthy. Starting."),
        ({"state": "waiting", "pending": pending(1), "min_new_files": 1}, "Healthy. Waiting: 1 of 1 new file."),
        ({"state": "waiting", "pending": pending(5), "min_new_files": 1000, "current_known": True},
         "Healthy. Waiting: 5 of 1,000 new files, no adapter yet."),
        ({"state": "training", "progress": Progress(run_id=42), "pending": pending(118)},
         "Healthy. Training run 42, preparing, 118 files waiting."),
        ({"state": "training", "progress": Progress(run_id=42, step=63, steps_total=100, seconds_left=4000.0)},
         "Healthy. Training run 42, 63 %, 1 h 7 min left."),
        ({"state": "judging", "progress": Progress(run_id=42), "pending": pending(0)},
         "Healthy. Judging run 42, 0 files waiting."),
        ({"state": "on_hold", "held_since": 0.0}, "Healthy. Paused on request."),
        ({"state": "training", "progress": Progress(run_id=42), "held_since": 0.0},
         "Healthy. Training run 42, preparing, then it pauses on request."),
        ({"state": "paused", "troubles": {"disk": "0.1 GB are free. Free some space"}},
         "Needs attention. Paused. 0.1 GB are free. Free some space."),
    ],
)  # fmt: skip
def test_the_sentence_says_what_happens(changes: dict[str, Any], said: str) -> None:
    assert sentence(Snapshot(**changes)) == said


def test_the_sentence_says_how_long_the_adapter_is_live() -> None:
    at = datetime.fromtimestamp(time.time() - 7200, UTC)
    now = Snapshot(state="starting", current_version=41, current_published_at=at, current_known=True)
    assert sentence(now) == "Healthy. Starting, adapter v41 live for 2 h."


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "1 h"), (3540, "59 min"), (7500, "2 h 5 min"), (86400, "1 d"),
     (97200, "1 d 3 h")],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_one_file_and_many() -> None:
    assert (counted(1, "file"), counted(0, "file"), counted(1234, "file")) == ("1 file", "0 files", "1,234 files")


# --- the counts -------------------------------------------------------------------------------------------------


def test_each_stage_is_the_next_one_and_what_stayed() -> None:
    snapshot = Snapshot(
        totals=totals(
            {"trained": 100, "learning": 10, "held_out": 7, "quarantined": 2, "rejected": 14, "returned": 5},
            {"duplicate": 3, "too_few_lines": 9, "no_gain": 2},
        ),
        pending=pending(20, low_score=40, too_short=4),
        rows_in_run=11,
    )
    stages = pipeline(snapshot)
    assert [(stage.stage, stage.rows) for stage in stages] == [
        ("arrived", 208), ("admitted", 141), ("sampled", 132), ("trained", 114), ("judged", 112), ("live", 100),
    ]  # fmt: skip
    for stage, following in pairwise(stages):
        assert stage.rows == following.rows + sum(share.rows for share in stage.stayed)
    assert {share.reason for share in stages[0].stayed} == {"waiting", "low_score", "too_short", "duplicate"}
    assert [share.disposition for share in stages[1].stayed] == ["rejected"]


def test_nothing_is_counted_before_the_database_answered() -> None:
    assert [stage.rows for stage in pipeline(Snapshot())] == [0] * 6


# --- the curves -------------------------------------------------------------------------------------------------


def test_a_long_curve_keeps_its_mean_and_its_extremes() -> None:
    curve = Curve()
    values = [math.sin(step / 1000) for step in range(1, 100_001)]
    values[77_777] = 50.0
    for step, value in enumerate(values, 1):
        curve.add(step, value)
    assert len(curve.points) <= 2 * MAX_POINTS
    points = curve.sampled(300)
    assert len(points) <= 300 and points[-1][0] == 100_000
    assert max(point[3] for point in points) == 50.0, "a spike is not averaged away"
    assert min(point[2] for point in points) == pytest.approx(min(values), rel=1e-5)
    weighted = sum(point.mean * point.count for point in curve.points) / 100_000
    assert weighted == pytest.approx(sum(values) / 100_000, abs=1e-9)


def events_of(path: Path, *records: dict[str, Any]) -> None:
    with path.open("a") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def step(number: int, loss: Any = 1.0) -> dict[str, Any]:
    return {"event": "step", "step": number, "loss": loss, "learning_rate": 0.1, "tokens_per_second": 5.0}


def test_curves_grow_with_the_events_and_a_resume_repeats_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events_of(path, {"event": "started", "resumed_from_step": None}, *[step(n) for n in range(1, 6)])
    found = RunCurves(path)
    found.advance()
    assert [point[0] for point in found.as_record(10)["curves"]["train_loss"]] == [1, 2, 3, 4, 5]
    events_of(
        path, {"event": "started", "resumed_from_step": 3}, step(4, 2.0), {"event": "step", "step": 5, "loss": "nan"}
    )
    found.advance()
    assert [point[:2] for point in found.as_record(10)["curves"]["train_loss"]] == [[1, 1], [2, 1], [3, 1], [4, 2]]
    path.write_text("")
    events_of(path, step(1, 7.0))
    found.advance()
    assert [point[1] for point in found.as_record(10)["curves"]["train_loss"]] == [7.0], "a run from its beginning"


def test_half_a_line_waits_and_damage_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'\xff\xfe{"\n[1]\n"text"\n' + json.dumps(step(1)).encode() + b'\n{"event": "st')
    found = RunCurves(path)
    found.advance()
    assert len(found.as_record(10)["curves"]["train_loss"]) == 1
    with path.open("ab") as file:
        file.write(b'ep", "step": 2, "loss": 3.0}\n')
    found.advance()
    assert [point[1] for point in found.as_record(10)["curves"]["train_loss"]] == [1.0, 3.0]


def test_a_long_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_module, "BUDGET_BYTES", 1000)
    path = tmp_path / "events.jsonl"
    events_of(path, *[step(n) for n in range(1, 101)])
    found, asked = RunCurves(path), 0
    while not found.is_complete:
        found.advance()
        asked += 1
    assert 5 < asked < 20
    assert len(found.as_record(600)["curves"]["train_loss"]) == 100


def test_a_line_longer_than_a_piece_does_not_stop_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_module, "BUDGET_BYTES", 100)
    path = tmp_path / "events.jsonl"
    events_of(path, {"event": "experts", "layers": "x" * 500}, step(1))
    found = RunCurves(path)
    for _ in range(20):
        found.advance()
    assert found.is_complete and len(found.as_record(10)["curves"]["train_loss"]) == 1


def test_odd_events_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(
        '{"event": ["step"], "step": 1}\n{"event": "step", "step": 1, "loss": 1' + "0" * 400 + "}\n"
        '{"event": "step", "step": 2, "loss": NaN}\n' + "[" * 100_000 + "\n"
        '{"event": "step", "step": 3, "loss": 1.5}\n{"event": "step", "step": -1, "loss": 9.0}\n'
        '{"event": "evaluation", "step": 3, "which": "anchor", "loss": NaN}\n'
    )
    found = RunCurves(path)
    found.advance()
    record = found.as_record(10)
    assert [point[:2] for point in record["curves"]["train_loss"]] == [[3, 1.5]]
    assert record["complete"] and record["lines"] == {}


def test_half_a_line_that_is_very_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_module, "BUDGET_BYTES", 100)
    monkeypatch.setattr(curves_module, "LONGEST_LINE", 1000)
    path = tmp_path / "events.jsonl"
    path.write_text("x" * 1500)
    found = RunCurves(path)
    for _ in range(3):
        found.advance()
    with path.open("a") as file:
        file.write("\n")
    events_of(path, step(1))
    for _ in range(5):
        found.advance()
    assert found.is_complete and len(found.as_record(10)["curves"]["train_loss"]) == 1


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.run(1).root.mkdir(parents=True)
    for path in (home.run(1).events, home.run(1).answers, tmp_path / "log"):
        os.mkfifo(path)
    assert Curves(home).of(1)["curves"] == {}
    assert compared_answers(home, current=1, previous=None) == []
    assert log_tail(tmp_path / "log", 5) == []


def test_the_loss_is_shown_against_the_base_and_the_judging_part_is_another_thing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    evaluation = {"event": "evaluation", "step": 0}
    events_of(
        path, {**evaluation, "which": "anchor", "loss": 1.9}, {**evaluation, "which": "current", "loss": 1.6},
        {**evaluation, "which": "candidate", "loss": 1.6}, {**evaluation, "which": "candidate", "step": 5, "loss": 1.4},
        {**evaluation, "which": "anchor", "step": 5, "loss": 9.0, "part": "judging"},
        {**evaluation, "which": "candidate", "step": 5, "loss": 9.0, "part": "judging"},
    )  # fmt: skip
    found = RunCurves(path)
    found.advance()
    record = found.as_record(10)
    assert record["lines"] == {"anchor": 1.9, "current": 1.6}
    assert [point[:2] for point in record["curves"]["eval_loss"]] == [[0, 1.6], [5, 1.4]]


def test_only_a_few_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_module, "RUNS_KEPT", 2)
    curves = Curves(Home(tmp_path))
    for run_id in (1, 2, 3):
        assert curves.of(run_id)["curves"] == {}
    assert list(curves._runs) == [2, 3]
    curves._runs[2].is_complete = False
    curves.of(4)
    assert list(curves._runs) == [2, 4], "one that is still being read stays"


# --- quality over runs ------------------------------------------------------------------------------------------


@dataclass
class Source:
    """Judged runs as the database gives them."""

    newest: int
    reads: int = 0

    def read(self, after: int, before: int, limit: int) -> list[JudgedRun]:
        self.reads += 1
        ids = [number for number in range(self.newest, 0, -1) if after < number < before][:limit]
        return [
            JudgedRun(run_id=number, state="published", ended_at=datetime.now(UTC),
                      evaluation={"candidate": {"loss": float(number)}}, quality={"suites": {"s": {"candidate": 0.5}}})
            for number in ids
        ]  # fmt: skip


def test_quality_reads_each_run_once_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_module, "CHUNK_RUNS", 10)
    source = Source(35)
    quality = Quality(source.read)
    counts = []
    while not (found := quality.series(1000))["complete"]:
        counts.append(found["runs"])
    assert counts == [20, 30] and [point["run"] for point in found["points"]] == list(range(1, 36))
    source.newest = 37
    assert [point["run"] for point in quality.series(1000)["points"]][-2:] == [36, 37]
    source.newest = 200  # more than a piece: begins again with the newest
    while not (found := quality.series(1000))["complete"]:
        pass
    assert [point["run"] for point in found["points"]] == list(range(1, 201))
    before = source.reads
    quality.series(1000)
    assert source.reads == before + 1


def test_many_runs_become_a_few_points_with_their_means() -> None:
    points = [{"run": n, "state": "published", "ended_at": None, "values": {"candidate": float(n)}} for n in range(10)]
    found = thinned(points, 5)
    assert [(point["run"], point["values"]["candidate"], point["runs"]) for point in found] == [
        (1, 0.5, 2), (3, 2.5, 2), (5, 4.5, 2), (7, 6.5, 2), (9, 8.5, 2),
    ]  # fmt: skip


def test_a_verdict_remembers_its_slices_and_suites() -> None:
    def sample(loss: float, *, fresh: bool, kind: str) -> SampleEvaluation:
        losses = {"anchor": 40.0, "current": 30.0, "candidate": loss}
        return SampleEvaluation(
            file_ids=(1,), fresh=fresh, run_id=None if fresh else 1, repository="r", path="p", language="python",
            kind=kind, tokens=10, loss=losses, correct={},
        )  # fmt: skip

    evidence = Evidence(
        run_id=2, gate=Gate(), report={},
        samples=[sample(20.0, fresh=True, kind="instruction"), sample(28.0, fresh=False, kind="fim_node")],
        examination={"suites": {"01-H": {"current": 0.4, "candidate": 0.5}, "02-old": {"difference": 0}}},
    )  # fmt: skip
    assert quality_of(evidence) == {
        "slices": {
            "new": {"anchor": 4.0, "current": 3.0, "candidate": 2.0},
            "earlier": {"anchor": 4.0, "current": 3.0, "candidate": 2.8},
            "fim": {"anchor": 4.0, "current": 3.0, "candidate": 2.8},
        },
        "suites": {"01-H": {"current": 0.4, "candidate": 0.5}, "02-old": {}},
    }


# --- answers and log --------------------------------------------------------------------------------------------


def test_previous_answers_are_those_of_the_parents_run(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for run_id, answer in ((1, "first"), (2, "second")):
        home.run(run_id).root.mkdir(parents=True)
        found = {"prompts": [{"prompt": "p", "candidate": answer, "base": "b"}]}
        home.run(run_id).answers.write_text(json.dumps(found))
    [one] = compared_answers(home, current=2, previous=1)
    assert (one.prompt, one.base, one.previous, one.current) == ("p", "b", "first", "second")
    assert compared_answers(home, current=2, previous=None)[0].previous is None
    for damage in ("[", "[" * 100_000, '{"prompts": 3}', "x" * 2_000_001):
        home.run(2).answers.write_text(damage)
        assert compared_answers(home, current=2, previous=1) == []


def test_the_log_ends_with_its_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert log_tail(path, 5) == []
    path.write_bytes(b"\xff first\n" + b"".join(b"line %d\n" % n for n in range(TAIL_BYTES // 4)) + b"x" * 5000 + b"\n")
    lines = log_tail(path, 3)
    assert len(lines) == 3 and lines[1] == f"line {TAIL_BYTES // 4 - 1}" and len(lines[2]) == 2001
    assert log_tail(path, 10**6)[0].startswith("line "), "no half line"


# --- the watcher, the schema, the guard -------------------------------------------------------------------------


def test_the_board_has_time_left_and_patience(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    board = Board(Snapshot())
    watcher = Watcher(directory, 3, board)
    events_of(directory.events, {"time": 0.0, "event": "started"})
    for number in range(1, 31):
        events_of(directory.events, {**step(number), "time": 2.0 * number, "steps_total": 100})
    events_of(
        directory.events,
        {"time": 61.0, "event": "evaluation", "which": "candidate", "loss": 1.0, "misses": 2, "patience": 3},
    )
    watcher.read()
    progress = board.read().progress
    assert progress is not None
    assert (progress.seconds_left, progress.misses, progress.patience) == (140.0, 2, 3)
    append_event(directory.events, "started")
    events_of(directory.events, {**step(31), "time": 9999.0, "steps_total": 100})
    watcher.read()
    resumed = board.read().progress
    assert resumed is not None and resumed.seconds_left is None, "the time without a trainer does not count"


@dataclass(frozen=True, kw_only=True)
class Inner:
    when: datetime
    loss: float


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: list[Inner] | None = None


def test_json_and_its_schema_belong_together() -> None:
    value = Outer(name="n", inner=[Inner(when=datetime(2026, 1, 2, tzinfo=UTC), loss=math.nan)])
    assert json.loads(dumps(value)) == {"name": "n", "inner": [{"when": "2026-01-02T00:00:00+00:00", "loss": None}]}
    schema = schema_of(Outer)
    assert schema["required"] == ["name", "inner"] and schema["additionalProperties"] is False
    assert schema["properties"]["inner"]["anyOf"][0]["items"]["properties"]["when"]["format"] == "date-time"
    assert json.loads(dumps({"a": "\ud800"})) == {"a": "\ud800"}, "a lone surrogate"
    with pytest.raises(TypeError):
        dumps(Outer(name=b"bytes"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name is missing"):
        from_json(Outer, {})


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True), ("LOCALHOST", True),
     ("0.0.0.0", False), ("192.168.1.4", False), ("evil.example", False), ("", False)],
)  # fmt: skip
def test_loopback_is_told_from_the_rest(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_the_vendored_files_are_those_that_were_published() -> None:
    import hashlib

    folder = Path(curves_module.__file__).parent / "static" / "vendor"
    lines = (folder / "SHA256SUMS.txt").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("uPlot*")}
