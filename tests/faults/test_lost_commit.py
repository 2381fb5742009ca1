"""The answer to a COMMIT is lost. The service continues from what was committed, without help from an operator."""

from __future__ import annotations

from pathlib import Path

from proxy import Proxy
from scene import scene

COMMITS = {
    "the claim": (b"insert into codelupe.runs", 1),
    "in training": (b"update codelupe.runs\nset state", 1),
    "trained, to be judged": (b"update codelupe.runs\nset state", 2),
    "the verdict": (b"insert into codelupe.adapters", 1),
}
"""A statement of each transaction, and which of its occurrences in a cycle is meant."""


def test_a_lost_commit_answer_never_pauses_the_service(postgres_url: str, tmp_path: Path) -> None:
    proxy = Proxy(postgres_url)
    with scene(tmp_path, postgres_url, "lost_commits") as one:
        service = one.start(url=proxy.url(one.url), short_timeouts=True)
        one.produce(8)
        one.settle()
        for what, (write, number) in COMMITS.items():
            proxy.lose_answer("reset", number=number, writes=(write,))
            one.produce(8)
            assert proxy.lost.wait(20), what
            one.settle()
        service.terminate(20)
        assert " Paused " not in one.home.log_file.read_text()
    proxy.close()
