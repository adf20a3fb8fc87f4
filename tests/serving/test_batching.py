"""The queue before the model: what shares a batch, what stays apart, and who is told of whose mistakes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in import Letters

from lmrecipes.inference.row_predictor import RowsRefused
from lmrecipes.serving.batching import ModelQueue, QueueClosed, QueueFull

TEXT = ("length", "size")


@contextmanager
def queue(letters: Letters, **changes: Any) -> Iterator[ModelQueue]:
    """A queue with 8 rows a batch. Tasks on texts are one group, `picture` another."""
    numbers = {"max_batch": 8, "max_wait": 0.0, "max_queue": 100, "observe": lambda rows, seconds: None, **changes}
    made = ModelQueue(letters.predict, lambda tasks: "picture" in tasks, **numbers)
    try:
        yield made
    finally:
        letters.go.set()
        made.close()


def stopped(letters: Letters, held: ModelQueue) -> Future[Any]:
    """Let the model begin with a first row and wait; what is submitted now waits too."""
    letters.go.clear()
    first = held.submit([{"text": "first"}], TEXT)
    assert letters.busy.wait(5)
    return first


def rows(*texts: str) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


def test_jobs_that_wait_share_a_batch_and_each_gets_its_own_values() -> None:
    letters, seen = Letters(), []
    with queue(letters, observe=lambda count, seconds: seen.append(count)) as held:
        first = stopped(letters, held)
        jobs = [held.submit(rows("a" * n, "b" * (n + 1)), TEXT) for n in (1, 5, 9)]
        assert held.waiting == 6
        letters.go.set()
        assert first.result(5)["length"].tolist() == [5]
        assert [job.result(5)["length"].tolist() for job in jobs] == [[1, 2], [5, 6], [9, 10]]
    assert seen == [1, 6]
    assert held.waiting == 0


def test_a_batch_holds_no_more_rows_than_it_may_and_a_larger_job_is_a_batch_of_its_own() -> None:
    letters = Letters()
    with queue(letters, max_batch=4) as held:
        stopped(letters, held)
        jobs = [held.submit(rows(*["x"] * count), TEXT) for count in (3, 2, 9, 1, 3)]
        letters.go.set()
        assert [len(job.result(5)["length"]) for job in jobs] == [3, 2, 9, 1, 3]
    assert [len(batch) for batch in letters.batches] == [1, 3, 2, 9, 4]


def test_tasks_on_the_same_columns_are_asked_together_and_others_apart() -> None:
    letters = Letters()
    with queue(letters) as held:
        stopped(letters, held)
        one = held.submit(rows("abc"), ("length",))
        other = held.submit([{"photo": b"1234567"}], ("picture",))
        two = held.submit(rows("abcdefgh"), ("size",))
        letters.go.set()
        assert {task: values.tolist() for task, values in one.result(5).items()} == {"length": [3]}
        assert set(two.result(5)) == {"size"} and two.result(5)["size"].argmax() == 1
        assert other.result(5)["picture"].tolist() == [7]
    assert letters.asked == [TEXT, ("length", "size"), ("picture",)]


def test_a_bad_row_fails_its_own_job_only_and_is_numbered_in_it() -> None:
    letters = Letters()
    with queue(letters) as held:
        stopped(letters, held)
        good, bad, also = (held.submit(rows(*texts), TEXT) for texts in (["ab", "c"], ["d", "", "e", ""], ["f"]))
        letters.go.set()
        assert good.result(5)["length"].tolist() == [2, 1]
        assert also.result(5)["length"].tolist() == [1]
        with pytest.raises(RowsRefused) as refusal:
            bad.result(5)
    assert refusal.value.rows == {1: "'text' is empty", 3: "'text' is empty"}
    assert len(letters.batches) == 3  # the good rows are not computed one by one


def test_what_makes_the_model_fail_fails_alone() -> None:
    letters = Letters()
    with queue(letters) as held:
        stopped(letters, held)
        good, bad = held.submit(rows("ab"), TEXT), held.submit(rows("crash"), TEXT)
        letters.go.set()
        assert good.result(5)["length"].tolist() == [2]
        with pytest.raises(RuntimeError, match="no such kernel"):
            bad.result(5)
        assert held.submit(rows("abc"), TEXT).result(5)["length"].tolist() == [3]  # the thread lives


def test_no_more_rows_wait_than_may_and_none_after_the_end() -> None:
    letters = Letters()
    with queue(letters, max_queue=3) as held:
        stopped(letters, held)
        waiting = held.submit(rows("a", "b"), TEXT)
        with pytest.raises(QueueFull):
            held.submit(rows("c", "d"), TEXT)
        held.submit(rows("c"), TEXT)
        letters.go.set()
        waiting.result(5)
    with pytest.raises(QueueClosed):
        held.submit(rows("a"), TEXT)


def test_closing_finishes_what_waits() -> None:
    letters = Letters()
    with queue(letters, max_wait=60.0) as held:
        job = held.submit(rows("abc"), TEXT)
    assert job.result(0)["length"].tolist() == [3]


def test_a_cancelled_job_is_not_computed() -> None:
    letters = Letters()
    with queue(letters) as held:
        stopped(letters, held)
        assert held.submit(rows("gone"), TEXT).cancel()
        letters.go.set()
        held.submit(rows("stays"), TEXT).result(5)
    assert {"text": "gone"} not in [row for batch in letters.batches for row in batch]


def test_a_row_waits_for_others_as_long_as_it_may() -> None:
    letters = Letters()
    with queue(letters, max_wait=60.0, max_batch=2) as held:
        one = held.submit(rows("a"), TEXT)
        time.sleep(0.05)
        assert not one.done()
        two = held.submit(rows("bc"), TEXT)  # the batch is full: it waits no longer
        assert (one.result(5)["length"].tolist(), two.result(5)["length"].tolist()) == ([1], [2])
    assert [len(batch) for batch in letters.batches] == [2]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.text("abé ", max_size=6), min_size=1, max_size=6), min_size=1, max_size=12), st.integers(1, 9)
)
def test_every_job_is_answered_as_if_it_were_alone(jobs: list[list[str]], max_batch: int) -> None:
    letters = Letters()
    with queue(letters, max_batch=max_batch) as held:
        answers = [held.submit(rows(*texts), TEXT) for texts in jobs]
        for texts, answer in zip(jobs, answers, strict=True):
            bad = [at for at, text in enumerate(texts) if not text]
            if bad:
                with pytest.raises(RowsRefused) as refusal:
                    answer.result(10)
                assert list(refusal.value.rows) == bad
            else:
                np.testing.assert_array_equal(answer.result(10)["length"], [len(text) for text in texts])
