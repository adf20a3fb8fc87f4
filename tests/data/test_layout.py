"""The step layout: every example once, the same shape on every rank, little padding."""

from itertools import combinations_with_replacement

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmrecipes.data.layout import StepLayout, cut_into_buckets, lay_out, padding_share
from lmrecipes.planning.batch import plan_batch

lengths_of = st.lists(st.integers(1, 64), min_size=1, max_size=80).map(lambda values: np.array(values, np.int64))
ranks = st.integers(1, 5)


def examples_of(layout: StepLayout) -> list[list[list[int]]]:
    """[rank][micro-batch]: the examples of its buckets."""
    return [[[int(i) for bucket in micro for i in bucket] for micro in rank] for rank in layout.positions]


@settings(deadline=None)
@given(lengths=lengths_of, world=ranks, micro=st.integers(1, 20), buckets=st.integers(1, 4))
def test_every_example_once_in_equal_shapes(lengths: NDArray[np.int64], world: int, micro: int, buckets: int) -> None:
    plan = plan_batch(len(lengths), micro, world)
    layout = lay_out(lengths, plan, buckets)
    examples = examples_of(layout)
    assert sorted(i for rank in examples for one in rank for i in one) == list(range(len(lengths)))
    assert len(layout.positions) == world
    assert all(len(rank) == plan.accumulation for rank in layout.positions)
    assert all(len(one) == buckets for rank in layout.positions for one in rank)
    assert max(len(one) for rank in examples for one in rank) <= plan.micro_examples <= micro


@settings(deadline=None)
@given(lengths=lengths_of, world=ranks)
def test_ranks_have_the_same_work(lengths: NDArray[np.int64], world: int) -> None:
    """Dealt there and back by falling length, two ranks never differ by more than one longest text."""
    layout = lay_out(lengths, plan_batch(len(lengths), 1000, world), 2)
    tokens = [sum(int(lengths[i]) for one in rank for i in one) for rank in examples_of(layout)]
    texts = [sum(len(one) for one in rank) for rank in examples_of(layout)]
    assert max(texts) - min(texts) <= 1
    assert max(tokens) - min(tokens) <= lengths.max()


def test_tokens_balance_in_a_real_batch() -> None:
    lengths = np.random.default_rng(0).lognormal(3, 0.8, 512).astype(np.int64) + 1
    for world in (2, 4, 8):
        layout = lay_out(lengths, plan_batch(512, 32, world), 4)
        tokens = [sum(int(lengths[i]) for one in rank for i in one) for rank in examples_of(layout)]
        assert max(tokens) / min(tokens) < 1.08, "a random deal gives 1.3 at 8 ranks"


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
    shares = [padding_share(lay_out(lengths, plan_batch(256, 64, 2), buckets), lengths) for buckets in (1, 2, 4, 8)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.35
    assert shares[-1] < 0.08
    assert padding_share(lay_out(lengths, plan_batch(256, 256, 1), 60), lengths) == 0


def test_fewer_examples_than_ranks() -> None:
    layout = lay_out(np.array([5, 9]), plan_batch(2, 4, 4), 2)
    assert sorted(len(one) for rank in examples_of(layout) for one in rank) == [0, 0, 1, 1]
    assert padding_share(layout, np.array([5, 9])) == 0


def test_world_size_does_not_change_which_examples() -> None:
    lengths = np.random.default_rng(2).integers(1, 50, 96)
    for world, micro in [(1, 96), (2, 16), (4, 5)]:
        found = examples_of(lay_out(lengths, plan_batch(96, micro, world), 3))
        assert sorted(i for rank in found for one in rank for i in one) == list(range(96))


def test_a_large_micro_batch_is_cut_in_little_memory() -> None:
    lengths = np.sort(np.random.default_rng(3).integers(1, 129, 20_000))[::-1]
    found = cut_into_buckets(np.arange(20_000), lengths, 8)
    assert sum(map(len, found)) == 20_000
    assert padded_size(found, lengths) < 1.13 * lengths.sum(), "8 buckets over 1..128: half of 16 in 64"
