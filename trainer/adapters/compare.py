"""Serves `codelupe compare`: one base, adapters on it that are loaded when they are first asked, answers as they come.

Lines of JSON go in on stdin and out on stdout. The process ends when stdin closes.

    in    {"ask": 1, "model": "/…/v000003", "prompt": "…", "style": null, "temperature": 0.7, "top_p": 1.0, …}
          {"stop": 1}
    out   {"event": "ready", …}  {"event": "text", "ask": 1, "text": "…"} …  {"event": "answer", "ask": 1, …}
          {"event": "error", "ask": 1, "message": "…"}
"""

from __future__ import annotations

import json
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers.utils.logging import disable_progress_bar

from trainer.adapters.checkpoints import as_adapter
from trainer.errors import TrainerError, UnusableInput
from trainer.evaluate.engines import Request, Sampling
from trainer.evaluate.prompts import Question
from trainer.evaluate.transformers_engine import TransformersEngine, load_model
from trainer.model.base import check_base_of, resolve_for
from trainer.model.load import load_tokenizer
from trainer.model.lora import load_adapter
from trainer.recipe import Recipe
from trainer.samples.instruction import SYSTEM
from trainer.stop import write_stderr

Send = Callable[[dict[str, Any]], None]


class Models:
    """A base that is loaded once, and the adapters on it."""

    def __init__(self, recipe: Recipe, adapter: Path | None) -> None:
        """Load the base: the revision that `adapter` was trained on."""
        self.recipe = resolve_for(recipe, adapter)
        self.tokenizer = load_tokenizer(self.recipe.base)
        self._model = load_model(self.recipe, None, write_stderr)
        self._names: dict[Path, str] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="codelupe-compare-")

    @contextmanager
    def engine(self, folder: Path | None) -> Iterator[TransformersEngine]:
        """Yield an engine with one adapter, or with the base alone.

        Raises:
            UnusableInput: the adapter cannot be loaded on this base.
        """
        if folder is None:
            plain = self._model.disable_adapter() if self._names else nullcontext()
        else:
            self._load(folder)
            self._model.set_adapter(self._names[folder])
            plain = nullcontext()
        with plain:
            yield TransformersEngine(self._model, self.tokenizer, batch_size=1, on_note=write_stderr)

    def close(self) -> None:
        """Remove temporary files."""
        self._scratch.cleanup()

    def _load(self, folder: Path) -> None:
        if folder in self._names:
            return
        name = f"adapter_{len(self._names)}"
        usable = as_adapter(folder, Path(self._scratch.name) / name)
        revision = check_base_of(usable, self.recipe)
        if revision not in (None, self.recipe.base.revision):
            raise UnusableInput(
                f"{folder} was trained on revision {revision}, but {self.recipe.base.revision} is loaded"
            )
        self._model = load_adapter(self._model, usable, name=name)
        self._names[folder] = name


class Conversation:
    """Reads what is asked, one answer at a time."""

    def __init__(self, models: Models, send: Send) -> None:
        self._models, self._send = models, send
        self._asked: queue.Queue[dict[str, Any]] = queue.Queue()
        self._stopped: int | None = None

    def read(self, lines: TextIO) -> None:
        """Read lines until there are no more, and then end the process: nothing is left to be saved."""
        for line in lines:
            record = json.loads(line)
            if "stop" in record:
                self._stopped = int(record["stop"])
            else:
                self._asked.put(record)
        self._models.close()
        os._exit(0)

    def answer_all(self) -> None:
        """Answer for ever."""
        while True:
            record = self._asked.get()
            try:
                self._send(self._answer(record))
            except TrainerError as error:
                self._send({"event": "error", "ask": record["ask"], "message": str(error)})

    def _answer(self, record: Mapping[str, Any]) -> dict[str, Any]:
        number = int(record["ask"])
        request = Request(task_id=str(record["seed"]), sample=0, question=self._question(record))
        sampling = Sampling(
            temperature=float(record["temperature"]), top_p=float(record["top_p"]),
            max_tokens=int(record["max_tokens"]), seed=int(record["seed"]),
            top_k=int(record["top_k"]), repetition_penalty=float(record["repetition_penalty"]),
        )  # fmt: skip
        folder = None if record["model"] is None else Path(record["model"])
        with self._models.engine(folder) as engine:
            self._send({"event": "begin", "ask": number})
            made = engine.stream(
                request, sampling, stopped=lambda: self._stopped == number,
                on_text=lambda text: self._send({"event": "text", "ask": number, "text": text}),
            )  # fmt: skip
        finish = "stopped" if self._stopped == number else made.finish
        return {
            "event": "answer", "ask": number, "text": made.text, "tokens": made.tokens, "seconds": made.seconds,
            "finish": finish,
        }  # fmt: skip

    def _question(self, record: Mapping[str, Any]) -> Question:
        chats = bool(self._models.tokenizer.chat_template)
        if record["style"] == "chat" and not chats:
            raise UnusableInput("the base has no chat template. Use the style completion")
        if record["style"] == "completion" or not chats:
            return Question(text=str(record["prompt"]))
        return Question(messages=(("system", SYSTEM), ("user", str(record["prompt"]))))


def compare_command(recipe: Recipe, adapter: Path | None) -> None:
    """Load the base, and answer until stdin closes.

    Raises:
        UnusableInput: the base cannot be loaded.
    """
    disable_progress_bar()
    send = _sender()
    models = Models(recipe, adapter)
    conversation = Conversation(models, send)
    threading.Thread(target=conversation.read, args=(sys.stdin,), name="stdin", daemon=True).start()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    send({"event": "ready", "chat": bool(models.tokenizer.chat_template), "device": device})
    conversation.answer_all()


def _sender() -> Send:
    """Return a function that writes lines to what is stdout now. What a library prints goes to stderr from here on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(record: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(record) + "\n")
            out.flush()

    return send
