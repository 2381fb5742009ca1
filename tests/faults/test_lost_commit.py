"""The answer to a COMMIT of a cycle is lost: the service takes up what arrived, and asks nobody for help."""

from __future__ import annotations

from pathlib import Path

from proxy import Proxy
from scene import scene

COMMITS = {1: "the claim", 4: "trained, to be judged", 5: "the verdict"}
"""Of writes, by number in a cycle."""


def test_no_commit_is_one_that_a_person_has_to_look_after(postgres_url: str, tmp_path: Path) -> None:
    proxy = Proxy(postgres_url)
    with scene(tmp_path, postgres_url, "lost_commits") as one:
        service = one.start(url=proxy.url(one.url), hurried=True)
        one.produce(8)
        one.settle()
        for number in COMMITS:
            proxy.lose_answer("reset", number=number)
            one.produce(8)
            assert proxy.lost.wait(20)
            one.settle()
        service.terminate(20)
        assert " Paused " not in one.home.log_file.read_text()
    proxy.close()
