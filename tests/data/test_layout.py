"""The step layout: every example once, the same shape on every rank, tokens in balance, little padding."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmrecipes.data.layout import (
    Arrangement,
    LayoutName,
    StepLayout,
    balance,
    cut_into_buckets,
    deal,
    fill_rows,
    lay_out,
    padding_share,
)
from lmrecipes.planning.batch import plan_batch

lengths_of = st.lists(st.integers(1, 64), min_size=1, max_size=80).map(lambda values: np.array(values, np.int64))
ranks = st.integers(1, 5)
arrangements = st.one_of(
    st.builds(Arrangement, st.sampled_from(["padded", "buckets", "grouped"]), st.integers(1, 4)),
    st.builds(
        Arrangement, st.just("packed"), width=st.one_of(st.none(), st.integers(64, 100)), least=st.integers(1, 100)
    ),
)


def examples_of(layout: StepLayout) -> list[list[list[int]]]:
    """[rank][micro-batch]: the examples of its parts."""
    return [[[int(i) for part in micro for i in part] for micro in rank] for rank in layout.positions]


def spread(parts: list[NDArray[np.int64]], lengths: NDArray[np.int64]) -> float:
    """Tokens of the fullest part over their mean."""
    tokens = [int(lengths[part].sum()) for part in parts]
    return max(tokens) * len(tokens) / sum(tokens)


@settings(deadline=None)
@given(lengths=lengths_of, world=ranks, micro=st.integers(1, 20), arrangement=arrangements)
def test_every_example_once_in_equal_shapes(
    lengths: NDArray[np.int64], world: int, micro: int, arrangement: Arrangement
) -> None:
    plan = plan_batch(len(lengths), micro, world)
    layout = lay_out(lengths, plan, arrangement)
    examples = examples_of(layout)
    assert sorted(i for rank in examples for one in rank for i in one) == list(range(len(lengths)))
    assert len(layout.positions) == world
    assert all(len(rank) == plan.accumulation for rank in layout.positions)
    assert max(len(one) for rank in examples for one in rank) <= plan.micro_examples <= micro
    assert 0 <= padding_share(layout, lengths, arrangement) < 1
    for parts in (micro for rank in layout.positions for micro in rank):
        if arrangement.layout in ("padded", "buckets"):
            assert len(parts) == (arrangement.buckets if arrangement.layout == "buckets" else 1), "passes on every rank"
        elif arrangement.width is not None:
            assert all(lengths[part].sum() <= arrangement.width for part in parts)
        if arrangement.layout == "grouped" or arrangement.width is not None:
            assert all(len(part) for part in parts), "no row or rectangle is computed for nothing"


@settings(deadline=None)
@given(lengths=lengths_of, bins=st.integers(1, 9), slack=st.integers(0, 5))
def test_bins_are_even_as_the_theory_says(lengths: NDArray[np.int64], bins: int, slack: int) -> None:
    most = -(-len(lengths) // bins) + slack
    parts = balance(lengths, bins, most)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    assert max(map(len, parts)) <= most
    assert all((np.diff(lengths[part]) <= 0).all() for part in parts), "each by falling length"
    if most >= len(lengths):  # no bin is ever full: the last text of the fullest one lay in what was then the emptiest
        assert max(lengths[part].sum() for part in parts) <= lengths.sum() / bins + lengths.max()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0.1, 1.3), each=st.integers(64, 160))
def test_ranks_balance_to_five_percent(seed: int, sigma: float, each: int) -> None:
    """64 examples or more on each rank, heavy tails up to sequences of 512 tokens."""
    rng = np.random.default_rng(seed)
    for world in (2, 4, 8):
        lengths = np.clip(rng.lognormal(3.2, sigma, world * each), 1, 512).astype(np.int64)
        assert spread(balance(lengths, world, each), lengths) <= 1.05
        dealt = deal(lengths, plan_batch(len(lengths), 64, world))
        assert np.median([spread(micros, lengths) for micros in dealt]) < 1.1, "micro-batches of a rank too"


def test_a_text_as_long_as_all_others_together() -> None:
    lengths = np.array([512, *[16] * 63], np.int64)
    first, second = balance(lengths, 2, 32)
    assert len(first) == len(second) == 32
    alone, rest = balance(lengths, 2, 64)
    assert {int(lengths[alone].sum()), int(lengths[rest].sum())} == {752, 768}


def test_exchange_finds_what_the_first_deal_missed() -> None:
    """Longest first gives 3+2+2 and 3+2."""
    lengths = np.array([3, 3, 2, 2, 2], np.int64)
    assert sorted(lengths[part].tolist() for part in balance(lengths, 2, 3)) == [[2, 2, 2], [3, 3]]


def padded_size(parts: list[NDArray[np.int64]], lengths: NDArray[np.int64]) -> int:
    return sum(len(part) * int(lengths[part].max()) for part in parts if len(part))


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), max_size=9).map(lambda values: np.array(values, np.int64)),
    buckets=st.integers(1, 4),
)
def test_buckets_are_the_best_of_all_cuts(lengths: NDArray[np.int64], buckets: int) -> None:
    positions = np.argsort(-lengths, kind="stable")
    found = cut_into_buckets(positions, lengths, buckets)
    assert np.concatenate(found).tolist() == positions.tolist()
    assert len(found) == buckets
    best = min(
        padded_size(np.split(positions, cuts), lengths)
        for cuts in combinations_with_replacement(range(len(positions) + 1), buckets - 1)
    )
    assert padded_size(found, lengths) == best


def test_more_buckets_less_padding() -> None:
    lengths = np.random.default_rng(1).integers(5, 60, 256)

    def share(layout: LayoutName, micro: int = 64, world: int = 2, **how: int) -> float:
        arrangement = Arrangement(layout, **how)
        return padding_share(lay_out(lengths, plan_batch(256, micro, world), arrangement), lengths, arrangement)

    shares = [share("buckets", buckets=buckets) for buckets in (1, 2, 4, 8)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == share("padded") > 0.35
    assert shares[-1] == share("grouped", buckets=8) < 0.08
    assert share("grouped", 256, 1, buckets=60) == 0
    assert share("packed", width=128, least=128) < 0.05
    assert share("packed") == 0


def test_fewer_examples_than_ranks() -> None:
    for name in ("padded", "buckets", "grouped", "packed"):
        arrangement = Arrangement(name, 2)  # type: ignore[arg-type]
        layout = lay_out(np.array([5, 9]), plan_batch(2, 4, 4), arrangement)
        assert sorted(len(one) for rank in examples_of(layout) for one in rank) == [0, 0, 1, 1]
        assert padding_share(layout, np.array([5, 9]), arrangement) == 0


def test_world_size_does_not_change_which_examples() -> None:
    lengths = np.random.default_rng(2).integers(1, 50, 96)
    for world, micro in [(1, 96), (2, 16), (4, 5)]:
        found = examples_of(lay_out(lengths, plan_batch(96, micro, world), Arrangement("grouped", 3)))
        assert sorted(i for rank in found for one in rank for i in one) == list(range(96))


def test_a_large_micro_batch_is_cut_in_little_memory() -> None:
    lengths = np.sort(np.random.default_rng(3).integers(1, 129, 20_000))[::-1]
    found = cut_into_buckets(np.arange(20_000), lengths, 8)
    assert sum(map(len, found)) == 20_000
    assert padded_size(found, lengths) < 1.13 * lengths.sum(), "8 buckets over 1..128: half of 16 in 64"


@settings(deadline=None)
@given(lengths=lengths_of, width=st.integers(64, 200))
def test_rows_are_filled_near_the_best(lengths: NDArray[np.int64], width: int) -> None:
    order = np.argsort(-lengths, kind="stable")
    rows = fill_rows(order, lengths, width)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= width for row in rows)
    sums = sorted(int(lengths[row].sum()) for row in rows)
    assert len(rows) == 1 or sums[0] + sums[1] > width, "two rows that fit together are one"


def test_rows_of_real_lengths_are_full() -> None:
    lengths = np.random.default_rng(4).lognormal(3, 0.6, 512).clip(3, 128).astype(np.int64)
    rows = fill_rows(np.argsort(-lengths, kind="stable"), lengths, 128)
    assert lengths.sum() / (len(rows) * 128) > 0.97


@pytest.mark.parametrize(("width", "texts"), product((64, 65, 128), (1, 7, 40)))
def test_a_text_as_long_as_the_row(width: int, texts: int) -> None:
    rows = fill_rows(np.arange(texts), np.full(texts, 64, np.int64), width)
    assert [len(row) for row in rows] == [width // 64] * (texts // (width // 64)) + [1] * (texts % (width // 64))
