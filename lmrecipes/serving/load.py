"""A load generator: real requests over real connections, one after the other or as they come, in its own process.

It speaks through `http.client` on connections that are kept: a request costs it 0.05 ms of CPU time where httpx takes
0.35 ms, and where client and server share two cores, that time is missing from the server.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.problems import RunFailed

CONNECTIONS = 64
"""Most requests on their way at once; a request that finds them all taken waits, and that wait is in its latency."""
WARM = 20
"""Requests before the clock starts."""


@dataclass(frozen=True)
class Load:
    """What is asked of a service. rate: requests in a second on average, at random times (a Poisson process); None: one
    client that asks again as soon as it has its answer. late_ms: give up where a request is sent so much too late."""

    host: str
    port: int
    seconds: float
    rate: float | None = None
    late_ms: float = math.inf
    timeout: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """What came of it. latencies in milliseconds, of answers with status 200; errors: how many of each other outcome.
    rate: answers in a second. overloaded: it was given up, since the service could not follow."""

    requests: int
    seconds: float
    rate: float
    p50: float
    p95: float
    p99: float
    longest: float
    errors: dict[str, int]
    overloaded: bool

    def keeps(self, p99_ms: float) -> bool:
        """Whether all were answered, 99 of 100 of them within so many milliseconds."""
        return not self.overloaded and not self.errors and self.p99 <= p99_ms


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that this share of all do not exceed (nearest rank); NaN of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Seconds from the start at which requests are due: a Poisson process, the same for the same numbers. Where it has
    none in this time, its first one."""
    count = math.ceil(rate * seconds + 6 * math.sqrt(rate * seconds) + 10)
    waits = -np.log1p(-hash_uniform(hash_key(seed, "arrivals"), np.arange(count))) / rate
    times = np.cumsum(waits)
    return times[: max(1, int((times < seconds).sum()))]


def measure(load: Load, questions: Sequence[Mapping[str, Any]]) -> Measured:
    """Run a load in a process of its own. questions: bodies of the requests, in turn. Raises RunFailed."""
    asked = json.dumps({"load": asdict(load), "questions": list(questions)})
    command = [sys.executable, "-m", "lmrecipes.serving.load"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailed(f"the load generator failed: {done.stderr.strip()[-500:]}")
    return Measured(**json.loads(done.stdout))


def generate(load: Load, questions: Sequence[Mapping[str, Any]]) -> Measured:
    """Run a load here."""
    bodies = [json.dumps(question).encode() for question in questions]
    client = _Client(load)
    for at in range(WARM):
        client.ask(bodies[at % len(bodies)])
    if load.rate is None:
        return _closed(load, bodies, client)
    return _open(load, bodies, arrivals(load.rate, load.seconds, load.seed))


class _Client:
    """One kept connection."""

    def __init__(self, load: Load) -> None:
        self.connection = HTTPConnection(load.host, load.port, timeout=load.timeout)

    def ask(self, body: bytes) -> str:
        """Send one request and read its answer; "200", or what went wrong."""
        try:
            self.connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            answer = self.connection.getresponse()
            answer.read()
            return str(answer.status)
        except (OSError, HTTPException) as error:
            self.connection.close()
            return type(error).__name__


def _closed(load: Load, bodies: Sequence[bytes], client: _Client) -> Measured:
    found: list[tuple[str, float]] = []
    began = time.perf_counter()
    while (sent := time.perf_counter()) - began < load.seconds:
        outcome = client.ask(bodies[len(found) % len(bodies)])
        found.append((outcome, time.perf_counter() - sent))
    return _summary(found, time.perf_counter() - began, False)


def _open(load: Load, bodies: Sequence[bytes], due: NDArray[np.float64]) -> Measured:
    """Latency counts from the moment at which a request was due, not from when a connection was free to send it: else
    a service that stalls would be asked less, and look better than it is (coordinated omission)."""
    found: list[tuple[str, float]] = []
    numbers, lock, overloaded = iter(range(len(due))), threading.Lock(), threading.Event()
    began = time.perf_counter() + 0.05

    def work() -> None:
        client = _Client(load)
        while not overloaded.is_set():
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            wait = began + due[number] - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            elif -1000 * wait > load.late_ms:
                overloaded.set()
                return
            outcome = client.ask(bodies[number % len(bodies)])
            found.append((outcome, time.perf_counter() - began - due[number]))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(CONNECTIONS, len(due)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _summary(found, max(time.perf_counter() - began, 1e-9), overloaded.is_set())


def _summary(found: Sequence[tuple[str, float]], seconds: float, overloaded: bool) -> Measured:
    good = sorted(1000 * latency for outcome, latency in found if outcome == "200")
    errors = Counter(outcome for outcome, _ in found if outcome != "200")
    p50, p95, p99, longest = (percentile(good, share) for share in (0.5, 0.95, 0.99, 1.0))
    return Measured(len(found), seconds, len(good) / seconds, p50, p95, p99, longest, dict(errors), overloaded)


if __name__ == "__main__":
    given = json.loads(sys.stdin.read())
    print(json.dumps(asdict(generate(Load(**given["load"]), given["questions"]))))  # noqa: T201 - to who started it
