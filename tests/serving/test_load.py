"""The load generator against a server whose delays are known, and what becomes of its numbers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.recipe import LatencyBudget
from lmrecipes.serving.budgets import Served, judge, largest_rate
from lmrecipes.serving.load import WARM, Load, Measured, arrivals, generate, measure, percentile

QUESTIONS = [{"row": {"text": str(n)}} for n in range(3)]


@contextmanager
def answering(delay: Callable[[int], float], status: Callable[[int], int] = lambda number: 200) -> Iterator[int]:
    """A server that answers the n-th request after `delay(n)` seconds, one request at a time; its port."""
    turn, numbers = threading.Lock(), iter(range(10**6))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            with turn:
                number = next(numbers)
                time.sleep(max(0.0, delay(number)))
            self.send_response(status(number))
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 256

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


def test_one_client_waits_for_each_answer() -> None:
    with answering(lambda number: 0.02) as port:
        found = generate(Load("127.0.0.1", port, 0.5), QUESTIONS)
    assert found.errors == {} and not found.overloaded
    assert 20 <= found.p50 <= found.p95 <= found.p99 <= found.longest
    assert 0 < found.requests <= 25 and found.rate <= 50


def test_a_stall_is_in_the_latency_of_all_requests_that_were_due_meanwhile() -> None:
    """A closed loop would see one slow request in 200, and its p95 none."""
    with answering(lambda number: 0.4 if number == WARM + 20 else 0.0) as port:
        found = generate(Load("127.0.0.1", port, 1.0, rate=200.0), QUESTIONS)
    assert found.errors == {}
    assert found.p95 > 150
    assert found.longest > 350


def test_a_service_that_cannot_follow_is_given_up() -> None:
    with answering(lambda number: 0.02) as port:
        began = time.monotonic()
        found = generate(Load("127.0.0.1", port, 30.0, rate=400.0, late_ms=200.0), QUESTIONS)
    assert found.overloaded and not found.keeps(math.inf)
    assert time.monotonic() - began < 15


def test_errors_are_counted_and_are_no_latencies() -> None:
    with answering(lambda number: 0.0, lambda number: 503 if number % 2 else 200) as port:
        found = measure(Load("127.0.0.1", port, 0.3, rate=100.0), QUESTIONS)  # in a process of its own
    half = found.requests / 2
    assert found.errors.keys() == {"503"} and abs(found.errors["503"] - half) <= 1
    assert not found.keeps(math.inf)
    with answering(lambda number: 0.0) as port:
        pass
    gone = generate(Load("127.0.0.1", port, 0.05), QUESTIONS)
    assert set(gone.errors) == {"ConnectionRefusedError"} and math.isnan(gone.p99)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_the_smallest_value_that_this_share_does_not_exceed(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert sum(value <= found for value in ordered) >= share * len(ordered) - 1e-9
    assert sum(value < found for value in ordered) < share * len(ordered) + 1e-9


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(500.0, 20.0, 3)
    waits = np.diff(times)
    assert times[0] > 0 and times[-1] < 20 and (waits >= 0).all()
    assert len(times) == pytest.approx(10_000, rel=0.04)
    assert waits.mean() == pytest.approx(1 / 500, rel=0.04) and waits.std() == pytest.approx(1 / 500, rel=0.06)
    assert abs(np.corrcoef(waits[:-1], waits[1:])[0, 1]) < 0.04
    np.testing.assert_array_equal(times, arrivals(500.0, 20.0, 3))
    assert len(arrivals(1.0, 0.001, 0)) == 1
    assert len(times) != len(arrivals(500.0, 20.0, 4)) or (times != arrivals(500.0, 20.0, 4)).any()


def of(p99: float, rate: float = 100.0, **changes: object) -> Measured:
    facts = {"requests": 100, "seconds": 1.0, "rate": rate, "p50": p99 / 2, "p95": p99, "longest": p99, "errors": {}}
    return Measured(**{**facts, "p99": p99, "overloaded": False, **changes})  # type: ignore[arg-type]


@given(st.floats(3, 3000), st.floats(3, 3000))
def test_the_search_encloses_the_largest_rate(capacity: float, start: float) -> None:
    tried: list[float] = []

    def at(rate: float) -> Measured:
        tried.append(rate)
        return of(10.0 if rate <= capacity else 90.0, rate)

    found = largest_rate(at, start, 50.0)
    assert len(tried) <= 8
    assert found is None or found.rate <= capacity
    if 1 / 4 < capacity / start < 4:
        assert found is not None and found.rate > capacity / 1.2


def test_a_service_that_keeps_no_rate() -> None:
    assert largest_rate(lambda rate: of(90.0), 100.0, 50.0) is None


class Task:
    metric, bound = "accuracy", 0.004


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, []),
        ({"closed": of(20.1)}, [0]),
        ({"closed": of(5.0, errors={"500": 1})}, [0]),
        ({"budgets": {"mine": of(101.0)}}, [1]),
        ({"budgets": {"mine": of(50.0, overloaded=True)}}, [1]),
        ({"tasks": {"a": type("Worse", (Task,), {"bound": 0.0051})(), "b": Task()}}, [2]),
        ({"tasks": {"a": type("Unknown", (Task,), {"bound": math.nan})()}}, [2]),
    ],
)
def test_every_condition_of_a_budget_counts(changes: dict[str, object], broken: list[int]) -> None:
    budget = LatencyBudget(p99_ms=20, requests_per_second=80, loaded_p99_ms=100, margin=0.005)
    facts = {"kind": "torch", "megabytes": 1.0, "closed": of(20.0), "most": None, "budgets": {"mine": of(100.0)}}
    served = Served(**{**facts, "tasks": {"a": Task()}, **changes})  # type: ignore[arg-type]
    assert [at for at, check in enumerate(judge("mine", budget, served)) if not check.met] == broken
