"""`codelupe compare` with a real process that answers: the conversation, checkpoints, Ctrl-C, and its end."""

from __future__ import annotations

import io
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from run_folder import short_recipe, tokenizer
from safetensors.torch import load_file, save_file

from db.adapters import Adapter
from service.cli.compare import read_prompts
from service.cli.compare_session import LIMITS, Session, allowed
from service.cycle.comparing import AnswerFailed, Answers, Settings
from service.errors import ServiceError, UsageError
from service.publish.chosen import Chosen, choose_model, found_models
from service.settings.home import Home
from trainer.adapters.export import export_adapter
from trainer.model.load import load_base
from trainer.model.lora import add_adapter
from trainer.recipe_file import dump_recipe
from trainer.run_dir import write_manifest

PROMPT = "def add(left, right):\n"
FEW = Settings(max_tokens=12)
BASE = Chosen(label="base", folder=None, served_name=None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with one version, and a run with one checkpoint of the same weights."""
    home = Home(tmp_path_factory.mktemp("home"))
    home.prepare()
    recipe = short_recipe(base__quantization="none")
    adapted = add_adapter(load_base(recipe.base, torch.device("cpu")), recipe.lora, parent=None, seed=1)
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    export_adapter(home.adapter(3), adapted, tokenizer(), recipe, facts={})
    run = home.run(4)
    checkpoint = run.checkpoints / "step-000012"
    checkpoint.mkdir(parents=True)
    run.recipe.write_text(dump_recipe(recipe))
    save_file(load_file(home.adapter(3) / "adapter_model.safetensors"), checkpoint / "adapter.safetensors")
    write_manifest(checkpoint)
    return home


@pytest.fixture(scope="module")
def answers(home: Home) -> Iterator[Answers]:
    recipe = home.root / "short.yaml"
    recipe.write_text(dump_recipe(short_recipe(base__quantization="none")))
    made = Answers(recipe, home.adapter(3), {})
    yield made
    made.close()


def history() -> list[Adapter]:
    return [
        Adapter(
            version=3, stream="s", parent_version=None, folder="v000003", manifest_sha256="0" * 64, evaluation={},
            published_at=datetime.now(UTC), is_current=True,
        )
    ]  # fmt: skip


def ask(answers: Answers, model: Chosen, settings: Settings = FEW, **options: object) -> str:
    heard: list[str] = []
    made = answers.ask(
        PROMPT, model=model.label, folder=model.folder, settings=settings, style="completion", on_text=heard.append
    )
    assert "".join(heard) == made.text, "what came in parts is the whole text"
    assert made.tokens == settings.max_tokens and made.finish == "length" and made.tokens_per_second > 0
    return made.text


def test_one_base_answers_with_and_without_adapters(answers: Answers, home: Home):
    version = choose_model("3", home, history)
    checkpoint = choose_model("runs/000004/step-000012", home, history)
    base, adapted = ask(answers, BASE), ask(answers, version)
    assert base != adapted
    assert ask(answers, checkpoint) == adapted, "a checkpoint of the same weights"
    assert ask(answers, BASE) == base, "the adapters are off again"
    drawn = replace(FEW, temperature=2.0)
    assert ask(answers, BASE, drawn) == ask(answers, BASE, drawn) != base
    assert ask(answers, BASE, replace(drawn, seed=7)) != ask(answers, BASE, drawn)
    assert ask(answers, BASE, replace(drawn, top_p=0.001)) == base, "only the likeliest token is left"


def test_what_can_be_compared_is_found(home: Home):
    assert [one.label for one in found_models(home, history())] == ["base", "v000003", "runs/000004/step-000012"]
    folder = home.run(4).checkpoints / "step-000012"
    assert choose_model(str(folder), home, history).folder == folder
    with pytest.raises(UsageError, match="neither base, current, previous"):
        choose_model("runs/000004/step-000099", home, history)


def test_a_model_that_cannot_be_used_does_not_end_the_conversation(answers: Answers, home: Home, tmp_path: Path):
    damaged = tmp_path / "runs" / "checkpoints" / "step-000001"
    shutil.copytree(home.run(4).checkpoints / "step-000012", damaged)
    (damaged / "adapter.safetensors").write_bytes(b"damaged")
    with pytest.raises(AnswerFailed, match="has changed"):
        ask(answers, Chosen(label="damaged", folder=damaged, served_name=None))
    with pytest.raises(AnswerFailed, match="reads at most 2048"):
        answers.ask("x " * 3000, model="base", folder=None, settings=FEW, style=None, on_text=lambda _: None)
    assert ask(answers, BASE)


def test_ctrl_c_stops_one_answer(answers: Answers):
    heard: list[str] = []

    def interrupt(text: str) -> None:
        if not heard:
            os.kill(os.getpid(), signal.SIGINT)
        heard.append(text)

    long = replace(FEW, max_tokens=1500, temperature=3.0)
    made = answers.ask(PROMPT, model="base", folder=None, settings=long, style="completion", on_text=interrupt)
    assert made.finish == "stopped" and 0 < made.tokens < 1500
    assert ask(answers, BASE)


def talk(answers: Answers, home: Home, lines: str, capsys) -> str:
    session = Session(
        answers, [BASE, choose_model("3", home, history)], FEW, style="completion",
        found=lambda: found_models(home, history()), choose=lambda word: choose_model(word, home, history),
    )  # fmt: skip
    session.talk(io.StringIO(lines))
    return str(capsys.readouterr().out)


def test_a_conversation(answers: Answers, home: Home, capsys):
    told = talk(answers, home, f"/set max_tokens 5\n{PROMPT.strip()}\n/compare\n/quit\nnever asked\n", capsys)
    assert "max_tokens = 5" in told and told.count("5 tokens, ") == 4, "after each answer, and side by side"
    assert "[base]" in told and "[v000003]" in told and "┃ base" in told and "never" not in told
    told = talk(answers, home, "first \\\nsecond\n", capsys)
    assert told.count("12 tokens, ") == 2, "one prompt of two lines"


def test_mistakes_get_a_message_and_the_conversation_goes_on(answers: Answers, home: Home, capsys):
    lines = [
        "/set temperature warm", "/set temperature nan", "/set temperature -1", "/set max_tokens 1.5", "/set top_p 2",
        "/set colour red", "/set", "/fly", "/compare", "/models base nothing", "/models 3 base", "/models", "/help", "",
    ]  # fmt: skip
    told = talk(answers, home, "\n".join([*lines, "/set top_p 0.5"]), capsys)
    for said in [
        "'warm' is not a number", "nan is not allowed", "-1 is not allowed", "'1.5' is not a whole number",
        "2 is not allowed", "no setting 'colour'", "/set needs a name", "unknown command '/fly'", "no answer yet",
        "'nothing' is neither", "v000003 and base", "* v000003", "/quit", "top_p = 0.5",
    ]:  # fmt: skip
        assert said in told, said


def test_a_base_that_cannot_be_loaded_is_said(home: Home, capfd):
    recipe = home.root / "bad.yaml"
    recipe.write_text(dump_recipe(short_recipe()).replace("tiny-qwen2", "./nowhere"))
    with pytest.raises(ServiceError, match="ended with code 2") as caught:
        Answers(recipe, None, {})
    assert caught.value.exit_code == 2 and "nowhere does not exist" in capfd.readouterr().err


def test_files_of_prompts(tmp_path: Path):
    shipped = read_prompts(Path(__file__).parents[2] / "recipes" / "compare-prompts.jsonl", None)
    assert [one.name for one in shipped] == ["explanation", "completion", "module declaration"]
    plain = tmp_path / "prompts.txt"
    plain.write_text("one\n\ntwo\n")
    assert [(one.text, one.style) for one in read_prompts(plain, "chat")] == [("one", "chat"), ("two", "chat")]
    bad = {
        "{": "line 1: not JSON",
        "[1]": "needs a text",
        '{"prompt": "x", "style": "y"}': "style 'y'",
        "": "no prompt",
    }
    for text, said in bad.items():
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(UsageError, match=said):
            read_prompts(tmp_path / "bad.jsonl", None)


def test_the_limits_of_the_settings():
    assert [allowed(name, low) or allowed(name, high) for name, (_, low, high) in LIMITS.items()] == [None] * 5
    assert allowed("top_p", 0) and allowed("max_tokens", 0) and allowed("temperature", float("inf"))


def test_the_process_ends_with_its_caller(answers: Answers):
    """The last test of this file: it ends the process of all of them."""
    assert answers._process.stdin is not None
    settings = asdict(Settings(temperature=3.0, max_tokens=1900, seed=1))
    answers._write({"ask": 1, "model": None, "prompt": PROMPT, "style": None, **settings})
    assert answers._next()["event"] == "begin"
    answers._process.stdin.close()  # as the kernel does when the caller is killed
    assert answers._process.wait(10) == 0
    with pytest.raises(ServiceError, match="ended with code 0"):
        while True:
            answers._next()
