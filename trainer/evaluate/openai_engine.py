"""Asks a server with OpenAI's API, such as vLLM. (no torch)

Each answer is one call with a seed of its own, so that a resumed evaluation asks for what is missing and nothing else.
A server that batches (vLLM) reads a task's prompt once for all its answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from trainer.errors import UnusableInput
from trainer.evaluate.engines import Finish, Generation, Model, Request, Sampling
from trainer.evaluate.prompts import cut

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 600.0
ATTEMPTS = 6
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0
MOST_STOPS = 4
"""OpenAI's limit. The others are applied to the text."""
SHOWN_CHARS = 300
BUSY = frozenset({408, 429, 500, 502, 503, 504})


class _Busy(Exception):
    """No answer now. Another attempt may succeed."""


class OpenAiEngine:
    """A client of one server."""

    def __init__(self, model: Model, on_note: Callable[[str], None], *, first_wait: float = FIRST_WAIT_SECONDS) -> None:
        if not model.url or not model.served_name:
            raise UnusableInput("--engine openai needs the server's address (--url, or VLLM_URL) and the model's name")
        self._url, self._name, self._key = model.url.rstrip("/"), model.served_name, model.api_key
        self._calls, self._on_note = model.batch_size, on_note
        headers = {} if self._key is None else {b"Authorization": b"Bearer " + self._key.encode()}
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        # trust_env is off: the environment's proxy must not be used for a local server.
        self._client = httpx.Client(headers=headers, timeout=timeout, trust_env=False)
        self._retrying = Retrying(
            retry=retry_if_exception_type(_Busy),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential_jitter(multiplier=first_wait, max=LONGEST_WAIT_SECONDS, jitter=first_wait),
            reraise=True,
        )

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generation]:
        """Yield an answer for each request, as they arrive.

        Raises:
            UnusableInput: the server refuses a request, or does not answer after several attempts.
        """
        left = iter(requests)
        with ThreadPoolExecutor(self._calls) as threads:
            running: set[Future[Generation]] = set()
            try:
                while True:
                    for request in left:
                        running.add(threads.submit(self._one, request, sampling))
                        if len(running) >= self._calls:
                            break
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _one(self, request: Request, sampling: Sampling) -> Generation:
        began = time.monotonic()
        path, body = self._body(request, sampling)
        try:
            answer = self._retrying(self._call, path, body)
        except _Busy as error:
            raise UnusableInput(f"{error} ({ATTEMPTS} attempts). Start the same command again to go on") from error
        try:
            choice = answer["choices"][0]
            text = str(choice["message"]["content"] or "" if request.question.messages else choice["text"])
            tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
            finish: Finish = "length" if choice.get("finish_reason") == "length" else "stop"
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UnusableInput(f"{self._url}{path} answers in an unknown form ({error!r})") from error
        ended = cut(text, request.question.stops)
        return Generation(
            task_id=request.task_id,
            sample=request.sample,
            text=ended,
            tokens=tokens,
            seconds=round(time.monotonic() - began, 3),
            finish=finish if ended == text else "stop",
        )

    def _body(self, request: Request, sampling: Sampling) -> tuple[str, dict[str, Any]]:
        question = request.question
        body: dict[str, Any] = {
            "model": self._name,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": request.seed(sampling),
            "n": 1,
        }
        if question.stops:
            body["stop"] = list(question.stops[:MOST_STOPS])
        if question.ends:
            body["stop_token_ids"] = list(question.ends)  # vLLM's own; others may ignore it
        if question.messages:
            messages = [{"role": role, "content": content} for role, content in question.messages]
            return "/v1/chat/completions", {**body, "messages": messages}
        return "/v1/completions", {**body, "prompt": question.text if question.text is not None else [*question.ids]}

    def _call(self, path: str, body: dict[str, Any]) -> Any:
        try:
            response = self._client.post(self._url + path, json=body)
        except httpx.HTTPError as error:
            raise _Busy(f"{self._url} gave no answer ({type(error).__name__}: {error})") from error
        if response.status_code in BUSY:
            raise _Busy(f"{self._url}{path} answers {response.status_code}: {self._said(response)}")
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise UnusableInput(f"{self._url} rejects the API key. Set VLLM_API_KEY to the server's key")
        if response.status_code != httpx.codes.OK:
            raise UnusableInput(
                f"{self._url}{path} answers {response.status_code}: {self._said(response)}. "
                f"The model asked for is {self._name} (--served-name)"
            )
        try:
            return response.json()
        except ValueError as error:
            raise UnusableInput(f"{self._url}{path} answers with what is not JSON. Check the address") from error

    def _said(self, response: httpx.Response) -> str:
        """Return the server's text on one line, shortened and without the key."""
        said = " ".join(response.text.split())
        return (said.replace(self._key, "…") if self._key else said)[:SHOWN_CHARS]
