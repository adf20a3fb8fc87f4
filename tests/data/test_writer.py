"""Counting while files are written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.data.writer import Histogram


@given(st.lists(st.lists(st.integers(0, 40), min_size=1), min_size=1), st.sampled_from([1, 4, 100]))
def test_a_histogram_of_numbers_in_parts(parts: list[list[int]], steps: int) -> None:
    found = Histogram()
    for part in parts:
        found.add(np.array(part))
    every = sorted(number for part in parts for number in part)
    assert found.counts.sum() == len(every)
    shares = np.unique(every, return_counts=True)[1] / len(every)
    assert found.entropy == pytest.approx(-(shares * np.log(shares)).sum())
    quantiles = found.quantiles(steps)
    assert quantiles[0] == every[0]
    assert quantiles[-1] == every[-1]
    for k, number in enumerate(quantiles):
        up_to = sum(other <= number for other in every)
        assert up_to * steps >= k * len(every)
        assert k == 0 or sum(other < number for other in every) * steps < k * len(every)


def test_a_histogram_of_nothing() -> None:
    assert Histogram().entropy == 0
    assert Histogram().quantiles(100) == []
