"""The order by tokens: shares of the tokens at every prefix, any index, stages, caps to the row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.data.interleave import Stage
from lmrecipes.data.permutation import Array, Shuffle, hash_uniform
from lmrecipes.data.token_stream import CHUNK, CostedSource, TokenStream


def lengths(rows: int, mean: float, seed: int, smallest: int = 1) -> Array:
    """Heavy-tailed lengths: exponential, with a tail of ten times the mean."""
    uniform = hash_uniform(seed, np.arange(rows))
    return np.maximum(smallest, mean * -np.log1p(-uniform) * np.where(uniform > 0.95, 3, 0.9)).astype(np.int64)


def sources(*sizes: tuple[int, float], smallest: int = 1) -> tuple[list[Array], list[CostedSource]]:
    made = [lengths(rows, mean, 7 + i, smallest) for i, (rows, mean) in enumerate(sizes)]
    costed = [CostedSource(Shuffle(len(c), 50 + i), c.__getitem__, int(c.sum())) for i, c in enumerate(made)]
    return made, costed


def tokens_after(stream: TokenStream, costs: list[Array], drawn: Array, ranks: Array) -> np.ndarray:
    """Tokens of each source after each prefix: [samples, sources]."""
    out = np.zeros((len(drawn), len(costs)))
    for i, source in enumerate(stream.sources):
        mine = drawn == i
        out[mine, i] = costs[i][source.shuffle.rows(ranks[mine])]
    return np.cumsum(out, axis=0)


def test_token_shares_are_exact_over_two_hundred_thousand_samples() -> None:
    """At most 0.1% off, at the end and at every prefix within about one sample's tokens."""
    costs, made = sources((1000, 20), (20_000, 100), (300, 700))
    weights = np.array([32, 64, 4])
    stream = TokenStream([Stage(0, tuple(weights.tolist()))], [None] * 3, made)
    drawn, ranks = stream.locate(np.arange(200_000))
    tokens = tokens_after(stream, costs, drawn, ranks)
    goal = tokens.sum(axis=1, keepdims=True) * weights / 100
    assert np.abs(tokens[-1] / tokens[-1].sum() - weights / 100).max() < 0.001 * 0.04
    assert np.abs(tokens - goal).max() < max(int(c.max()) for c in costs)
    assert np.allclose(stream.targets(200_000), goal[-1], atol=max(int(c.max()) for c in costs))


def test_equal_lengths_are_an_order_by_counts() -> None:
    costs, made = [np.full(100, 7), np.full(50, 7)], []
    made = [CostedSource(Shuffle(len(c), i), c.__getitem__, int(c.sum())) for i, c in enumerate(costs)]
    stream = TokenStream([Stage(0, (3, 1))], [None, None], made)
    for index in (1, 10, 777, 5000):
        assert np.abs(np.array(stream.counts(index)) - index * np.array([0.75, 0.25])).max() <= 1


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 400), st.floats(1, 60)), min_size=1, max_size=5),
    smallest=st.integers(0, 3),
    starts=st.lists(st.integers(1, 3000), max_size=4, unique=True),
    data=st.data(),
)
def test_any_way_of_asking_gives_one_order(
    sizes: list[tuple[int, float]], smallest: int, starts: list[int], data: st.DataObject
) -> None:
    costs, made = sources(*sizes, smallest=smallest)
    if any(not cost.sum() for cost in costs):
        return
    weight = st.integers(0, 50)
    of_all = st.lists(weight, min_size=len(sizes), max_size=len(sizes)).filter(any)
    stages = [Stage(start, tuple(data.draw(of_all))) for start in [0, *sorted(starts)]]
    stream = TokenStream(stages, [None] * len(sizes), made)
    drawn, ranks = stream.locate(np.arange(6000))
    for i in range(len(sizes)):
        assert ranks[drawn == i].tolist() == list(range(int((drawn == i).sum())))
    index = data.draw(st.integers(0, 5900))
    fresh = TokenStream(stages, [None] * len(sizes), made)
    assert fresh.counts(index) == [int((drawn[:index] == i).sum()) for i in range(len(sizes))]
    again = TokenStream(stages, [None] * len(sizes), made).locate(np.arange(index, index + 100))
    assert np.array_equal(again, [drawn[index : index + 100], ranks[index : index + 100]])
    for source, first, places in fresh.samples(index, index + 100):
        assert np.array_equal(drawn[index + places], np.full(len(places), source))
        assert np.array_equal(ranks[index + places], np.arange(first, first + len(places)))


def test_sought_far_away_is_what_would_have_come() -> None:
    """Blocks after a sought one go on from it; a sought block is the one that follows from its neighbour."""
    _, made = sources((CHUNK + 700, 30), (90, 200))
    for index in (10**6 - 100, 10**9, 10**12):
        stream = TokenStream([Stage(0, (7, 2))], [None, None], made)
        near = stream.locate(np.arange(index, index + 20_000))
        later = TokenStream([Stage(0, (7, 2))], [None, None], made).locate(np.arange(index + 15_000, index + 20_000))
        assert np.array_equal(near[0][15_000:], later[0])
        assert np.array_equal(near[1][15_000:], later[1])
        assert sum(stream.counts(index)) == index


def test_targets_go_on_over_stages_without_drift() -> None:
    costs, made = sources((500, 25), (2000, 80), (60, 300))
    rng = np.random.default_rng(0)
    stages = [Stage(64 * i, tuple(rng.integers(1, 100, 3).tolist())) for i in range(300)]
    stream = TokenStream(stages, [None] * 3, made)
    drawn, ranks = stream.locate(np.arange(64 * 300))
    tokens = tokens_after(stream, costs, drawn, ranks)
    for index in (64, 6400, 64 * 300):
        apart = np.abs(tokens[index - 1] - stream.targets(index))
        assert (apart <= [cost.max() for cost in costs]).all()


def test_caps_hold_exactly_and_the_others_keep_their_proportion() -> None:
    costs, made = sources((1000, 20), (5000, 100), (2000, 40))
    stream = TokenStream([Stage(0, (30, 50, 20))], [2000, None, 2001], made)
    drawn, ranks = stream.locate(np.arange(30_000))
    counts = [int((drawn == i).sum()) for i in range(3)]
    assert counts[0] == 2000
    assert counts[2] == 2001
    rows = made[0].shuffle.rows(ranks[drawn == 0])
    assert np.bincount(rows, minlength=1000).tolist() == [2] * 1000, "two whole epochs"
    ends = stream.exhausted_before(30_000)
    first = int(np.flatnonzero(drawn == 0)[-1]) + 1
    assert abs(ends[0] - first) <= 3
    tokens = tokens_after(stream, costs, drawn, ranks)
    between = tokens[ends[2] - 2] - tokens[ends[0]] if ends[2] > ends[0] else tokens[ends[0] - 2] - tokens[ends[2]]
    partner = 2 if ends[2] > ends[0] else 0
    assert between[partner] / between[1] == pytest.approx({0: 30, 2: 20}[partner] / 50, rel=0.02)
    assert stream.weights_at(29_999) == (0, 50, 0)


def test_nothing_left_is_said_with_its_index() -> None:
    _, made = sources((100, 20), (50, 100))
    with pytest.raises(OverflowError) as stop:
        TokenStream([Stage(0, (1, 1))], [100, 50], made).counts(1000)
    assert stop.value.args == (150,)


def test_extended_keeps_what_was_and_adds_a_stage() -> None:
    _, made = sources((1000, 20), (5000, 100))
    for seen in (0, 100, 30_000):
        stream = TokenStream([Stage(0, (1, 1))], [None, None], made)
        if seen:
            stream.locate(np.arange(seen))
        longer = stream.extended(Stage(12_800, (1, 9))).extended(Stage(19_200, (5, 1)))
        declared = TokenStream([Stage(0, (1, 1)), Stage(12_800, (1, 9)), Stage(19_200, (5, 1))], [None, None], made)
        assert np.array_equal(longer.locate(np.arange(40_000)), declared.locate(np.arange(40_000)))
        assert longer.counts(25_000) == declared.counts(25_000) != stream.counts(25_000)


def test_an_epoch_is_summed_up_in_chunks() -> None:
    costs, (source,) = sources((3 * CHUNK + 17, 30))
    order = source.shuffle.rows(np.arange(2 * len(costs[0])))
    middles = np.cumsum(costs[0][order]) - costs[0][order] / 2
    assert np.array_equal(source.middles(0, len(middles)), middles)
    for rank in (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 5, len(costs[0]) - 1, len(costs[0]), len(middles) - 2):
        assert source.reached(middles[rank]) == rank + 1
        assert source.reached(middles[rank] - 0.25) == rank
