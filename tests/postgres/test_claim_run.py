"""Claims into a run directory: it is complete or absent, refused rows are settled, and a crash loses nothing."""

import json
import shutil
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from db import chunks, embedded, runs, settling, streams, trunk
from db import lease as leases
from db.adapters import NewAdapter
from db.audit import audit
from db.errors import LeaseLost, Misconfigured, Unavailable
from db.files import NewFile, insert_files
from db.pool import Pool
from db.revocations import Subject, revoke
from db.statements import QUERIES
from service.admission.admission import Admission
from service.cycle import leadership
from service.cycle.claim import BATCH_CHARS, NothingToHoldOut, claim_run
from service.cycle.claim_files import Start
from service.cycle.daemon import Daemon
from service.cycle.upkeep import Pause
from service.intake import demo
from service.publish.folders import tidy_run
from service.settings.environment import PROJECT_RECIPES
from service.settings.home import Home
from service.settings.load import Settings, load_settings
from service.web.board import Board, Snapshot
from service.web.state import State
from trainer.recipe import Gate, Hygiene, pinned
from trainer.records import RowOutcome, read_rows, write_outcomes
from trainer.run_dir import new_folder, verify_manifest, write_json, write_manifest

STREAM = "tiny-codelupe"
CODE = "".join(f"value_{n} = {n}\n" for n in range(20))


class World:
    """The service's parts on their own database, without the loop."""

    def __init__(self, pool: Pool, root: Path) -> None:
        self.pool = pool
        self.home = Home(root)
        self.home.prepare()
        self.settings: Settings = load_settings(
            PROJECT_RECIPES / "embedded.yaml", environment={"CODELUPE_HOME": str(root)}, env_file=None
        )
        recipe = pinned(self.settings.recipe, model="tiny-qwen2", revision="r" * 40)
        self.recipe = replace(
            recipe,
            hygiene=Hygiene(duplicates="none"),  # these tests insert the same text often
            gate=Gate(evidence="point", examination=False),  # and write reports without a trainer
        )
        binding = streams.Binding(source="code_files", base_model="tiny-qwen2", base_revision="r" * 40, lora={})
        streams.bind(pool, STREAM, binding)
        lease = leases.acquire(pool, STREAM, self.home.instance(), 60)
        assert lease is not None
        self.lease = lease

    def insert(self, count: int, content: str = CODE, prefix: str = "file") -> None:
        insert_files(
            self.pool,
            [NewFile(repository="r", path=f"{prefix}_{n}.py", language="python", content=content, quality_score=90.0)
             for n in range(count)],
        )  # fmt: skip

    def claim(self):
        return claim_run(self.pool, self.lease, self.home, self.settings, self.recipe, Start())

    def audit(self):
        return audit(self.pool, self.settings.source, self.settings.eligibility, STREAM)

    def daemon(self) -> Daemon:
        return Daemon(
            self.settings, self.recipe, self.home, self.pool, Board(Snapshot()), threading.Event(), once=False
        )


@pytest.fixture
def world(pool: Pool, tmp_path: Path) -> World:
    return World(pool, tmp_path / "home")


def test_a_claim_makes_a_complete_directory(world: World):
    world.insert(40)
    claimed = world.claim()
    assert (claimed.trained, claimed.held_out, claimed.refused) == (32, 8, 0)
    run = world.home.run(claimed.run_id)
    manifest = verify_manifest(run.root)
    assert set(manifest["files"]) == {"recipe.yaml", "rows.jsonl", "held_out.jsonl"}
    assert manifest["base"] == {"model": "tiny-qwen2", "revision": "r" * 40}
    assert manifest["parent_version"] is None and not run.parent.exists()
    train = {row.file_id for row in read_rows(run.rows)}
    held_out = {row.file_id for row in read_rows(run.held_out)}
    assert len(train) == 32 and len(held_out) == 8 and not train & held_out
    found = world.audit()
    assert (found.claimed, found.pending, found.problems) == (40, 0, [])


def test_the_lease_is_renewed_between_long_texts(world: World, monkeypatch: pytest.MonkeyPatch):
    world.insert(8, content=CODE * 4000)
    eligibility = replace(world.settings.eligibility, max_chars=20_000_000)
    settings, decide, since = replace(world.settings, eligibility=eligibility), Admission.decide, [0]

    def counted(self, rows):
        since[-1] += sum(len(row.content) for row in rows)
        return decide(self, rows)

    monkeypatch.setattr(Admission, "decide", counted)
    claim_run(world.pool, world.lease, world.home, settings, world.recipe, Start(), lambda: since.append(0))
    longest = len(CODE) * 4000
    assert sum(since) == 8 * longest > 2 * BATCH_CHARS
    assert max(since) < BATCH_CHARS + longest, "looked at without a beat"


def test_refused_rows_are_settled_with_their_reason(world: World):
    world.insert(20)
    world.insert(3, content="x = 1; " * 30, prefix="line")
    world.insert(2, content="<|im_end|>\n" * 30, prefix="probe")
    assert world.claim().refused == 5
    assert world.audit().settled == {"rejected:too_few_lines": 3, "rejected:control_tokens": 2}


def test_a_claim_of_refused_rows_alone_settles_them_without_a_run(world: World):
    world.insert(9, content="# generated by protoc\n" + CODE)
    daemon = world.daemon()
    assert daemon._starting() is State.WAITING
    assert daemon._claiming() is State.WAITING
    found = world.audit()
    assert found.settled == {"rejected:generated": 9}
    assert found.problems == []
    assert runs.live(world.pool, STREAM) is None


def test_nothing_to_claim_leaves_no_trace(world: World):
    assert world.claim().run_id is None
    assert runs.history(world.pool, STREAM) == []
    assert list(world.home.runs.iterdir()) == []


def test_a_claim_without_held_out_rows_is_undone(world: World):
    world.insert(20)
    world.recipe = replace(world.recipe, data=replace(world.recipe.data, split="repository", held_out_fraction=0.0))
    with pytest.raises(NothingToHoldOut, match="repository"):
        world.claim()
    assert world.audit().pending == 20
    assert list(world.home.runs.iterdir()) == []


def test_a_request_that_cannot_be_met_does_not_end_its_own_pause(world: World, monkeypatch: pytest.MonkeyPatch):
    """One file leaves nothing to hold out. The request stays, and a later one is noticed at once."""
    world.insert(1)
    streams.request_training(world.pool, STREAM)
    daemon = world.daemon()
    daemon._starting()
    assert daemon._waiting() is State.CLAIMING
    with pytest.raises(Pause, match="Add more files"):
        daemon._claiming()
    slept = []

    def sleep(seconds: float, **options: object) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            streams.request_training(world.pool, STREAM)

    monkeypatch.setattr(daemon._wait, "sleep", sleep)
    assert daemon._paused() is State.STARTING
    assert len(slept) == 3


def test_the_lease_is_renewed_while_a_claim_lasts(world: World, monkeypatch: pytest.MonkeyPatch):
    world.insert(20)
    daemon = world.daemon()
    daemon._starting()
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.0)
    with world.pool.transaction() as cursor:
        cursor.execute("update codelupe.leases set expires_at = clock_timestamp() + interval '5 s'")
    assert daemon._claiming() is State.TRAINING
    held = leases.holder(world.pool, STREAM)
    assert held is not None and held[1] > 30


def test_the_server_hears_of_a_claim_while_it_lasts(world: World, monkeypatch: pytest.MonkeyPatch):
    """Otherwise the server ends it as the claim of a stopped service, which would make the next leader wait."""
    limit = QUERIES["claim_idle_limit"].replace("45s", "700ms")
    monkeypatch.setitem(QUERIES, "claim_idle_limit", limit)
    monkeypatch.setattr("db.claim.KEEP_ALIVE_SECONDS", 0.1)
    world.insert(10)
    start = Start()
    claimed = claim_run(
        world.pool, world.lease, world.home, world.settings, world.recipe, start, beat=lambda: time.sleep(0.15)
    )
    assert claimed.trained > 0


@pytest.mark.parametrize("taken", ["runs/000001", "models/adapters/v000001"])
def test_folders_with_the_number_of_a_new_run_are_set_aside(world: World, taken: str):
    """They belong to another database, or to runs after the backup from which this one was restored."""
    world.insert(20)
    other = world.home.root / taken
    other.mkdir()
    (other / "report.json").write_text("{}")
    assert world.claim().run_id == 1
    [aside] = other.parent.glob(f"set-aside-{other.name}-*")
    assert (aside / "report.json").exists()
    verify_manifest(world.home.run(1).root)
    assert not world.home.run(1).report.exists() and not world.home.adapter(1).exists()


def published(world: World, version: int = 1) -> None:
    """Publish a run's adapter as current, in a folder with one file."""
    assert world.claim().run_id == version
    with new_folder(world.home.adapter(version)) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights of version %d" % version)
        sha256 = write_manifest(folder, version=version)
    adapter = NewAdapter(folder=f"v{version:06d}", manifest_sha256=sha256, evaluation={})
    for state in ("training", "judging"):
        runs.advance(world.pool, world.lease, version, state)
    outcomes = [
        RowOutcome(file_id=row.file_id, outcome=outcome)
        for path, outcome in (
            (world.home.run(version).rows, "trained"),
            (world.home.run(version).held_out, "held_out"),
            (world.home.run(version).replay, "replayed"),
        )
        for row in read_rows(path)
        if row.fresh or outcome == "replayed"
    ]
    settling.publish(world.pool, world.lease, version, outcomes, adapter, {"train": {"tokens_published": 0}})


@pytest.mark.parametrize("harm", ["flip", "remove", "swap"])
def test_no_claim_on_a_damaged_adapter(world: World, harm: str):
    world.insert(20)
    published(world)
    world.insert(20, prefix="later")
    daemon = world.daemon()
    assert daemon._starting() is State.WAITING
    folder = world.home.adapter(1)
    sound = folder.with_name("sound")
    shutil.copytree(folder, sound)
    match harm:
        case "flip":
            (folder / "adapter_model.safetensors").write_bytes(b"weights of version 0")
        case "remove":
            shutil.rmtree(folder)
        case _:  # complete, but from another history
            (folder / "adapter_model.safetensors").write_bytes(b"others")
            write_manifest(folder, version=1)
    for state in (daemon._starting, daemon._claiming):
        with pytest.raises(Pause, match=r"v000001 .*codelupe rollback"):
            state()
    assert runs.live(world.pool, STREAM) is None
    shutil.rmtree(folder, ignore_errors=True)
    sound.rename(folder)
    assert daemon._waiting() is State.CLAIMING
    assert daemon._claiming() is State.TRAINING
    assert daemon.board.read().troubles == {}


GOOD_REPORT = {
    "run_id": 1,
    "rows": {"trained": 1},
    "held_out": {"samples": 1},
    "evaluation": {"anchor": {"loss": 4.0}, "current": {"loss": 4.0}, "candidate": {"loss": 3.0}},
    "train": {"tokens_published": 10},
}
"""A report of run 1, which the judge promotes."""


def test_a_run_whose_directory_was_tidied_after_the_dump_is_returned(world: World):
    """In the restored database run 1 is live, but the copied directory is already tidied after its verdict."""
    world.insert(20)
    world.claim()
    daemon = world.daemon()
    directory = world.home.run(1)
    write_json(directory.report, GOOD_REPORT)
    write_outcomes(directory.rows_outcome, [])
    tidy_run(directory)
    assert daemon._starting() is State.TRAINING
    assert daemon._training() is State.JUDGING
    assert daemon._judging() is State.WAITING
    run = runs.get(world.pool, 1)
    assert run is not None and run.state == "failed" and "the candidate is damaged" in str(run.reason)
    assert world.audit().pending == 20


def opened(world: World, run_id: int) -> None:
    """End a run as inconclusive, with an adapter in its directory."""
    directory = world.home.run(run_id)
    with new_folder(directory.adapter) as folder:
        (folder / "adapter_model.safetensors").write_bytes(str(run_id).encode())
        write_manifest(folder)
    rows, held_out = (list(read_rows(path)) for path in (directory.rows, directory.held_out))
    outcomes = [RowOutcome(file_id=row.file_id, outcome="trained", tokens=1) for row in rows]
    outcomes += [RowOutcome(file_id=row.file_id, outcome="held_out") for row in held_out]
    outcomes += [RowOutcome(file_id=row.file_id, outcome="replayed", tokens=1) for row in read_rows(directory.replay)]
    for state in ("training", "judging"):
        runs.advance(world.pool, world.lease, run_id, state)  # type: ignore[arg-type]
    settling.keep_open(world.pool, world.lease, run_id, outcomes, reason="too few files", report={})


def test_a_run_starts_from_the_open_candidate_and_compares_with_the_published_one(world: World):
    world.insert(20)
    published(world)
    world.insert(20, prefix="second")
    start = world.daemon().upkeep.start(world.lease)
    claim_run(world.pool, world.lease, world.home, world.settings, world.recipe, start)
    opened(world, 2)
    world.insert(20, prefix="third")
    start = world.daemon().upkeep.start(world.lease)
    claimed = claim_run(world.pool, world.lease, world.home, world.settings, world.recipe, start)
    run = world.home.run(claimed.run_id)
    manifest = verify_manifest(run.root)
    assert (manifest["parent_version"], manifest["trunk"]) == (1, [2])
    assert run.parent.resolve() == world.home.run(2).adapter and run.current.resolve() == world.home.adapter(1)
    assert manifest["current_manifest_sha256"] != manifest["parent_manifest_sha256"]
    by_run = Counter(row.run_id for row in read_rows(run.held_out))
    assert set(by_run) == {None, 1, 2} and by_run[2] == 8
    stored = runs.get(world.pool, claimed.run_id)
    assert stored is not None and stored.trunk_run_id == 2 and world.audit().problems == []


@pytest.mark.parametrize("why", ["damaged", "rolled back"])
def test_an_open_candidate_that_cannot_be_used_is_given_up(world: World, why: str):
    world.insert(20)
    published(world)
    world.insert(20, prefix="second")
    claim_run(
        world.pool, world.lease, world.home, world.settings, world.recipe, world.daemon().upkeep.start(world.lease)
    )
    opened(world, 2)
    if why == "damaged":
        (world.home.run(2).adapter / "adapter_model.safetensors").write_bytes(b"other")
    else:
        with world.pool.transaction() as cursor:
            cursor.execute("update codelupe.adapters set is_current = false")
    pending = world.audit().pending
    start = world.daemon().upkeep.start(world.lease)
    assert start.trunk is None and world.audit().pending == pending + 12
    world.daemon().upkeep.tidy_runs()
    assert not world.home.run(2).adapter.exists() and world.audit().problems == []


def test_the_files_of_an_open_candidate_stay_until_the_next_verdict(world: World):
    world.insert(20)
    world.claim()
    opened(world, 1)
    world.daemon().upkeep.tidy_runs()
    assert world.home.run(1).adapter.is_dir() and not world.home.run(1).rows.exists()
    trunk.give_up(world.pool, world.lease)
    world.daemon().upkeep.tidy_runs()
    assert not world.home.run(1).adapter.exists()


def test_a_run_whose_adapter_is_gone_is_returned_without_an_attempt(world: World):
    world.insert(20)
    world.claim()
    daemon = world.daemon()
    write_json(world.home.run(1).report, GOOD_REPORT | {"adapter": {"manifest_sha256": "0" * 64}})
    assert daemon._starting() is State.TRAINING
    assert daemon._training() is State.JUDGING
    assert daemon._judging() is State.PAUSED
    run = runs.get(world.pool, 1)
    assert run is not None and run.state == "failed" and "adapter is missing" in str(run.reason)
    assert world.audit().pending == 20


def test_a_run_with_the_directory_of_another_run_is_returned(world: World):
    """In the restored database run 1 is live, but the folder holds a finished run 1 of another history."""
    world.insert(20)
    world.claim()
    daemon = world.daemon()
    assert daemon._starting() is State.TRAINING
    directory = world.home.run(1)
    write_json(directory.report, GOOD_REPORT)
    write_outcomes(directory.rows_outcome, [RowOutcome(file_id=9999, outcome="trained", samples=1, tokens=10)])
    directory.adapter.mkdir()
    (directory.adapter / "adapter_model.safetensors").write_bytes(b"others")
    write_manifest(directory.adapter)
    assert daemon._training() is State.JUDGING
    assert daemon._judging() is State.WAITING
    assert daemon.verdict is not None and not daemon.verdict.promote
    run = runs.get(world.pool, 1)
    assert run is not None and run.state == "failed" and "do not match the rows of run 1" in str(run.reason)
    assert world.audit().pending == 20 and not world.home.adapter(1).exists()


@pytest.mark.parametrize("why", ["current now", "revoked since"])
def test_a_candidate_that_came_too_late_is_returned(world: World, why: str):
    """The judge promotes it, but the database refuses it."""
    world.insert(20)
    published(world)
    world.insert(20, prefix="later")
    daemon = world.daemon()
    daemon._starting()
    assert daemon._claiming() is State.TRAINING
    directory = world.home.run(2)
    fresh = [row.file_id for row in read_rows(directory.rows)]
    held_out = [row.file_id for row in read_rows(directory.held_out) if row.fresh]
    write_json(directory.report, {**GOOD_REPORT, "run_id": 2})
    outcomes = [RowOutcome(file_id=n, outcome="trained", tokens=1) for n in fresh]
    write_outcomes(directory.rows_outcome, outcomes + [RowOutcome(file_id=n, outcome="held_out") for n in held_out])
    with new_folder(directory.adapter) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        write_manifest(folder)
    if why == "current now":
        with world.pool.transaction() as cursor:
            cursor.execute("update codelupe.adapters set is_current = false")
    else:
        revoke(world.pool, world.settings.source, STREAM, Subject(file_id=fresh[0]), reason="by request")
    assert daemon._training() is State.JUDGING
    assert daemon._judging() is State.WAITING
    run = runs.get(world.pool, 2)
    assert run is not None and run.state == "returned" and why in str(run.reason)
    assert (world.audit().pending, world.audit().problems) == (20, [])
    assert not world.home.adapter(2).exists()


@pytest.mark.parametrize("name", ["report", "rows_outcome"])
def test_a_run_whose_result_cannot_be_read_is_returned(world: World, name: str):
    world.insert(20)
    world.claim()
    daemon = world.daemon()
    assert daemon._starting() is State.TRAINING
    directory = world.home.run(1)
    write_json(directory.report, GOOD_REPORT)
    write_outcomes(directory.rows_outcome, [])
    getattr(directory, name).write_text('{"run_id": 1, ')
    assert daemon._training() is State.JUDGING
    assert daemon._judging() is State.PAUSED
    assert "the report of run 1 cannot be read" in daemon.board.read().troubles["trainer"]
    assert (world.audit().pending, world.audit().problems) == (20, [])


def test_a_failure_while_writing_undoes_the_claim(world: World):
    world.insert(20)

    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        claim_run(world.pool, world.lease, world.home, world.settings, world.recipe, Start(), full)
    assert world.audit().pending == 20
    assert list(world.home.runs.iterdir()) == []


def test_a_run_without_its_directory_is_returned(world: World, monkeypatch: pytest.MonkeyPatch):
    """The process crashes after the commit and before the rename."""
    world.insert(20)

    def crash(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            world.claim()
    live = runs.live(world.pool, STREAM)
    assert live is not None and world.audit().claimed == 20
    daemon = world.daemon()
    assert daemon._starting() is State.WAITING
    found = world.audit()
    assert (found.pending, found.claimed, found.problems) == (20, 0, [])
    assert list(world.home.runs.iterdir()) == []
    world.lease = daemon.lease
    again = world.claim()
    assert again.trained + again.held_out == 20


def test_returned_rows_that_were_held_out_stay_held_out(world: World):
    world.insert(40)
    first = world.claim()
    held_out = {row.file_id for row in read_rows(world.home.run(first.run_id).held_out)}
    settling.give_back(world.pool, world.lease, first.run_id, state="returned", reason="for the test")
    second = world.claim()
    assert {row.file_id for row in read_rows(world.home.run(second.run_id).held_out)} == held_out


def test_another_version_of_a_held_out_file_is_held_out_too(world: World):
    world.insert(40)
    published(world)
    earlier = {row.path for row in read_rows(world.home.run(1).held_out)}
    world.insert(40, content=CODE + "more = 1\n")
    directory = world.home.run(world.claim().run_id)
    assert {row.path for row in read_rows(directory.held_out) if row.fresh} == earlier
    assert len(list(read_rows(directory.rows))) == 40 - len(earlier)


def test_later_rows_do_not_change_a_claimed_directory(world: World):
    world.insert(20)
    claimed = world.claim()
    with world.pool.transaction() as cursor:
        cursor.execute("update code_files set content = 'changed', quality_score = 1")
    rows = list(read_rows(world.home.run(claimed.run_id).rows))
    assert all(row.content == CODE for row in rows)


def test_text_of_every_kind_survives(world: World):
    text = CODE + "# \u2028 \u202e \x0b \x85 é 漢 🙂 \\ \" ' </script>\r\n"
    world.insert(20, content=text)
    claimed = world.claim()
    assert next(read_rows(world.home.run(claimed.run_id).rows)).content == text.replace("\r\n", "\n")
    for line in world.home.run(claimed.run_id).rows.read_bytes().split(b"\n")[:-1]:
        assert json.loads(line)


def test_the_demonstration_continues_if_a_few_rows_remain_unclaimed(world: World):
    """A batch above MAX_DATASET_SIZE leaves too few rows to start another run."""
    settings = replace(world.settings, max_dataset_size=38)
    world.settings = settings
    stop, batches = threading.Event(), []
    thread = threading.Thread(target=demo.feed, args=(world.pool, settings, stop, lambda *batch: batches.append(batch)))
    thread.start()
    try:
        for _ in range(600):
            if batches:
                break
            time.sleep(0.05)
        assert len(batches) == 1 and batches[0][1] > 38
        claimed = world.claim()
        assert claimed.trained + claimed.held_out + claimed.refused == 38
        for _ in range(600):
            if len(batches) > 1:
                break
            time.sleep(0.05)
        assert len(batches) == 2
    finally:
        stop.set()
        thread.join()


def test_a_database_error_during_training_is_cleared_by_the_next_answer(world: World):
    daemon = world.daemon()
    daemon.board.trouble("database", "noted by the trainer's watch, after which no renewal was due")

    def last(state: State = State.WAITING) -> State:
        daemon.stop.set()
        return state

    daemon._handlers[State.STARTING] = last
    daemon.run()
    assert daemon.board.read().troubles == {}


def test_memory_is_freed_after_a_claim_and_after_a_verdict(world: World, monkeypatch: pytest.MonkeyPatch):
    world.insert(12)
    daemon, left = world.daemon(), []
    monkeypatch.setattr("service.cycle.daemon.return_freed_memory", lambda: left.append(str(daemon.state)))

    def trained() -> State:
        daemon.stop.set()
        return State.JUDGING

    daemon._handlers[State.TRAINING] = trained
    daemon.run()
    assert left == ["claiming", "training", "judging"]


def test_a_standby_service_pauses_if_the_database_refuses_it(world: World, monkeypatch: pytest.MonkeyPatch):
    daemon = world.daemon()
    daemon.state = State.STANDBY

    def refuse() -> None:
        daemon.stop.set()
        raise Misconfigured("password authentication failed")

    monkeypatch.setattr(daemon._leadership, "other_holder", refuse)
    daemon.run()
    assert "authentication" in daemon.board.read().troubles["service"]


def test_training_goes_on_with_a_lease_that_ran_out_and_not_with_one_that_was_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.insert(20)
    daemon = world.daemon()
    daemon._starting()
    daemon._claiming()
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.0)
    with world.pool.transaction() as cursor:
        cursor.execute("update codelupe.leases set expires_at = clock_timestamp() - interval '1 s'")
    daemon._supervisor.tick(daemon._run_id)
    assert daemon.lease.epoch > world.lease.epoch
    with world.pool.transaction() as cursor:
        cursor.execute("update codelupe.leases set holder = 'another', epoch = epoch + 1")
    with pytest.raises(LeaseLost):
        daemon._supervisor.tick(daemon._run_id)


def test_standing_by_lasts_as_long_as_another_has_the_lease(world: World, monkeypatch: pytest.MonkeyPatch):
    daemon = world.daemon()
    monkeypatch.setattr(daemon._wait, "sleep", lambda seconds, **options: None)
    with world.pool.transaction() as cursor:
        cursor.execute("update codelupe.leases set holder = 'another'")
    assert daemon._starting() is State.STANDBY
    assert daemon._standby() is State.STANDBY
    assert "another" in daemon.board.read().troubles["lease"]
    with world.pool.transaction() as cursor:
        cursor.execute("update codelupe.leases set holder = null, expires_at = null")
    assert daemon._standby() is State.STARTING
    assert daemon.board.read().troubles == {}


def test_training_goes_on_while_the_database_is_away(world: World, monkeypatch: pytest.MonkeyPatch):
    def away() -> None:
        raise Unavailable("no answer")

    world.insert(20)
    daemon = world.daemon()
    daemon._starting()
    daemon._claiming()
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(daemon._leadership, "renew", away)
        daemon._supervisor.tick(daemon._run_id)
    assert "no answer" in daemon.board.read().troubles["database"]
    daemon._supervisor.tick(daemon._run_id)
    assert daemon.board.read().troubles == {}


def test_an_embedded_database_that_died_is_started_again(world: World, monkeypatch: pytest.MonkeyPatch):
    daemon = world.daemon()
    monkeypatch.setattr("service.cycle.daemon.DATABASE_PAUSE_SECONDS", 0.0)

    def died_at_first() -> State:
        if embedded.running_url(world.home.postgres) is None:
            raise Unavailable("no answer")
        daemon.stop.set()
        return State.WAITING

    daemon._handlers[State.STARTING] = died_at_first
    patience = threading.Timer(20, daemon.stop.set)
    patience.start()
    try:
        daemon.run()
        patience.cancel()
        assert embedded.running_url(world.home.postgres) is not None
    finally:
        embedded.stop(world.home.postgres)


def test_a_run_whose_trainer_crashes_each_time_is_given_up(world: World):
    world.insert(20)
    daemon = world.daemon()
    daemon._starting()
    daemon._claiming()
    found = [daemon._trainer_ended(-9, None) for _ in range(3)]
    assert found == [State.TRAINING, State.TRAINING, State.PAUSED]
    assert "ended with code -9 3 times" in daemon.board.read().troubles["trainer"]
    assert (world.audit().pending, world.audit().problems) == (20, [])


def test_the_row_that_makes_steps_fail_is_quarantined(world: World):
    """The trainer names the row, so the service need not rest."""
    world.insert(20)
    daemon = world.daemon()
    daemon._starting()
    daemon._claiming()
    directory = world.home.run(daemon._run_id)
    bad = next(read_rows(directory.rows)).file_id
    write_json(directory.suspects, {"reason": "non_finite", "step": 1, "file_ids": [bad]})
    assert daemon._trainer_ended(4, "step 1: loss is nan") is State.WAITING
    found = world.audit()
    assert (found.pending, found.settled, found.problems) == (19, {"quarantined:non_finite": 1}, [])


def test_no_claim_without_disk_space(world: World, monkeypatch: pytest.MonkeyPatch):
    world.insert(20)
    daemon = world.daemon()
    assert daemon._starting() is State.WAITING
    with monkeypatch.context() as patched:
        patched.setattr(Home, "free_bytes", lambda self: 2 * self.run_bytes() - 1)
        with pytest.raises(Pause, match=r"Free some space, and the service continues. Or stop it"):
            daemon._waiting()
    assert daemon._waiting() is State.CLAIMING


def test_a_pointer_that_a_crash_left_behind_is_moved_at_the_next_start(world: World):
    """The crash comes after the commit and before the swap."""
    world.insert(20)
    published(world)
    world.daemon()._starting()
    assert world.home.pointer(STREAM).resolve() == world.home.adapter(1).resolve()


def test_a_pointer_that_cannot_be_moved_is_reported(world: World):
    world.insert(20)
    published(world)
    world.home.pointer(STREAM).mkdir()
    daemon = world.daemon()
    daemon._starting()
    assert "cannot be updated" in daemon.board.read().troubles["pointer"]
    world.home.pointer(STREAM).rmdir()
    daemon.upkeep.derive_pointer()
    assert daemon.board.read().troubles == {}
    assert world.home.pointer(STREAM).resolve() == world.home.adapter(1).resolve()


def test_once_ends_when_the_service_would_rest(world: World):
    daemon = world.daemon()
    assert daemon._pause("trainer", "run 1 failed") is State.PAUSED
    daemon.once = True
    assert daemon._pause("trainer", "run 1 failed") is State.STOPPED


def test_a_damaged_candidate_is_not_called_published(world: World):
    """The judge only reads the report. The copy finds that the adapter is missing."""
    world.insert(20)
    daemon = world.daemon()
    daemon._starting()
    assert daemon._claiming() is State.TRAINING
    run = world.home.run(daemon._run_id)
    losses = {"anchor": {"loss": 2.0}, "current": {"loss": 2.0}, "candidate": {"loss": 1.0}}
    write_json(
        run.report,
        {"run_id": daemon._run_id, "rows": {"trained": 12}, "held_out": {"samples": 8}, "evaluation": losses},
    )
    write_outcomes(run.rows_outcome, [])
    assert daemon._training() is State.JUDGING
    assert daemon._judging() is State.WAITING
    assert daemon.verdict is not None and not daemon.verdict.promote and "damaged" in daemon.verdict.text()
    found = world.audit()
    assert (found.pending, found.published_runs, found.problems) == (20, 0, [])
    assert daemon.home.adapter(daemon._run_id).exists() is False


def test_new_files_wake_the_poll_early(world: World):
    world.settings = replace(world.settings, check_interval_seconds=60.0, min_new_files=5)
    daemon = world.daemon()
    assert daemon._starting() is State.WAITING
    timer = threading.Timer(0.5, world.insert, [10])
    timer.start()
    started = time.monotonic()
    assert daemon._waiting() is State.WAITING
    assert time.monotonic() - started < 20
    assert daemon._waiting() is State.CLAIMING
    timer.join()
    assert world.pool.stats().in_use == 0


@pytest.fixture
def _small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a small table many ranges of ids, most of which are not among the newest."""
    monkeypatch.setattr(chunks, "WINDOW_ROWS", 5)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 10)
    monkeypatch.setattr(chunks, "RECENT_CHUNKS", 1)


@pytest.mark.usefixtures("_small_ranges")
def test_rows_that_wait_anywhere_together_start_a_run(world: World):
    """Ten rows are among the newest, and five each elsewhere got their scores late. No group alone would be enough."""
    world.settings = replace(world.settings, check_interval_seconds=2.0, sweep_interval_seconds=0.5, min_new_files=20)
    world.insert(100)
    with world.pool.transaction() as cursor:
        cursor.execute("update code_files set quality_score = null where id <= 90")
    daemon = world.daemon()
    assert daemon._starting() is State.WAITING
    assert daemon._waiting() is State.WAITING
    with world.pool.transaction() as cursor:
        cursor.execute("update code_files set quality_score = 90 where id between 11 and 15 or id between 51 and 55")
    for _ in range(20):
        if daemon._waiting() is State.CLAIMING:
            break
    assert daemon.board.read().pending.rows == 20
    assert daemon._claiming() is State.TRAINING
    assert world.audit().claimed == 20


@pytest.mark.usefixtures("_small_ranges")
def test_all_new_rows_are_counted_before_a_run_starts(world: World):
    """A poll reads only the newest rows. Rows that arrive together are still claimed in one run."""
    world.settings = replace(world.settings, min_new_files=5)
    daemon = world.daemon()
    assert daemon._starting() is State.WAITING
    world.insert(100)
    assert daemon._waiting() is State.CLAIMING
    assert daemon.board.read().pending.rows == 100
    daemon._claiming()
    assert world.audit().claimed == 100


@pytest.mark.usefixtures("_small_ranges")
@pytest.mark.parametrize("confirmed", [True, False])
def test_deleted_rows_start_neither_a_run_nor_a_loop(world: World, monkeypatch: pytest.MonkeyPatch, confirmed: bool):
    """Ranges are counted again before a run. If that has just happened, the claim finds that the rows are gone."""
    monkeypatch.setattr("service.cycle.upkeep.CONFIRM_SECONDS", 0.0 if confirmed else 60.0)
    world.settings = replace(world.settings, check_interval_seconds=0.1)
    daemon = world.daemon()
    daemon._starting()
    world.insert(100)
    assert daemon._waiting() is State.CLAIMING
    with world.pool.transaction() as cursor:
        cursor.execute("delete from code_files where id < (select max(id) from code_files)")
        cursor.execute("update code_files set quality_score = 0")  # one is left, so that the table is not empty
    if not confirmed:
        assert daemon._waiting() is State.CLAIMING
        assert daemon._claiming() is State.WAITING
    assert daemon._waiting() is State.WAITING
    assert daemon.board.read().pending.rows == 0


@pytest.mark.usefixtures("_small_ranges")
def test_ranges_are_read_during_a_run(world: World, monkeypatch: pytest.MonkeyPatch):
    world.settings = replace(world.settings, check_interval_seconds=0.1)
    world.insert(40)
    daemon = world.daemon()
    daemon._starting()
    assert daemon._waiting() is State.CLAIMING
    assert daemon._claiming() is State.TRAINING
    time.sleep(0.2)
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.0)
    for _ in range(6):
        daemon._supervisor.tick(daemon._run_id)
    found = daemon.board.read().pending
    assert (found.rows, found.unknown_ranges) == (0, 0)


def test_a_stop_is_obeyed_while_waiting(world: World):
    world.settings = replace(world.settings, check_interval_seconds=60.0)
    daemon = world.daemon()
    assert daemon._starting() is State.WAITING
    threading.Timer(0.5, daemon.stop.set).start()
    started = time.monotonic()
    daemon._waiting()
    assert time.monotonic() - started < 10


def test_losing_the_database_while_listening_is_noticed(world: World):
    from db.errors import Unavailable

    world.settings = replace(world.settings, check_interval_seconds=60.0)
    daemon = world.daemon()
    assert daemon._starting() is State.WAITING

    def end() -> None:
        with world.pool.transaction() as cursor:
            cursor.execute("select pg_terminate_backend(pid) from pg_stat_activity "
                           "where datname = current_database() and pid <> pg_backend_pid()")  # fmt: skip

    ending = threading.Timer(0.5, end)
    ending.start()
    with pytest.raises(Unavailable):
        daemon._waiting()
    ending.join()
    assert world.pool.stats().in_use == 0
