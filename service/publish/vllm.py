"""vLLM's HTTP protocol, as far as adapters go: list, load, unload, and a test completion. Seen with vLLM 0.32."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import httpx

CONNECT_SECONDS = 5.0
CALL_SECONDS = 30.0
LOAD_SECONDS = 600.0
"""Several gigabytes from a slow disk."""
MAX_ANSWER_BYTES = 4 * 1024**2
SHOWN_CHARS = 300
"""How much of a server's own words goes into a message."""


class VllmError(Exception):
    """Base: vLLM did not do what it was asked; says what happened and what to do."""


class VllmUnavailable(VllmError):
    """No answer, or not in time: it may be starting."""


class VllmRefused(VllmError):
    """It answered, and the answer is no; or the adapter's own answer cannot be used."""


class Vllm:
    """A client of one server. Every call has a deadline; the key appears in no message."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url, self._key = url, api_key
        headers = {} if api_key is None else {b"Authorization": b"Bearer " + api_key.encode()}
        # trust_env off: a proxy of the environment is for the way out, not for a neighbour.
        self._client = httpx.Client(base_url=url, headers=headers, trust_env=False)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def adapters(self) -> dict[str, str]:
        """The loaded adapters: name → folder.

        Raises:
            VllmError: it cannot be asked, or its answer is not a list of models.
        """
        answer = self._call("GET", "/v1/models")
        try:
            return {str(card["id"]): str(card["root"]) for card in answer["data"] if card.get("parent") is not None}
        except (KeyError, TypeError, AttributeError) as error:
            raise VllmRefused(f"{self._url}/v1/models does not list models: is VLLM_URL a vLLM server?") from error

    def load(self, name: str, folder: str) -> None:
        """Load an adapter under a name that is free.

        Raises:
            VllmError: it cannot be asked, or does not load it; whatever was loaded before stays.
        """
        self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, seconds=LOAD_SECONDS)

    def unload(self, name: str) -> None:
        """Take a name away; requests that run with it end as they began.

        Raises:
            VllmError: it cannot be asked, or there is no such name.
        """
        self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def check(self, name: str) -> None:
        """Let an adapter answer, and see that the answer is finite.

        One token after a prompt of one: whatever a broken adapter writes into the key-value cache stays there when the
        block is freed, and longer answers of it were seen to turn the next requests of *other* models into NaN.

        Raises:
            VllmError: it cannot be asked, does not answer, or a log probability is not finite.
        """
        body = {"model": name, "prompt": "#", "max_tokens": 1, "temperature": 0, "logprobs": 0}
        try:
            answer = self._call("POST", "/v1/completions", body)
        except VllmRefused as error:
            if "not JSON compliant" in str(error):  # vLLM's answer when it would have to write NaN
                raise self._not_finite(name) from error
            raise
        try:
            numbers = [float(value) for value in answer["choices"][0]["logprobs"]["token_logprobs"]]
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise VllmRefused(f"{name}: the test completion came without log probabilities") from error
        if not numbers or not all(math.isfinite(value) for value in numbers):
            raise self._not_finite(name)

    def _not_finite(self, name: str) -> VllmRefused:
        return VllmRefused(
            f"{name} answers with numbers that are not finite; `codelupe rollback` makes an earlier version current"
        )

    # --- one call ------------------------------------------------------------------------------------------

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float = CALL_SECONDS
    ) -> Any:
        """The answer's JSON, or its text where there is none, within `seconds` in all."""
        deadline = time.monotonic() + seconds
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        try:
            with self._client.stream(method, path, json=body, timeout=timeout) as response:
                text = self._read(response, deadline)
        except httpx.TimeoutException as error:
            raise VllmUnavailable(
                f"{self._url}{path} gave no answer in {seconds:.0f} s ({type(error).__name__})"
            ) from error
        except httpx.HTTPError as error:
            raise VllmUnavailable(f"{self._url} cannot be reached ({error}): is vLLM running?") from error
        if response.status_code != httpx.codes.OK:
            raise self._refusal(path, response.status_code, text)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text  # loading and unloading answer in words

    def _read(self, response: httpx.Response, deadline: float) -> str:
        """The body, within size and time: httpx's own limit starts afresh with each piece that arrives."""
        received = bytearray()
        for chunk in response.iter_bytes():
            received += chunk
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer trickles")
            if len(received) > MAX_ANSWER_BYTES:
                raise httpx.ReadError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        return received.decode("utf-8", "replace")

    def _refusal(self, path: str, status: int, text: str) -> VllmError:
        """What a status means, and what to do about it."""
        said = self._said(text)
        if status == httpx.codes.UNAUTHORIZED:
            return VllmRefused(f"{self._url} refuses the key: set VLLM_API_KEY to the one that vLLM was started with")
        if status in (404, 405) and text.startswith('{"detail"'):  # no such route
            return VllmRefused(
                f"{self._url} has no {path}: start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            )
        if "No adapter found" in said:
            return VllmRefused(f"vLLM does not find the adapter ({said}): give it the models folder at the same path")
        if status in (502, 503, 504):
            return VllmUnavailable(f"{self._url} answers {status}: is vLLM running?")
        return VllmRefused(f"{path} answers {status}: {said}")

    def _said(self, text: str) -> str:
        """The server's own words on one line, short, and without the key."""
        try:
            said = str(json.loads(text)["error"]["message"])
        except (ValueError, RecursionError, KeyError, TypeError):
            said = text
        said = " ".join(said.split())
        return (said.replace(self._key, "…") if self._key else said)[:SHOWN_CHARS]
