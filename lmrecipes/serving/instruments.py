"""What the service measures of itself, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Instruments:
    """Counters and histograms of one service, in a registry of their own. waiting: rows in the queue, asked for."""

    def __init__(self, run: str, kind: str, waiting: Callable[[], float]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("lmrecipes_requests", "Requests answered", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "lmrecipes_request_seconds", "From a request's head to the end of its answer", ["path"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batches = Histogram("lmrecipes_batch_rows", "Rows computed at once", buckets=ROWS, registry=registry)
        self.model = Histogram(
            "lmrecipes_batch_seconds", "Reading and computing one batch", buckets=SECONDS, registry=registry
        )
        self.rows = Counter("lmrecipes_rows", "Rows predicted", registry=registry)
        self.rejected = Counter("lmrecipes_rejected", "Requests refused to protect the service", ["reason"],
                                registry=registry)  # fmt: skip
        self.open = Gauge("lmrecipes_requests_open", "Requests being read or answered", registry=registry)
        queue = Gauge("lmrecipes_queue_rows", "Rows that wait for the model", registry=registry)
        queue.set_function(waiting)
        about = Gauge("lmrecipes_info", "What is served: always 1", ["run", "kind"], registry=registry)
        about.labels(run, kind).set(1)

    def batch(self, rows: int, seconds: float) -> None:
        """One batch has been computed."""
        self.batches.observe(rows)
        self.model.observe(seconds)
        self.rows.inc(rows)

    def text(self) -> bytes:
        """Everything, for GET /metrics."""
        return generate_latest(self.registry)


class Measured:
    """ASGI middleware that counts and times requests by path and status. paths: others count as `other`."""

    def __init__(self, app: ASGIApp, instruments: Instruments, paths: frozenset[str]) -> None:
        self.app, self.instruments, self.paths = app, instruments, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        began, status = time.monotonic(), "none"  # none: the client went away before there was an answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self.instruments.requests.labels(path, status).inc()
            self.instruments.seconds.labels(path).observe(time.monotonic() - began)
