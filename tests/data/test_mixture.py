"""The global stream: the same for every way of asking, no pattern in its slots, rows once an epoch."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.data.interleave import Stage
from lmrecipes.data.mixture import Mixture, Supply


def mixture(raw: list[float], rows: list[int] | None = None, seed: int = 0, window: int = 1) -> Mixture:
    names = [f"task{i}" for i in range(len(raw))]
    return Mixture.fixed(names, rows or [100 + 7 * i for i in range(len(raw))], raw, seed, window)


def by_tokens(window: int = 1, cap: int | None = None) -> Mixture:
    """Two tasks, lengths 1..10 and 1..90, equal shares of the tokens."""
    lengths = [np.arange(200) % 10 + 1, np.arange(90) + 1]
    supplies = [Supply(len(c), int(c.sum()), cap if i else None, c.__getitem__) for i, c in enumerate(lengths)]
    return Mixture(["short", "long"], supplies, [Stage(0, (1, 1))], 3, window)


@pytest.mark.parametrize("window", [1, 16, 100])
@pytest.mark.parametrize("made", [lambda w: mixture([5, 3, 2], [100, 37, 5000], window=w), by_tokens])
def test_stretches_pieces_and_single_indices_agree(made, window: int) -> None:  # type: ignore[no-untyped-def]
    mixed = made(window)
    whole = mixed.at(np.arange(30_000))
    for start, length in [(0, 1), (5, 300), (4095, 2), (12_345, 4096), (29_000, 999), (0, 29_999)]:
        tasks, rows = made(window).at(np.arange(start, start + length))
        assert np.array_equal(tasks, whole[0][start : start + length])
        assert np.array_equal(rows, whole[1][start : start + length])
    scattered = np.array([29_999, 0, 17, 17, 12_000, 5_000])
    for far in (0, 10**9):
        tasks, rows = mixed.at(np.append(scattered, 10**9 + 3)[: len(scattered) + (far > 0)])
        assert np.array_equal(tasks[:6], whole[0][scattered])
        assert np.array_equal(rows[:6], whole[1][scattered])
    backwards = mixed.at(np.arange(500)[::-1])
    assert np.array_equal(backwards[1][::-1], whole[1][:500])


@settings(deadline=None, max_examples=40)
@given(start=st.integers(0, 10**12), length=st.integers(1, 400), window=st.integers(1, 200), many=st.booleans())
def test_any_index_can_be_sought(start: int, length: int, window: int, many: bool) -> None:
    mixed = mixture([1.0] * 30 if many else [0.6, 0.37, 0.03], window=window)
    tasks, rows = mixed.at(np.arange(start, start + length))
    alone = [mixture([1.0] * 30 if many else [0.6, 0.37, 0.03], window=window).at(np.array([start + length - 1]))]
    assert (tasks[-1], rows[-1]) == (alone[0][0][0], alone[0][1][0])
    assert all(0 <= row < mixed.rows[task] for task, row in zip(tasks, rows, strict=True))


@pytest.mark.parametrize("window", [64, 96])
def test_a_window_holds_what_its_place_in_the_order_says(window: int) -> None:
    plain, permuted = mixture([0.5, 0.3, 0.2]), mixture([0.5, 0.3, 0.2], window=window)
    a, b = plain.at(np.arange(window * 50)), permuted.at(np.arange(window * 50))
    pairs = [np.stack(part).reshape(2, 50, window) for part in (a, b)]
    for number in range(50):
        assert sorted(map(tuple, pairs[0][:, number].T)) == sorted(map(tuple, pairs[1][:, number].T))
    counts = [list(permuted.counts(window * step).values()) for step in range(51)]
    assert np.abs(np.array(counts) - np.arange(51)[:, None] * window * np.array([0.5, 0.3, 0.2])).max() < 1


def test_no_rank_and_no_slot_sees_a_pattern() -> None:
    """Weights .5/.3/.2 without permuted slots give rank 0 of 2 nothing but the first task."""
    plain, _ = mixture([0.5, 0.3, 0.2]).at(np.arange(10_000))
    assert (plain[::2] == 0).mean() > 0.99
    tasks, _ = mixture([0.5, 0.3, 0.2], window=64).at(np.arange(64 * 2000))
    for world in (2, 4, 8):
        for rank in range(world):
            share = np.bincount(tasks[rank::world], minlength=3) / len(tasks[rank::world])
            assert np.abs(share - [0.5, 0.3, 0.2]).max() < 5 * 0.5 / np.sqrt(len(tasks) / world)
    by_slot = (tasks.reshape(2000, 64) == 0).mean(axis=0)
    assert np.abs(by_slot - 0.5).max() < 5 * 0.5 / np.sqrt(2000), "every slot is as likely"


def test_slots_of_windows_are_unrelated_and_uniform() -> None:
    mixed = mixture([1], [10**6], window=16)
    slots = mixed._permuted(np.arange(20_000)) - np.arange(20_000)[:, None] * 16
    assert (np.sort(slots, axis=1) == np.arange(16)).all()
    table = np.stack([np.bincount(slots[:, place], minlength=16) for place in range(16)])
    assert ((table - 1250) ** 2 / 1250).sum() < 225 + 6 * np.sqrt(450), "chi-square, 225 degrees of freedom"
    assert abs(np.corrcoef(slots[:-1, 0], slots[1:, 0])[0, 1]) < 0.04


def test_each_row_once_an_epoch_in_a_new_order() -> None:
    mixed = mixture([3, 1], [50, 31])
    tasks, rows = mixed.at(np.arange(1000))
    for task, n in enumerate(mixed.rows):
        mine = rows[tasks == task]
        epochs = [mine[i : i + n].tolist() for i in range(0, len(mine) - n + 1, n)]
        assert len(epochs) > 3
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_a_task_of_one_row() -> None:
    tasks, rows = mixture([1, 1], [1, 5]).at(np.arange(20))
    assert set(rows[tasks == 0]) == {0}
    assert set(rows[tasks == 1]) == set(range(5))


def test_seed_changes_rows_and_slots_but_not_how_often() -> None:
    first, second = (mixture([2, 1], seed=seed, window=30).at(np.arange(300)) for seed in (0, 1))
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(first[1], second[1])
    assert (first[0] == 1).reshape(10, 30).sum(axis=1).tolist() == (second[0] == 1).reshape(10, 30).sum(axis=1).tolist()
    again = mixture([2, 1], seed=0, window=30).at(np.arange(300))
    assert np.array_equal(first[1], again[1])


def test_tasks_of_the_same_size_have_their_own_orders() -> None:
    tasks, rows = mixture([1, 1], [200, 200]).at(np.arange(400))
    assert not np.array_equal(rows[tasks == 0], rows[tasks == 1])


@pytest.mark.parametrize("made", [lambda: mixture([5, 3, 2], window=64), lambda: by_tokens(64)])
def test_a_stage_changes_what_comes_after_it_only(made) -> None:  # type: ignore[no-untyped-def]
    mixed = made()
    before = mixed.at(np.arange(20_000))
    weights = (1, 9, 0)[: len(mixed.tasks)]
    longer = mixed.with_stage(6400, weights)
    after = longer.at(np.arange(20_000))
    assert np.array_equal(before[0][:6400], after[0][:6400])
    assert np.array_equal(before[1][:6400], after[1][:6400])
    assert not np.array_equal(before[0][6400:], after[0][6400:])
    assert np.array_equal(mixed.at(np.arange(20_000))[0], before[0])
    assert longer.shares_at(6399) == mixed.shares_at(0)
    assert longer.shares_at(6400)[mixed.tasks[1]] == 0.9
    assert longer.plan == (*mixed.plan, Stage(6400, weights))
    for start in (6400, 6401, 0):
        with pytest.raises(ValueError, match="stage"):
            longer.with_stage(start, weights)


def test_caps_and_targets_by_name() -> None:
    mixed = by_tokens(cap=180)
    assert mixed.counts(50_000)["long"] == 180
    ends = mixed.exhausted_before(50_000)
    assert list(ends) == ["long"]
    assert mixed.shares_at(ends["long"] + 8192) == {"short": 1.0, "long": 0.0}
    assert mixed.exhausted_before(100) == {}
    targets = mixture([5, 3, 2]).targets(1000)
    assert targets == {"task0": 500.0, "task1": 300.0, "task2": 200.0}


@pytest.mark.parametrize("tokens", [False, True])
def test_the_last_sample_there_is(tokens: bool) -> None:
    """A run may draw exactly what its caps allow: what lies beyond is not asked for."""
    cost = (lambda rows: rows * 0 + 3) if tokens else None
    supplies = [Supply(100, 300 if tokens else 100, cap, cost) for cap in (200, 120)]
    mixed = Mixture(["a", "b"], supplies, [Stage(0, (3, 1))], 0, 64)
    tasks, _ = mixed.at(np.arange(320))
    assert np.bincount(tasks).tolist() == [200, 120]
    assert mixed.counts(320) == {"a": 200, "b": 120}
    for beyond in (320, 10**6, 10**12):
        with pytest.raises(OverflowError):
            mixed.at(np.array([0, beyond]))
        with pytest.raises(OverflowError, match="320"):
            mixed.counts(beyond + 1)


def test_many_threads_see_one_stream() -> None:
    for made in (lambda: mixture([5, 3, 2], window=32), lambda: by_tokens(32)):
        alone = made().at(np.arange(0, 32_000))
        shared = made()
        pieces = [np.arange(i * 320, i * 320 + 320) for i in reversed(range(100))]
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(shared.at, pieces))
        assert np.array_equal(np.concatenate([part[1] for part in reversed(parts)]), alone[1])


def test_no_index() -> None:
    tasks, rows = mixture([1, 2]).at(np.arange(0))
    assert len(tasks) == len(rows) == 0


def test_fast_enough_for_every_step() -> None:
    """30 M samples/s were measured; 50 times less still passes."""
    mixed = mixture([0.5, 0.3, 0.2], [10**4, 10**5, 10**6], window=64)
    began = time.process_time()
    mixed.at(np.arange(200_000))
    assert time.process_time() - began < 0.4
