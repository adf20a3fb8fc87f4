"""Stateless shuffles: the row at any position of any epoch, without a stored permutation. Pure numpy.

A Feistel network on two digits of about sqrt(n) each permutes the positions (Black and Rogaway, Ciphers with arbitrary
finite domains, 2002, section 5); the few that land at or beyond n go through it again. Rounds are multiply-xorshift
hashes, six of them: linear rounds would leak the low bits (one output bit would be the exclusive or of two input bits).
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS = 6
BLOCK = 1 << 16
"""Positions permuted at once: the working arrays stay in a core's cache."""
EDGE = 1024
"""A row of an epoch's last EDGE positions (or quarter) is kept out of the first EDGE (or quarter) of the next epoch."""

_WEYL = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1
_HALF = NDArray[np.uint32]


def hash_key(*parts: int | str) -> int:
    """A 64-bit key of (seed, purpose, index, ...): BLAKE2b of the parts' text."""
    text = "\x1f".join(map(str, parts)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def numbered_keys(bases: Words | np.uint64, numbers: Array) -> Words:
    """A 64-bit key for each number under its base: the number-th output of SplitMix64 seeded with the base."""
    x = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(_WEYL) + bases
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_uniform(key: int, indices: Array) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for each index, from 32 hashed bits."""
    low = _mix32((indices & 0xFFFFFFFF).astype(np.uint32) ^ np.uint32(key & 0xFFFFFFFF))
    high = _mix32((indices >> 32).astype(np.uint32) ^ np.uint32(key >> 32) ^ low)
    return _mix32(low + np.uint32(0x9E3779B9) + high).astype(np.float64) / 2.0**32


def _mix32(x: _HALF) -> _HALF:
    """MurmurHash3's 32-bit finaliser, in place."""
    spare = np.empty_like(x)
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        np.right_shift(x, np.uint32(shift), out=spare)
        np.bitwise_xor(x, spare, out=x)
        np.multiply(x, np.uint32(multiplier), out=x)
    np.right_shift(x, np.uint32(16), out=spare)
    np.bitwise_xor(x, spare, out=x)
    return x


def permute(positions: Array, n: int, keys: int | Words) -> Array:
    """Images of `positions`, each in [0, n), under the permutation of n rows that its key selects. n < 2**62.

    positions: [k]. keys: one for all, or [k], so that one call serves several epochs.
    """
    if len(positions) > BLOCK:
        blocks = [slice(i, i + BLOCK) for i in range(0, len(positions), BLOCK)]
        parts = [permute(positions[b], n, keys if isinstance(keys, int) else keys[b]) for b in blocks]
        return np.concatenate(parts)
    upper = math.isqrt(n - 1) + 1
    lower = -(-n // upper)
    out = _feistel(positions, upper, lower, _halves(keys))
    todo = np.flatnonzero(out >= n)
    while len(todo):
        image = _feistel(out[todo], upper, lower, _halves(keys if isinstance(keys, int) else keys[todo]))
        out[todo] = image
        todo = todo[image >= n]
    return out


def _halves(keys: int | Words) -> tuple[_HALF, _HALF]:
    """Low and high half of the keys, as arrays also where there is one key for all."""
    words = np.array([keys], np.uint64) if isinstance(keys, int) else keys
    return words.astype(np.uint32), (words >> np.uint64(32)).astype(np.uint32)


def _feistel(positions: Array, upper: int, lower: int, keys: tuple[_HALF, _HALF]) -> Array:
    """One pass over [0, upper * lower): the digits of a position, each changed three times by a hash of the other."""
    high_digit = positions // lower
    low_digit = (positions - high_digit * lower).astype(np.uint32)
    digits, sizes = [high_digit.astype(np.uint32), low_digit], (upper, lower)
    word, spare = np.empty_like(low_digit), np.empty_like(low_digit)
    low_key, high_key = keys
    for turn in range(ROUNDS):
        salt = (low_key ^ np.uint32(0x85EBCA6B * (turn + 1) & 0xFFFFFFFF)) * np.uint32(0xCC9E2D51) + high_key
        salt ^= salt >> np.uint32(15)
        digit, size = digits[turn % 2], sizes[turn % 2]
        np.bitwise_xor(digits[1 - turn % 2], salt, out=word)
        np.multiply(word, np.uint32(0x85EBCA6B), out=word)
        np.right_shift(word, np.uint32(15), out=spare)
        np.bitwise_xor(word, spare, out=word)
        np.multiply(word, np.uint32(0xC2B2AE35), out=word)
        _below(word, size)
        np.add(digit, word, out=digit)
        np.subtract(digit, np.uint32(size), out=spare)  # wraps to a large number where digit < size
        np.minimum(digit, spare, out=digit)
    return digits[0].astype(np.int64) * lower + digits[1]


def _below(hashes: _HALF, size: int) -> None:
    """Make numbers below `size` of 32-bit hashes, by their upper bits, in place: the product with `size`, shifted."""
    if size <= 1 << 16:
        np.right_shift(hashes, np.uint32(16), out=hashes)
        np.multiply(hashes, np.uint32(size), out=hashes)
        np.right_shift(hashes, np.uint32(16), out=hashes)
    else:
        hashes[:] = np.multiply(hashes, np.uint64(size), dtype=np.uint64) >> np.uint64(32)


class Shuffle:
    """The endless order of one source's rows: every row once an epoch, in an order of its own for each epoch.

    Epoch e is the permutation of key e, changed in one place: rows of the former epoch's last `edge` positions that
    would stand among its first `edge` change places with rows of the 2 `edge` positions after those. So between two
    draws of a row lie at least `edge` draws of other rows of the source.
    """

    def __init__(self, rows: int, key: int) -> None:
        self.n, self.key = rows, key
        self.edge = min(rows // 4, EDGE)
        self._swapped = lru_cache(maxsize=16)(self._swaps_of_epoch)

    def rows(self, ranks: Array) -> Array:
        """Row of the source's ranks-th draw, [k] each."""
        if not len(ranks):
            return ranks.copy()
        first, last = int(ranks.min()) // self.n, int(ranks.max()) // self.n
        if first == last:
            positions = ranks - first * self.n
            rows = permute(positions, self.n, int(numbered_keys(np.uint64(self.key), np.array([first]))[0]))
            if first and self.edge and int(positions.min()) < 3 * self.edge:
                self._exchange(rows, positions, *self._swapped(first))
            return rows
        epochs, positions = np.divmod(ranks, self.n)
        rows = permute(positions, self.n, numbered_keys(np.uint64(self.key), epochs))
        near = np.unique(epochs[(positions < 3 * self.edge) & (epochs > 0)])
        if len(near):
            places, images = self._swaps(near)
            tags = np.searchsorted(near, epochs)
            tags = np.where(near[np.minimum(tags, len(near) - 1)] == epochs, tags, -1)
            self._exchange(rows, np.where(tags >= 0, tags * self.n + positions, -1), places, images)
        return rows

    @staticmethod
    def _exchange(rows: Array, tags: Array, places: Array, images: Array) -> None:
        """Where a tag is among `places` (sorted), put its image."""
        if len(places):
            at = np.minimum(np.searchsorted(places, tags), len(places) - 1)
            hit = places[at] == tags
            rows[hit] = images[at[hit]]

    def _swaps_of_epoch(self, epoch: int) -> tuple[Array, Array]:
        return self._swaps(np.array([epoch], np.int64))

    def _swaps(self, epochs: Array) -> tuple[Array, Array]:
        """What differs from the plain permutations of `epochs` [e]: (i * n + position, row), sorted by the first."""
        q, n, count = self.edge, self.n, len(epochs)
        own, before = (numbered_keys(np.uint64(self.key), epochs - back) for back in (0, 1))
        start = permute(np.tile(np.arange(3 * q), count), n, np.repeat(own, 3 * q))
        end = permute(np.tile(np.arange(n - q, n), count), n, np.repeat(before, q))
        mark = np.arange(count)[:, None] * n  # keeps the epochs apart in one set
        start = start.reshape(count, 3 * q)
        recent = np.isin(start + mark, end.reshape(count, q) + mark)
        # The i-th conflict changes places with the i-th free row: of the 2 q places at most q hold recent rows.
        conflict, free = recent[:, :q], ~recent[:, q:]
        wanted = conflict.sum(axis=1)
        free &= np.cumsum(free, axis=1) <= wanted[:, None]
        epoch_a, a = np.nonzero(conflict)
        epoch_b, b = np.nonzero(free)
        b += q
        places = np.concatenate([epoch_a * n + a, epoch_b * n + b])
        images = np.concatenate([start[epoch_b, b], start[epoch_a, a]])
        order = np.argsort(places)
        return places[order], images[order]
