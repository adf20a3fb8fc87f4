"""The stateless shuffle: every row once, no structure left, nothing stored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.data.permutation import Array, hash_key, hash_uniform, permute


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
    assert shuffled(10, 0).tolist() == [8, 6, 7, 0, 5, 3, 9, 1, 2, 4]
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
