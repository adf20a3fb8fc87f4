"""Stateless shuffles: the row at any position of any epoch, without a stored permutation. Pure numpy.

A Feistel network on the smallest power of four >= n permutes it; cycle-walking (apply again while the image is >= n)
restricts that to n rows, with fewer than four passes expected. Rounds are multiply-xorshift hashes (the finaliser of
MurmurHash3), six of them: linear rounds would leak the low bits.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS = 6
_MASK32 = np.uint64(0xFFFFFFFF)


def hash_key(*parts: int | str) -> int:
    """A 64-bit key of (seed, purpose, index, ...): BLAKE2b of the parts' text."""
    text = "\x1f".join(map(str, parts)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _mix32(x: Words) -> Words:
    """MurmurHash3's 32-bit finaliser, in 64-bit words that hold 32 bits."""
    x = x ^ (x >> np.uint64(16))
    x = (x * np.uint64(0x85EBCA6B)) & _MASK32
    x = x ^ (x >> np.uint64(13))
    x = (x * np.uint64(0xC2B2AE35)) & _MASK32
    return x ^ (x >> np.uint64(16))


def hash_uniform(key: int, indices: Array) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for each index, from 32 hashed bits."""
    x = indices.astype(np.uint64)
    low = _mix32((x ^ np.uint64(key)) & _MASK32)
    high = _mix32(((x >> np.uint64(32)) ^ np.uint64(key >> 32) ^ low) & _MASK32)
    return _mix32((low + np.uint64(0x9E3779B9) + high) & _MASK32).astype(np.float64) / 2.0**32


def permute(positions: Array, n: int, keys: Words) -> Array:
    """Images of `positions`, each in [0, n), under the permutation of n rows that each one's key selects. n < 2**62.

    positions, keys: [k]. Keys may differ by position, so that one call serves several epochs.
    """
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    out = positions.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right, key = out[todo] >> shift, out[todo] & mask, keys[todo]
        for turn in range(ROUNDS):
            salt = (key >> np.uint64(32)) if turn % 2 else key
            word = _mix32((right ^ salt ^ np.uint64(0x9E3779B9 * (turn + 1) & 0xFFFFFFFF)) & _MASK32)
            left, right = right, left ^ (_mix32((word + key) & _MASK32) & mask)
        out[todo] = (left << shift) | right
        todo = todo[out[todo] >= np.uint64(n)]
    return out.astype(np.int64)
