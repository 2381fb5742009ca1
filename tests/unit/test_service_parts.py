"""The service's small parts: states, filters, home, log lines, the trainer's environment, its events."""

import io
import json
import logging
import multiprocessing
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.admission.filters import refusal
from service.cycle.launch import trainer_environment
from service.cycle.states import TRANSITIONS, may_follow
from service.cycle.trainer_commands import prepare_base
from service.cycle.watch import HANDLERS, Watcher
from service.errors import PreconditionError
from service.intake.demo import demo_files
from service.logs import FORMATS, LOG, event, progress_printer
from service.settings.environment import PROJECT_RECIPES
from service.settings.home import Home, only_service, running_service, stop_service
from service.settings.load import Eligibility, load_settings
from service.up import _show_addresses
from service.web.board import Board, Snapshot
from service.web.exposition import json_metrics, prometheus_metrics
from service.web.state import State
from trainer.recipe import Hygiene
from trainer.records import append_event
from trainer.run_dir import RunDirectory

ROOT = PROJECT_RECIPES.parent


def test_every_state_has_a_row_and_can_be_left_by_stopping():
    assert set(TRANSITIONS) == set(State)
    for state in State:
        assert may_follow(state, State.STOPPED)
    assert not may_follow(State.WAITING, State.JUDGING)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  \n \n", "empty"),
        ("x = 1", "too_few_lines"),
        ("x = 1\n\n\n\n\n\n\ny = 2\n", "too_few_lines"),
        ("a\0b\n" * 10, "binary"),
        ("<|im_end|><|im_start|>\n" * 10, "control_tokens"),
        ("x = 1\n" * 10, None),
        ("x = 1  # about <|im_end|>\n" + "y = 2 + 3\n" * 60, None),
    ],
)
def test_refusals(text: str, reason: str | None):
    assert refusal(text, Hygiene(), min_lines=6) == reason


def test_the_trainer_sees_an_allow_list(monkeypatch: pytest.MonkeyPatch):
    given = {
        "PATH": "/bin", "DATABASE_URL": "postgresql://u:p@h/d", "POSTGRES_PASSWORD": "p", "CODELUPE_TOKEN": "t",
        "AWS_SECRET_ACCESS_KEY": "k", "HF_HOME": "/cache", "WANDB_API_KEY": "from the environment",
        "HF_ENDPOINT": "",
    }  # fmt: skip
    seen = trainer_environment(given, {"WANDB_API_KEY": "from the settings"})
    assert seen["PATH"] == "/bin" and seen["HF_HOME"] == "/cache"
    assert seen["WANDB_API_KEY"] == "from the settings"
    assert not {"DATABASE_URL", "POSTGRES_PASSWORD", "CODELUPE_TOKEN", "AWS_SECRET_ACCESS_KEY"} & set(seen)
    assert "HF_ENDPOINT" not in seen  # docker-compose passes unset variables as empty


def hold(root: str, ready, done) -> None:
    with only_service(Home(Path(root))):
        ready.set()
        done.wait(30)


def test_one_service_per_folder(tmp_path: Path):
    home = Home(tmp_path)
    assert running_service(home) is None
    assert stop_service(home, wait_seconds=1) is None
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), ready, done))
    process.start()
    try:
        assert ready.wait(30)
        assert running_service(home) == process.pid
        with pytest.raises(PreconditionError, match=str(process.pid)), only_service(home):
            pass
        assert running_service(home) == process.pid
    finally:
        process.kill()
        process.join()
    assert running_service(home) is None  # the lock ended with the process
    with only_service(home):
        pass


def test_an_unwritable_home_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreconditionError, match="CODELUPE_HOME"):
        Home(tmp_path / "file" / "home").prepare()


@pytest.fixture(params=["text"])
def lines(request: pytest.FixtureRequest):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(FORMATS[request.param][0]())
    LOG.setLevel(logging.INFO)
    LOG.addHandler(handler)
    yield lambda: stream.getvalue().splitlines()
    LOG.removeHandler(handler)


def test_the_fuller_disk_counts_if_runs_and_models_are_on_different_disks(tmp_path: Path, monkeypatch):
    home = Home(tmp_path)
    free = {home.root: 900, home.runs: 500, home.models: 700}
    monkeypatch.setattr("service.settings.home.shutil.disk_usage", lambda folder: SimpleNamespace(free=free[folder]))
    assert home.free_bytes() == 500


def test_a_log_line_stays_one_line(lines):
    event("Verdict", reason='first\nsecond "quoted"', loss=1.23456789, missing=None, run=3)
    assert len(lines()) == 1
    assert lines()[0].endswith('INFO Verdict reason="first\\nsecond \\"quoted\\"" loss=1.23457 run=3')


def strict(line: str) -> dict[str, object]:
    """Parse as a strict parser does, without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return dict(json.loads(line, parse_constant=refuse))


@pytest.mark.parametrize("lines", ["json"], indirect=True)
def test_a_json_line_keeps_values_as_they_are(lines):
    try:
        raise ValueError("two\nlines")
    except ValueError:
        LOG.error("Broken", exc_info=True)
    event(
        "Eval", loss=2.5, run=3, best=True, parent=None, nan=float("nan"), nested={"inf": [float("-inf")]},
        time="now", message="said", where=Path("a\udcff"),
    )  # fmt: skip
    broken, found = (strict(line) for line in lines())
    assert "ValueError: two\nlines" in str(broken["exception"])
    assert datetime.fromisoformat(str(found.pop("time"))).tzinfo is not None
    assert found == {
        "level": "INFO", "message": "Eval", "loss": 2.5, "run": 3, "best": True, "parent": None, "nan": "nan",
        "nested": {"inf": ["-inf"]}, "field_time": "now", "field_message": "said",
        "where": "a\udcff",
    }  # fmt: skip


def test_log_lines_of_libraries_are_json_too(tmp_path: Path):
    code = (
        "import logging, threading, warnings\n"
        "from pathlib import Path\n"
        "from service.logs import event, progress_printer, set_up\n"
        f"set_up('json'); set_up('json', Path({str(tmp_path / 'log')!r}))\n"
        "event('Ours'); progress_printer('json')('ready', 'http://x', health='http://x/health')\n"
        "logging.getLogger('waitress.queue').warning('depth %d', 3); warnings.warn('old\\nway')\n"
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()\n"
        "class Broken:\n    def __del__(self): raise BufferError('while it is deleted')\n"
        "Broken()\n"
        "raise SystemError('nobody caught this')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    found = [strict(line) for line in done.stderr.splitlines()]
    assert [line["message"] for line in found[:2]] == ["Ours", "depth 3"]
    assert "old\nway" in str(found[2]["message"])
    for line, error in zip(found[3:], ("ZeroDivisionError", "BufferError", "SystemError"), strict=True):
        assert error in str(line["exception"])
    assert done.returncode == 1
    assert [strict(line) for line in (tmp_path / "log").read_text().splitlines()] == found
    said = strict(done.stdout)
    assert (said["message"], said["text"], said["health"]) == ("ready", "http://x", "http://x/health")


def test_a_log_file_on_a_full_disk_is_reported_once():
    code = (
        "from pathlib import Path\n"
        "from service.logs import event, set_up\n"
        "set_up('json', Path('/dev/full')); event('One'); event('Two')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    found = [strict(line) for line in done.stderr.splitlines()]
    assert [line["message"] for line in found] == ["One", "Cannot write to the log file", "Two"]
    assert "No space left" in str(found[1]["reason"])


@pytest.mark.parametrize(
    ("address", "public", "shown"),
    [
        (("0.0.0.0", 8090), None, "http://127.0.0.1:8090"),
        (("::1", 8090, 0, 0), None, "http://[::1]:8090"),
        (("0.0.0.0", 8090), "https://lupe.example", "https://lupe.example"),
    ],
)
def test_the_address_that_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address, public: str | None, shown: str
):
    environment = {} if public is None else {"PUBLIC_URL": public}
    settings = load_settings(PROJECT_RECIPES / "embedded.yaml", environment=environment, env_file=None)
    _show_addresses(address, Home(tmp_path), settings, progress_printer("text"))
    page, ready = capsys.readouterr().out.splitlines()[:2]
    assert page == f"· page         {shown}/"
    assert ready == f"· ready        {shown}/health   {shown}/metrics"


def test_events_reach_the_board_and_the_log(tmp_path: Path, lines):
    run = RunDirectory(tmp_path)
    board = Board(Snapshot())
    watcher = Watcher(run, 5, board)
    watcher.skip_history()
    append_event(run.events, "plan", steps_total=4, samples=8)
    append_event(run.events, "step", step=1, steps_total=4, loss=2.5, learning_rate=1e-3, tokens_total=100)
    append_event(run.events, "evaluation", step=1, which="candidate", loss=float("nan"))
    append_event(run.events, "evaluation", step=1, which="anchor", loss=2.0)
    append_event(run.events, "checkpoint", step=1, path="checkpoints/step-000001")
    append_event(run.events, "an event of a later version")
    append_event(run.events, "failed", code=4, message="the loss is nan")
    with run.events.open("a") as file:
        file.write('{"time": 1, "event": "half')
    watcher.read()
    progress = board.read().progress
    assert progress is not None and (progress.step, progress.steps_total, progress.train_loss) == (1, 4, 2.5)
    assert board.read().losses == {"train": 2.5, "anchor": 2.0}
    assert watcher.failure == "the loss is nan"
    text = "\n".join(lines())
    for word in ("Training step", "Eval anchor", "Saving checkpoint"):
        assert word in text


def test_readings_of_the_cards_reach_the_board_and_the_metrics(tmp_path: Path):
    run, board = RunDirectory(tmp_path), Board(Snapshot())
    card = {"cards": 1, "utilization_percent": 75.0, "memory_total_bytes": 3e10, "power_watts": 410.5}
    append_event(run.events, "device", **card, energy_joules=500.0, process_memory_bytes=1e9)
    watcher = Watcher(run, 5, board)
    watcher.skip_history()
    before = board.read().last_event
    assert board.read().gpu_energy_joules is None, "an earlier service counted this"
    append_event(run.events, "device", **card, energy_joules=800.0, process_memory_bytes=2e9, process_cpu_percent=150.0)
    watcher.read()
    shown = json_metrics(board.read())["metrics"]
    assert shown["gpu_utilization_ratio"] == 0.75 and shown["gpu_memory_total_bytes"] == 3e10
    assert shown["gpu_power_watts"] == 410.5 and shown["gpu_energy_joules"] == 300.0
    assert shown["trainer_memory_bytes"] == 2e9 and shown["trainer_cpu_ratio"] == 1.5
    assert shown["gpu_temperature_celsius"] is None
    assert board.read().last_event == before, "a trainer that hangs is read too"
    append_event(run.events, "device", cards=0)  # the card did not answer for a moment
    append_event(run.events, "device", **card, energy_joules=900.0)
    watcher.read()
    assert json_metrics(board.read())["metrics"]["gpu_energy_joules"] == 400.0
    text, _ = prometheus_metrics(board, "text/plain;version=0.0.4")
    assert b"codelupe_gpu_energy_joules_total" in text


@pytest.mark.parametrize(
    ("steps", "judges", "soon"), [(1000, False, False), (1000, True, True), (12, False, True), (0, False, False)]
)
def test_a_watcher_sees_that_the_end_is_near(tmp_path: Path, steps: int, judges: bool, soon: bool):
    run = RunDirectory(tmp_path)
    append_event(run.events, "stage", stage="judge", state="begin")  # of an earlier start
    watcher = Watcher(run, 5, Board(Snapshot()))
    watcher.skip_history()
    assert not watcher.ends_soon
    for step in range(1, 3 if steps else 1):
        append_event(run.events, "step", step=step, steps_total=steps, loss=2.5)
        time.sleep(0.02)
    if judges:
        append_event(run.events, "stage", stage="judge", state="begin")
    watcher.read()
    assert watcher.ends_soon == soon


def test_old_events_are_read_without_being_logged_again(tmp_path: Path, lines):
    run = RunDirectory(tmp_path)
    append_event(run.events, "failed", code=4, message="an earlier start")
    watcher = Watcher(run, 5, Board(Snapshot()))
    watcher.skip_history()
    assert lines() == [] and watcher.failure is None


def test_every_documented_event_is_known():
    documented = set()
    text = (Path(__file__).parents[2] / "docs" / "run-directory.md").read_text()
    for line in text.partition("## events.jsonl")[2].partition("## Checkpoints")[0].splitlines():
        if line.startswith("| `"):
            documented.add(line.split("`")[1])
    assert documented - {"prediction"} <= set(HANDLERS)


def test_the_demonstration_corpus_is_real_and_in_range():
    eligibility = Eligibility(quality_threshold=70, min_chars=50, max_chars=8000)
    files = list(demo_files(eligibility))
    assert len(files) >= 120
    assert all(50 <= len(file.content) <= 8000 and file.language == "python" for file in files)
    assert len({file.path for file in files}) == len(files)


def test_a_stop_ends_the_preparation_of_the_base(tmp_path: Path):
    stop, moments = threading.Event(), []

    def moment() -> None:
        moments.append(1)
        stop.set()

    # a good recipe: its preparation imports torch, which takes longer than one check of the stop
    assert prepare_base(PROJECT_RECIPES / "embedded.yaml", {}, stop, moment).returncode < 0
    assert moments
