"""The stateless shuffle: every row once, no structure left, nothing stored."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.data.permutation import Array, Shuffle, hash_key, hash_uniform, numbered_keys, permute

PINNED = [7, 2, 1, 0, 3, 8, 4, 5, 9, 6]
PINNED_EPOCHS = [0, 1, 2, 6, 4, 3, 5, 1, 0, 3, 6, 2, 5, 4, 0, 1, 4, 2, 3, 6, 5]


def shuffled(n: int, *parts: int | str) -> Array:
    return permute(np.arange(n), n, np.full(n, hash_key(*parts), np.uint64))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4095, 4096, 4097, 100_003])
def test_every_row_once(n: int) -> None:
    for key in range(3):
        assert np.array_equal(np.sort(shuffled(n, key)), np.arange(n))


@settings(deadline=None)
@given(n=st.integers(1, 2**62 - 1), key=st.integers(0, 2**64 - 1), data=st.data())
def test_large_n_stays_in_range_and_distinct(n: int, key: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True)))
    images = permute(positions, n, np.full(len(positions), key, np.uint64))
    assert len(set(images.tolist())) == len(positions)
    assert images.min() >= 0
    assert images.max() < n


def test_one_position_alone_is_the_same_as_among_many() -> None:
    n, keys = 1000, np.array([hash_key(i % 7) for i in range(1000)], np.uint64)
    together = permute(np.arange(n), n, keys)
    alone = [permute(np.array([i]), n, keys[i : i + 1])[0] for i in range(0, n, 37)]
    assert together[::37].tolist() == alone


def test_the_rows_are_pinned() -> None:
    """A run that is resumed with a later version must go on with the same rows."""
    assert hash_key(0, "shuffle", "a", 3) == 15497291207903979803
    assert shuffled(10, 0).tolist() == PINNED
    assert Shuffle(7, 5).rows(np.arange(21)).tolist() == PINNED_EPOCHS
    assert hash_key("\ud83d") != hash_key("\ud83c"), "half a surrogate pair is hashed, too"


def test_keys_give_unrelated_orders() -> None:
    n = 20_000
    orders = [shuffled(n, "key", key) for key in range(6)]
    for i, first in enumerate(orders):
        assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
        for second in orders[:i]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)
            assert (first == second).sum() < 12, "rows that stay in place are Poisson with mean 1"


def test_neighbours_part() -> None:
    n = 50_000
    steps = np.diff(shuffled(n, "neighbours"))
    assert abs(np.abs(steps).mean() / (n / 3) - 1) < 0.02
    assert (np.abs(steps) == 1).sum() < 15, "about 2 are expected"


@pytest.mark.parametrize("n", [2**14, 2**16])
def test_no_output_bit_is_linear_in_the_input_bits(n: int) -> None:
    """Walsh spectrum of each output bit: an XOR of input bits would stand out as 1. Noise is about 1 / sqrt(n)."""
    bits = n.bit_length() - 1
    images = shuffled(n, "linear")
    for bit in range(bits):
        spectrum = 1.0 - 2.0 * ((images >> bit) & 1)
        width = 1
        while width < n:
            pairs = spectrum.reshape(-1, 2, width)
            spectrum = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
            width *= 2
        assert np.abs(spectrum).max() / n < 7 / np.sqrt(n)


def test_hash_uniform_is_uniform_and_keyed() -> None:
    rows = np.arange(40_000)
    a, b = hash_uniform(hash_key("a"), rows), hash_uniform(hash_key("b"), rows)
    assert 0 <= a.min() < 1e-3
    assert 0.999 < a.max() < 1
    assert np.abs(np.histogram(a, 20, (0, 1))[0] / 2000 - 1).max() < 0.12
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.025
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.025
    assert hash_uniform(hash_key("a"), np.array([2**40])) != hash_uniform(hash_key("a"), np.array([0]))


def test_numbered_keys_are_those_of_splitmix64() -> None:
    """The first outputs of the reference implementation (Vigna, splitmix64.c) seeded with 0."""
    assert numbered_keys(np.uint64(0), np.arange(2)).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_few_rows_take_every_order_equally_often(n: int) -> None:
    keys = numbered_keys(np.uint64(1), np.arange(6000))
    orders = [tuple(permute(np.arange(n), n, int(key)).tolist()) for key in keys]
    expected = len(keys) / math.factorial(n)
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == math.factorial(n)
    assert max(abs(count - expected) for count in counts) < 5 * np.sqrt(expected)


def test_a_row_moves_to_any_place_from_epoch_to_epoch() -> None:
    """Chi-square over a 10 x 10 table of the place in one epoch against that in the next."""
    n = 100_000
    shuffle = Shuffle(n, 3)
    first, second = shuffle.rows(np.arange(n)), shuffle.rows(np.arange(n, 2 * n))
    place = np.empty((2, n), np.int64)
    place[0, first], place[1, second] = np.arange(n), np.arange(n)
    table = np.histogram2d(place[0], place[1], 10)[0]
    assert ((table - n / 100) ** 2 / (n / 100)).sum() < 160, "81 degrees of freedom: mean 81, 5 sigma above it 145"


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6))
def test_epochs_are_whole_and_rows_stay_apart_at_their_edges(n: int, key: int, epoch: int) -> None:
    shuffle = Shuffle(n, key)
    start = epoch * n
    rows = shuffle.rows(np.arange(start, start + 3 * n)).reshape(3, n)
    assert all(np.array_equal(np.sort(one), np.arange(n)) for one in rows)
    assert shuffle.edge >= n // 4 - 1 or shuffle.edge == 1024
    for one, following in pairwise(rows):
        q = shuffle.edge
        assert not set(one[n - q :].tolist()) & set(following[:q].tolist())


def test_a_shuffle_says_the_same_however_it_is_asked() -> None:
    for n in (1, 5, 37, 5000):
        shuffle = Shuffle(n, 11)
        ranks = np.arange(n * 5 // 2)
        whole = shuffle.rows(ranks)
        picked = np.arange(0, len(ranks), 1 + len(ranks) // 61)
        assert whole[picked].tolist() == [int(shuffle.rows(np.array([rank]))[0]) for rank in picked]
        assert np.array_equal(whole[::-1], shuffle.rows(ranks[::-1]))
        assert np.array_equal(whole[n // 2 :], shuffle.rows(ranks[n // 2 :]))
    assert len(Shuffle(5, 1).rows(np.arange(0))) == 0
