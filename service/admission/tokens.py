"""Splits text into tokens and hashes n-grams to 64 bits, for near duplicates and benchmarks."""

from __future__ import annotations

import re
import zlib

import numpy as np
from numpy.typing import NDArray

CODE_TOKEN = re.compile(r"\w+|[^\w\s]")
"""A word or a punctuation character. Whitespace is ignored."""
WORD = re.compile(r"\w+")

_GOLDEN = 0x9E3779B97F4A7C15

Hashes = NDArray[np.uint64]


def token_hashes(text: str, token: re.Pattern[str]) -> Hashes:
    """Return a stable 32-bit hash of each token, in order."""
    words = token.findall(text)
    return np.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint64, len(words))


def gram_hashes(tokens: Hashes, size: int) -> Hashes:
    """Return the hash of each run of `size` tokens, in order. A shorter text gives one hash of all its tokens.

    The hash is a polynomial of the tokens modulo 2^64, with the high bits mixed into the low ones.
    """
    window = min(size, len(tokens))
    if window == 0:
        return np.zeros(0, np.uint64)
    sums = np.zeros(len(tokens) - window + 1, np.uint64)
    for place in range(window):
        factor = np.uint64(pow(_GOLDEN, place + 1, 2**64))
        sums += tokens[place : len(tokens) - window + 1 + place] * factor
    return np.asarray(sums ^ (sums >> np.uint64(29)), np.uint64)
