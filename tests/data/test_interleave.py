"""The interleaved order: shares at every prefix, any index, any stage, caps to the sample."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmrecipes.data.interleave import Interleave, Stage, integer_weights

shares = st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=40)


def order(raw: list[float], caps: list[int | None] | None = None) -> Interleave:
    return Interleave([Stage(0, integer_weights(raw))], caps or [None] * len(raw))


def realised(made: Interleave, samples: int) -> np.ndarray:
    """Counts after each prefix 1..samples: [samples, sources]."""
    sources, _ = made.locate(np.arange(samples))
    return np.cumsum(sources[:, None] == np.arange(len(made.caps)), axis=0)


def targets_of(stages: list[Stage], samples: int, sources: int) -> np.ndarray:
    rates = np.zeros((samples, sources))
    for stage in stages:
        rates[stage.start :] = np.array(stage.weights) / sum(stage.weights)
    return np.cumsum(rates, axis=0)


@settings(deadline=None)
@given(raw=shares, start=st.integers(0, 10**7))
@example(raw=[0.5, 0.3, 0.2], start=0)
@example(raw=[1.0] * 40, start=0)
@example(raw=[2.0**-i for i in range(13)], start=10**6)
@example(raw=[1.618**-i for i in range(20)], start=0)
def test_counts_are_within_two_of_the_share_at_every_prefix(raw: list[float], start: int) -> None:
    made = order(raw)
    before = np.array(made.counts(start))
    sources, _ = made.locate(np.arange(start, start + 2000))
    prefixes = before + np.cumsum(sources[:, None] == np.arange(len(raw)), axis=0)
    goals = np.arange(start + 1, start + 2001)[:, None] * (np.array(raw) / sum(raw))
    bound = 1.1 if len(raw) < 10 else 1.68
    assert np.abs(prefixes - goals).max() < bound + 0.01, "0.01: weights are exact to 1e-9, of 1e7 samples"
    assert prefixes[-1].tolist() == made.counts(start + 2000), "`counts` agrees with `locate`"


@settings(deadline=None, max_examples=40)
@given(raw=shares, indices=st.lists(st.integers(0, 10**12), min_size=1, max_size=40))
def test_any_index_can_be_sought(raw: list[float], indices: list[int]) -> None:
    made = order(raw)
    sources, ranks = made.locate(np.array(indices))
    for index, source, rank in zip(indices, sources.tolist(), ranks.tolist(), strict=True):
        before, after = made.counts(index), made.counts(index + 1)
        assert sum(before) == index
        assert [i for i in range(len(raw)) if after[i] > before[i]] == [source]
        assert rank == before[source]


@st.composite
def staged(draw: st.DrawFn) -> tuple[list[Stage], list[int | None]]:
    """Up to 12 stages of 1 to 400 samples over up to 8 sources, some without weight for a while; some caps."""
    sources = draw(st.integers(1, 8))
    weight = st.one_of(st.just(0), st.integers(1, 1000))
    stages, start = [], 0
    for _ in range(draw(st.integers(1, 12))):
        weights = draw(st.lists(weight, min_size=sources, max_size=sources).filter(any))
        stages.append(Stage(start, tuple(weights)))
        start += draw(st.integers(1, 400))
    caps = draw(st.lists(st.one_of(st.none(), st.integers(1, 500)), min_size=sources, max_size=sources))
    return stages, caps


@settings(deadline=None, max_examples=150)
@given(case=staged(), start=st.integers(0, 4000), length=st.integers(1, 900))
def test_stretches_single_indices_and_counts_agree(
    case: tuple[list[Stage], list[int | None]], start: int, length: int
) -> None:
    stages, caps = case
    made = Interleave(stages, caps)
    try:
        made.counts(start + length)
    except OverflowError as stop:
        used = made.counts(stop.args[0])
        active = next(stage for stage in reversed(stages) if stage.start <= stop.args[0]).weights
        assert all(cap is not None and n >= cap for n, cap, w in zip(used, caps, active, strict=True) if w)
        return
    sources, ranks = made.locate(np.arange(start, start + length))
    by_stretch = np.full((2, length), -1)
    for source, first, places in made.samples(start, start + length):
        assert (by_stretch[0, places] == -1).all(), "each place once"
        by_stretch[0, places], by_stretch[1, places] = source, np.arange(first, first + len(places))
    assert np.array_equal(by_stretch, [sources, ranks])
    after = [n + int((sources == i).sum()) for i, n in enumerate(made.counts(start))]
    assert after == made.counts(start + length)
    assert all(cap is None or n <= cap for n, cap in zip(after, caps, strict=True))


def test_rank_is_the_number_of_samples_before() -> None:
    made = Interleave([Stage(0, (5, 3, 2)), Stage(700, (0, 1, 9)), Stage(1500, (1, 1, 1))], [None, 900, None])
    sources, ranks = made.locate(np.arange(5000))
    for source in range(3):
        assert ranks[sources == source].tolist() == list(range(int((sources == source).sum())))


@pytest.mark.parametrize("sources", [3, 9, 30])
@pytest.mark.parametrize("length", [64, 1000])
def test_errors_do_not_add_up_over_hundreds_of_stages(sources: int, length: int) -> None:
    rng = np.random.default_rng(sources * length)
    count = 400 if length == 64 else 60
    walk = np.exp(np.cumsum(0.15 * rng.standard_normal((count, sources)), axis=0))
    stages = [Stage(i * length, integer_weights(row.tolist())) for i, row in enumerate(walk)]
    made = Interleave(stages, [None] * sources)
    samples = count * length
    apart = np.abs(realised(made, samples) - targets_of(stages, samples, sources)).max(axis=1)
    assert apart.max() < 2
    assert apart[-samples // 10 :].max() < apart[: samples // 2].max() + 0.5, "the end is no worse than the beginning"
    found = made.targets(samples)
    assert np.allclose(found, targets_of(stages, samples, sources)[-1], atol=1e-3)


def test_a_source_rests_and_comes_back() -> None:
    made = Interleave([Stage(0, (1, 1)), Stage(101, (1, 0)), Stage(301, (1, 1))], [None, None])
    counts = realised(made, 501)
    assert counts[100].sum() == 101
    assert counts[300, 1] == counts[100, 1]
    assert abs(counts[500, 1] - (50.5 + 100)) <= 1


def test_caps_hold_exactly_and_weights_flow_in_proportion() -> None:
    made = Interleave([Stage(0, (50, 30, 20))], [1000, None, 900])
    counts = realised(made, 6000)
    assert counts[-1].tolist() == [1000, 6000 - 1900, 900]
    ends = made.exhausted_before(6000)
    assert set(ends) == {0, 2}
    assert abs(ends[0] - 2000) <= 2, "half of the samples until then"
    left = 900 - counts[ends[0] - 1, 2]
    assert abs((ends[2] - ends[0]) - left * 50 / 20) <= 5, "30 : 20 between the two that are left"
    assert counts[ends[0] - 1, 0] == 1000
    assert counts[ends[0] - 2, 0] == 999
    assert made.weights_at(ends[0]) == (0, 30, 20)
    assert made.exhausted_before(ends[0] - 1) == {}


def test_nothing_left_is_said_with_its_index() -> None:
    with pytest.raises(OverflowError) as stop:
        Interleave([Stage(0, (1, 1, 0))], [10, 20, None]).counts(100)
    assert stop.value.args == (30,)


def test_extended_keeps_what_was_and_adds_a_stage() -> None:
    made = order([5, 3, 2], [None, 4000, None])
    longer = made.extended(Stage(640, (1, 1, 8))).extended(Stage(6400, (8, 1, 1)))
    declared = Interleave([Stage(0, (5, 3, 2)), Stage(640, (1, 1, 8)), Stage(6400, (8, 1, 1))], [None, 4000, None])
    for index in (100, 640, 5000, 6400, 20_000):
        assert longer.counts(index) == declared.counts(index)
    assert np.array_equal(made.locate(np.arange(640)), longer.locate(np.arange(640)))
    assert made.counts(5000) != longer.counts(5000), "the shorter one is as it was"


def test_integer_weights() -> None:
    assert integer_weights([0.5, 0.3, 0.2]) == (5, 3, 2)
    assert integer_weights([0.7, 0.2, 0.1]) == (7, 2, 1)
    assert integer_weights([2, 0, 4]) == (1, 0, 2)
    assert integer_weights([0.38, 0.28, 0.26, 0.08]) == (19, 14, 13, 4)
    tiny = integer_weights([1 - 1e-13, 1e-13])
    assert 0 < tiny[1] / sum(tiny) < 1e-8, "a share that rounds to nothing is drawn next to never, not half of the time"
    raw = [1 / 3**0.5, 1 / 7**0.5, 1 / 11**0.5]
    found = np.array(integer_weights(raw))
    assert np.allclose(found / found.sum(), np.array(raw) / sum(raw), rtol=0, atol=2e-9)


def test_two_samples_at_a_million_million() -> None:
    found = np.array(order([0.6, 0.37, 0.03]).counts(10**12))
    assert np.abs(found - np.array([0.6, 0.37, 0.03]) * 10**12).max() < 2
