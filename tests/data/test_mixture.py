"""The global stream: shares at every prefix, rows once an epoch, the same for every way of asking."""

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmrecipes.data.mixture import Mixture, _integers, build_mixture, example_weights
from lmrecipes.recipe import Recipe

weights = st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=40)


def mixture(raw: list[float], rows: list[int] | None = None, seed: int = 0) -> Mixture:
    shares = tuple(w / sum(raw) for w in raw)
    names = tuple(f"task{i}" for i in range(len(raw)))
    return Mixture(names, tuple(rows or [100 + 7 * i for i in range(len(raw))]), shares, seed)


@settings(deadline=None)
@given(raw=weights, start=st.integers(0, 10**7))
@example(raw=[0.5, 0.3, 0.2], start=0)
@example(raw=[1.0] * 40, start=0)
@example(raw=[2.0**-i for i in range(13)], start=10**6)
def test_counts_are_within_two_of_the_share_at_every_prefix(raw: list[float], start: int) -> None:
    mixed = mixture(raw)
    before = np.array(list(mixed.counts(start).values()))
    tasks, _ = mixed.at(np.arange(start, start + 2000))
    prefixes = before + np.cumsum(tasks[:, None] == np.arange(len(raw)), axis=0)
    targets = np.arange(start + 1, start + 2001)[:, None] * np.array(mixed.shares)
    assert np.abs(prefixes - targets).max() < 2
    assert prefixes[-1].tolist() == list(mixed.counts(start + 2000).values()), "`counts` agrees with `at`"


@settings(deadline=None, max_examples=30)
@given(raw=weights, indices=st.lists(st.integers(0, 10**12), min_size=1, max_size=50))
def test_any_index_can_be_sought(raw: list[float], indices: list[int]) -> None:
    mixed = mixture(raw)
    together = mixed.at(np.array(indices))
    alone = [mixed.at(np.array([k])) for k in indices]
    assert together[0].tolist() == [int(tasks[0]) for tasks, _ in alone]
    assert together[1].tolist() == [int(rows[0]) for _, rows in alone]
    for index, task, row in zip(indices, *together, strict=True):
        before, after = mixed.counts(index), mixed.counts(index + 1)
        drawn = [name for name in mixed.tasks if after[name] > before[name]]
        assert drawn == [mixed.tasks[task]]
        assert sum(before.values()) == index
        assert 0 <= row < mixed.rows[task]


def test_two_samples_at_a_million_million() -> None:
    shares = np.array([0.6, 0.37, 0.03])
    found = np.array(list(mixture(shares.tolist()).counts(10**12).values()))
    assert np.abs(found - shares * 10**12).max() < 2


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


def test_seed_changes_rows_and_not_tasks() -> None:
    first, second = (mixture([2, 1], seed=seed).at(np.arange(300)) for seed in (0, 1))
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[1], second[1])
    again = mixture([2, 1], seed=0).at(np.arange(300))
    assert np.array_equal(first[1], again[1])


def test_tasks_of_the_same_size_have_their_own_orders() -> None:
    tasks, rows = mixture([1, 1], [200, 200]).at(np.arange(400))
    assert not np.array_equal(rows[tasks == 0], rows[tasks == 1])


def test_integer_weights() -> None:
    assert _integers([0.5, 0.3, 0.2]) == [5, 3, 2]
    assert _integers([0.7, 0.2, 0.1]) == [7, 2, 1]
    tiny = _integers([1 - 1e-13, 1e-13])
    assert 0 < tiny[1] / sum(tiny) < 1e-8, "a share that rounds to nothing is drawn next to never, not half of the time"
    primes = [9973, 9967, 9949, 9941, 9931, 9929, 9923]  # a common denominator above 2**63
    raw = [*(1 / p for p in primes), 1 - sum(1 / p for p in primes)]
    found = _integers(raw)
    assert np.allclose(np.array(found) / sum(found), raw, rtol=0, atol=2e-9)


def test_example_weights() -> None:
    rows = {"a": 100, "b": 10_000}
    assert example_weights({"a": 3, "b": 1}, rows, None) == {"a": 0.75, "b": 0.25}
    assert example_weights({"a": 1, "b": 1}, rows, 1)["b"] == pytest.approx(100 / 101)
    assert example_weights({"a": 1, "b": 1}, rows, 2)["b"] == pytest.approx(10 / 11)
    assert example_weights({"a": 2, "b": 1}, rows, 2)["b"] == pytest.approx(10 / 12)


def test_build_mixture_takes_weights_temperature_and_seed_from_the_recipe() -> None:
    def task(weight: float) -> dict[str, object]:
        return {"kind": "regression", "weight": weight, "source": {"files": "x.jsonl"}}

    recipe = Recipe.model_validate(
        {"name": "r", "tasks": {"a": task(1), "b": task(3)}, "mixture": {"temperature": 1}, "seed": 5}
    )
    mixed = build_mixture(recipe, {"a": 30, "b": 10})
    assert mixed == Mixture(("a", "b"), (30, 10), (0.5, 0.5), 5)
    assert mixed.counts(10) == {"a": 5, "b": 5}


def test_no_index() -> None:
    tasks, rows = mixture([1, 2]).at(np.arange(0))
    assert len(tasks) == len(rows) == 0


def test_fast_enough_for_every_step() -> None:
    """20 M samples/s were measured; 30 times less still passes."""
    mixed = mixture([0.5, 0.3, 0.2], [10**4, 10**5, 10**6])
    began = time.process_time()
    mixed.at(np.arange(200_000))
    assert time.process_time() - began < 0.5
