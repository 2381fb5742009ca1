"""Texts that take too much memory or time to parse become samples without a tree. They do not end the trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from run_folder import make_row
from source_rows import source_rows

from trainer.data import tokenize
from trainer.errors import TrainerError
from trainer.recipe import Data
from trainer.records import Row
from trainer.samples import trial
from trainer.samples.build import BUILDERS, ready
from trainer.samples.syntax import GRAMMARS, look_ahead, parse, parser_of

GREEDY = {
    "memory, error recovery in C": ("c", "a=>" * 2600),
    "memory, error recovery in Java": ("java", "a=>" * 2600),
    "memory, generics in Java": ("java", "a<" * 16_000),
    "memory, comparisons in Python": ("python", "(a<b>)" * 2600),
    "memory, types in TypeScript": ("typescript", "a<b," * 8000),
    "time, labels in Go": ("go", "case a:" * 3000),
    "time, arrows in JavaScript": ("javascript", "->" * 3000),
}
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 30,) * 2)
from trainer.samples import syntax, trial
call = syntax.parse if sys.argv[2] == "parse" else lambda name, text: trial.passes(name, text.encode())
print(call(*sys.argv[3:]))
"""


def answer_in(gib: int, call: str, language: str, content: str) -> str:
    """Call `parse` or `passes` in a process, which is killed if it or its child takes more memory."""
    command = [sys.executable, "-c", LIMITED, str(gib), call, language, content]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or f"ended with {done.returncode}"


@pytest.mark.parametrize(("language", "content"), GREEDY.values(), ids=GREEDY)
def test_a_greedy_text_is_not_parsed(language, content):
    assert answer_in(1, "parse", language, content) == "None"


def test_the_limit_on_memory_is_the_trials_own():
    assert answer_in(3, "passes", "java", "a<" * 16_000) == "False"  # takes 2.1 GB without a limit


@pytest.mark.parametrize(("language", "content"), [("go", "case a:" * 1500), ("javascript", "->" * 2000)])
def test_the_number_of_operations_is_limited(language, content):
    assert not trial.passes(language, content.encode())


def test_a_greedy_text_becomes_samples_by_lines_and_the_next_text_is_parsed():
    content = "a=>" * 2600
    row = Row(file_id=1, content=content, language="c", path="a.c", repository=None, sha256="0" * 64)
    data = Data(builders={"items": 1.0})
    assert [made.kind for made in BUILDERS["items"].build(ready(row, data, seed=1), data, seed=1)] == ["file"]
    assert parse("c", "int f(void) { return 1; }\n" * 50) is not None


def test_every_ordinary_text_passes():
    assert all(parse(row.language, row.content * 3, row.path) is not None for row in source_rows())


def test_answers_of_texts_tried_ahead_are_the_same():
    good, greedy, other = "x = 1\n" * 300, "(a<b>)" * 2500, "y = 2\n" * 300
    look_ahead(
        [("python", good, None), ("python", greedy, None), ("python", "\ud800" * 2000, None), ("cobol", good, None)]
    )
    assert parse("python", greedy) is None
    assert parse("python", good) is not None
    assert parse("python", other) is not None


def test_a_fork_has_its_own_process():
    assert parse("python", "x = 3\n" * 300) is not None
    child = os.fork()
    if child == 0:
        passed = trial.passes("python", b"x = 4\n" * 300)
        trial.TRIAL.stop()
        os._exit(0 if passed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert trial.passes("python", b"x = 5\n" * 300)


def test_a_text_that_was_interrupted_leaves_no_answer_for_the_next():
    def stop(*_):
        raise KeyboardInterrupt

    tried = trial.TrialProcess()
    assert tried.passes("python", b"x = 6\n" * 300)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            tried.passes("go", b"case a:" * 10_000)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert tried.passes("python", b"x = 7\n" * 300)
    tried.stop()


def test_a_process_that_somebody_kills_says_nothing_about_the_text():
    tried = trial.TrialProcess()
    assert tried.passes("python", b"x = 8\n" * 300)
    os.kill(tried._process.pid, signal.SIGKILL)
    assert tried.passes("python", b"x = 9\n" * 300)
    tried.stop()


def test_texts_that_nobody_asks_for_are_dropped(monkeypatch):
    tried, before = [], trial._AHEAD_TRIAL._tried
    monkeypatch.setattr(trial._AHEAD_TRIAL, "_tried", lambda *text: tried.append(text) or before(*text))
    for number in range(8):
        look_ahead([("python", f"x{number}_{place} = 1\n" * 20_000, None) for place in range(8)])
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(5)
    assert 8 <= len(tried) < 32


def test_conversations_are_not_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(tokenize, "look_ahead", lambda texts: tried.extend(content for _, content, _ in texts))
    row = make_row(1, "x = 1\n" * 300)
    turns = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": row.content}]}
    assert tokenize._next_chunk(iter([row, replace(row, content="talk", metadata=turns)])) == [
        row,
        replace(row, content="talk", metadata=turns),
    ]
    assert tried == [row.content]


def test_a_process_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TrainerError, match="did not start"):
        trial.TrialProcess().passes("python", b"x")


def test_a_process_that_cannot_set_its_limit_does_not_start():
    tight = "import resource; resource.setrlimit(resource.RLIMIT_AS, (400 << 20,) * 2)\n"
    code = tight + "from trainer.samples import trial; trial.passes('python', b'x = 1;' * 300)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "did not start" in done.stderr.splitlines()[-1]


def test_a_grammar_that_is_not_installed_ends_the_trainer(monkeypatch):
    missing = replace(GRAMMARS["java"], module="tree_sitter_that_is_not_installed")
    monkeypatch.setitem(GRAMMARS, "java", missing)
    parser_of.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="tree_sitter_that_is_not_installed"):
        parse("java", "class A { int b; }" * 100)
