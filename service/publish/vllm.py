"""A client for vLLM's adapter API: list, load, unload, and a test completion. Tested with vLLM 0.32."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import httpx

CONNECT_SECONDS = 5.0
CALL_SECONDS = 30.0
LOAD_SECONDS = 600.0
"""Enough for several gigabytes from a slow disk."""
MAX_ANSWER_BYTES = 4 * 1024**2
SHOWN_CHARS = 300
"""Maximum length of the server's text in a message."""


class VllmError(Exception):
    """Base class: a call to vLLM failed. The message says what happened and what to do."""


class VllmUnavailable(VllmError):
    """No answer, or not in time. The server may be starting."""


class VllmRefused(VllmError):
    """The server rejected the call, or the adapter's output is unusable."""


class Vllm:
    """A client of one server. Every call has a deadline. Messages never contain the key."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url, self._key = url, api_key
        headers = {} if api_key is None else {b"Authorization": b"Bearer " + api_key.encode()}
        # trust_env is off: the environment's proxy must not be used for a local server.
        self._client = httpx.Client(base_url=url, headers=headers, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def adapters(self) -> dict[str, str]:
        """Return the loaded adapters: name → folder.

        Raises:
            VllmError: the server cannot be reached, or does not list models.
        """
        answer = self._call("GET", "/v1/models")
        try:
            return {str(card["id"]): str(card["root"]) for card in answer["data"] if card.get("parent") is not None}
        except (KeyError, TypeError, AttributeError) as error:
            raise VllmRefused(
                f"{self._url}/v1/models does not list models. Check that VLLM_URL is a vLLM server"
            ) from error

    def load(self, name: str, folder: str) -> None:
        """Load an adapter under a free name.

        Raises:
            VllmError: the server cannot be reached or does not load it. Loaded adapters stay.
        """
        self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, seconds=LOAD_SECONDS)

    def unload(self, name: str) -> None:
        """Unload an adapter. Running requests finish with it.

        Raises:
            VllmError: the server cannot be reached, or does not know the name.
        """
        self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def check(self, name: str) -> None:
        """Run a test completion and check that its log probabilities are finite.

        Prompt and completion have one token each. A broken adapter's values stay in the key-value cache after the block
        is freed. With longer completions, later requests to *other* models returned NaN.

        Raises:
            VllmError: the server cannot be reached, or a log probability is not finite.
        """
        body = {"model": name, "prompt": "#", "max_tokens": 1, "temperature": 0, "logprobs": 0}
        try:
            answer = self._call("POST", "/v1/completions", body)
        except VllmRefused as error:
            if "not JSON compliant" in str(error):  # vLLM's error for a NaN in its response
                raise self._not_finite(name) from error
            raise
        try:
            numbers = [float(value) for value in answer["choices"][0]["logprobs"]["token_logprobs"]]
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise VllmRefused(f"{name}: the test completion has no log probabilities") from error
        if not numbers or not all(math.isfinite(value) for value in numbers):
            raise self._not_finite(name)

    def _not_finite(self, name: str) -> VllmRefused:
        return VllmRefused(
            f"{name} produces numbers that are not finite. Run `codelupe rollback` to return to an earlier version"
        )

    # --- one call ------------------------------------------------------------------------------------------

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float = CALL_SECONDS
    ) -> Any:
        """Return the response as JSON, else as text. The whole call takes at most `seconds`."""
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
            raise VllmUnavailable(f"{self._url} cannot be reached ({error}). Check that vLLM is running") from error
        if response.status_code != httpx.codes.OK:
            raise self._refusal(path, response.status_code, text)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text  # loading and unloading return plain text

    def _read(self, response: httpx.Response, deadline: float) -> str:
        """Read the body within size and time limits. httpx's own timeout restarts with each chunk."""
        received = bytearray()
        for chunk in response.iter_bytes():
            received += chunk
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the response arrives too slowly")
            if len(received) > MAX_ANSWER_BYTES:
                raise httpx.ReadError(f"the response is longer than {MAX_ANSWER_BYTES} bytes")
        return received.decode("utf-8", "replace")

    def _refusal(self, path: str, status: int, text: str) -> VllmError:
        """Return the error for an HTTP status, with what to do."""
        said = self._said(text)
        if status == httpx.codes.UNAUTHORIZED:
            return VllmRefused(
                f"{self._url} rejects the API key. Set VLLM_API_KEY to the key that vLLM was started with"
            )
        if status in (404, 405) and text.startswith('{"detail"'):  # no such route
            return VllmRefused(
                f"{self._url} has no {path}. Start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            )
        if "No adapter found" in said:
            return VllmRefused(f"vLLM does not find the adapter ({said}). Mount the models folder at the same path")
        if status in (502, 503, 504):
            return VllmUnavailable(f"{self._url} answers {status}. Check that vLLM is running")
        return VllmRefused(f"{path} answers {status}: {said}")

    def _said(self, text: str) -> str:
        """Return the server's text on one line, shortened and without the key."""
        try:
            said = str(json.loads(text)["error"]["message"])
        except (ValueError, RecursionError, KeyError, TypeError):
            said = text
        said = " ".join(said.split())
        return (said.replace(self._key, "…") if self._key else said)[:SHOWN_CHARS]
