"""How values travel between candidate and tests: JSON that rebuilds builtin types and nothing else.

    1, 2.5, "a", true, null, [1, 2]   themselves
    (1, 2)                            {"tuple": [1, 2]}
    {"a": 1}                          {"dict": [["a", 1]]}
    2 ** 70                           {"int": "0x400000000000000000"}
    int                               {"type": "int"}
    anything else                     {"object": 3}, a number that only its owner can resolve

This file runs inside both sandboxes too. It needs the standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

ENDED = "ended, or closed its pipe"

LONGEST_PLAIN_INT = 63
"""Bits. Longer ones travel in hexadecimal, which takes linear time and has no limit of digits."""

TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}
"""Types that may be arguments and results themselves."""

SEQUENCES: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


class WireError(Exception):
    """The other side is gone, or sent something that is no message. The text continues its name."""


def encode(value: Any, refer: Callable[[Any], int]) -> Any:
    """Convert a value to what JSON can hold. `refer` numbers an object that is no plain data.

    Subclasses of builtin types lose what they add: the base's own methods read them.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        plain = int.__pos__(value)
        return plain if plain.bit_length() <= LONGEST_PLAIN_INT else {"int": hex(plain)}
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(item, refer) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[encode(key, refer), encode(item, refer)] for key, item in dict.items(value)]}
    if isinstance(value, bytes):
        return {"bytes": bytes.hex(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, tuple):
        return {"tuple": [encode(item, refer) for item in tuple.__iter__(value)]}
    if isinstance(value, set):
        return {"set": [encode(item, refer) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"frozenset": [encode(item, refer) for item in frozenset.__iter__(value)]}
    for name, kind in TYPES.items():
        if value is kind:
            return {"type": name}
    return {"object": refer(value)}


def decode(data: Any, resolve: Callable[[int], Any]) -> Any:
    """Rebuild a value. `resolve` returns what stands for a numbered object.

    Raises:
        WireError: the data has another form.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [decode(item, resolve) for item in data]
    if isinstance(data, dict) and len(data) == 1:
        ((tag, body),) = data.items()
        try:
            return _tagged(tag, body, resolve)
        except (TypeError, ValueError, LookupError) as error:
            raise WireError(f"answers in an unknown form ({error})") from error
    raise WireError("answers in an unknown form")


def _tagged(tag: str, body: Any, resolve: Callable[[int], Any]) -> Any:
    if tag in SEQUENCES:
        return SEQUENCES[tag](decode(item, resolve) for item in body)
    if tag == "dict":
        return {decode(key, resolve): decode(value, resolve) for key, value in body}
    if tag == "int":
        return int(body, 16)
    if tag == "bytes":
        return bytes.fromhex(body)
    if tag == "complex":
        return complex(float(body[0]), float(body[1]))
    if tag == "type":
        return TYPES[body]
    if tag == "object" and type(body) is int:
        return resolve(body)
    raise ValueError(tag)


class Link:
    """One end of the pipes between candidate and tests. A message is a line of JSON."""

    def __init__(self, *, read_from: int, write_to: int, max_bytes: int) -> None:
        self._lines = os.fdopen(read_from, "rb", closefd=False)
        self._write_to = write_to
        self._left_bytes = max_bytes

    def send(self, message: dict[str, Any]) -> None:
        """Send a message.

        Raises:
            WireError: the other side is gone.
        """
        line = json.dumps(message).encode("ascii") + b"\n"
        try:
            while line:
                line = line[os.write(self._write_to, line) :]
        except OSError as error:
            raise WireError(ENDED) from error

    def receive(self) -> dict[str, Any]:
        """Wait for a message.

        Raises:
            WireError: the other side is gone, sent too much, or sent something else.
        """
        line = self._lines.readline(self._left_bytes)
        self._left_bytes -= len(line)
        if not line.endswith(b"\n"):
            raise WireError("answers too much" if self._left_bytes <= 0 else ENDED)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise WireError(f"answers with what is not JSON ({type(error).__name__})") from error
        if not isinstance(message, dict):
            raise WireError("answers in an unknown form")
        return message
