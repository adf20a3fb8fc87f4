"""A finished run as an HTTP service: POST /predict, and what those who run it ask (/health, /ready, /metrics)."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lmrecipes.files import json_text
from lmrecipes.inference.row_predictor import RowPredictor, RowsRefused, answers
from lmrecipes.problems import InputError, Problem, did_you_mean
from lmrecipes.serving.batching import ModelQueue, QueueClosed, QueueFull
from lmrecipes.serving.documents import ABOUT, PREDICT
from lmrecipes.serving.instruments import Instruments, Measured
from lmrecipes.serving.options import ServeOptions
from lmrecipes.serving.questions import Question, Questions
from lmrecipes.serving.refusals import Refused, refused

log = logging.getLogger(__name__)

PATHS = ("/", "/predict", "/health", "/ready", "/metrics", "/docs", "/openapi.json")
SWITCH_SECONDS = 0.0005
"""The event loop and the model's thread take turns this often. Python's 5 ms would be most of a short answer."""
BACKLOG = 1024
"""Connections that the system keeps while the service is busy."""


def serve(
    predictor: RowPredictor, options: ServeOptions, name: str = "model", listener: socket.socket | None = None
) -> int:
    """Serve until SIGTERM or SIGINT, finish what is under way, and return exit code 0. Called in the main thread.

    name: of the run, for people. listener: a socket to listen on in place of the options' address. Raises InputError
    where the address cannot be had.
    """
    options.check()
    listener = listener or _listen(options)
    app = make_app(predictor, options, name)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="on",
        timeout_graceful_shutdown=max(1, round(options.drain_seconds)), timeout_keep_alive=60,
    )  # fmt: skip
    host, port = listener.getsockname()[:2]
    log.info("%s (%s) at http://%s:%d, documentation at /docs; Ctrl-C ends it", name, predictor.kind, host, port)
    sys.setswitchinterval(SWITCH_SECONDS)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn, once it has drained, raises again what it has caught
        signal.signal(number, lambda number, frame: None)
    uvicorn.Server(config).run([listener])
    return 0


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)
    except OSError as error:
        where, what = f"--host {options.host} --port {options.port}", error.strerror or str(error)
        raise InputError(Problem(where, what, "choose another port; 0 takes any that is free", "serve-port")) from None


def make_app(predictor: RowPredictor, options: ServeOptions, name: str) -> FastAPI:
    """The ASGI application. Its start-up runs the model once, so that the first request is not the slow one."""
    service = Service(predictor, options, name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.warm_up())
        yield
        warming.cancel()
        await asyncio.to_thread(service.close)

    app = FastAPI(title=f"lmrecipes: {name}", description=ABOUT, lifespan=lifespan, redoc_url=None)
    app.add_middleware(Measured, instruments=service.instruments, paths=frozenset(PATHS))
    app.add_exception_handler(Refused, _refusal)
    app.add_exception_handler(HTTPException, _no_such_page)
    app.get("/", summary="What is served, and its limits")(service.about)
    app.post("/predict", summary="Answers for rows", **PREDICT)(service.predict)
    app.get("/health", summary="200: the process is alive")(service.health)
    app.get("/ready", summary="200: the model is loaded and warm; else 503")(service.ready)
    app.get("/metrics", summary="Prometheus text format")(service.metrics)
    return app


class Service:
    """One model, the queue before it, and the answers to requests."""

    def __init__(self, predictor: RowPredictor, options: ServeOptions, name: str) -> None:
        self.predictor, self.options, self.name = predictor, options, name
        self.questions = Questions(predictor, options.max_rows)
        self.instruments = Instruments(name, predictor.kind, lambda: self.queue.waiting)
        self.queue = ModelQueue(
            predictor.predict, self.questions.columns_of, options.max_batch, options.max_wait_ms / 1000,
            options.max_queue, self.instruments.batch,
        )  # fmt: skip
        self.open, self.warm = 0, False

    async def warm_up(self) -> None:
        """Ask every task once. Images, clips and ids are not made up: of tasks that read nothing else, the first answer
        may take longer. Where the model fails, the service stays unready."""
        for task, columns in self.questions.columns.items():
            row = {column: "warm" for role, column in columns.items() if role in ("text", "text_pair")}
            try:
                await asyncio.wrap_future(self.queue.submit([row], (task,)))
            except InputError:
                log.info("%s cannot be warmed up by a text", task)
            except Exception:
                log.exception("the model fails on %s, so that the service is not ready", task)
                return
        self.warm = True

    def close(self) -> None:
        """Take no more rows, and finish those that wait."""
        self.warm = False
        self.queue.close()

    async def predict(self, request: Request) -> Response:
        """POST /predict."""
        if self.open >= self.options.max_requests:
            raise self._busy(429, "requests", f"{self.open} requests are being answered, as many as may")
        self.open += 1
        self.instruments.open.set(self.open)
        try:
            question = self.questions.read(await self._body(request))
            return _json(await self._answer(question))
        finally:
            self.open -= 1
            self.instruments.open.set(self.open)

    async def _body(self, request: Request) -> bytes:
        """The body, counted while it is read: a client need not say how long it is, nor tell the truth."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            what = f"must be application/json, found {kind[:80]!r}" if kind else "is missing"
            raise refused(415, "Content-Type", what, "send JSON, with Content-Type: application/json")
        most = round(self.options.max_body_mb * 1e6)
        try:
            async with asyncio.timeout(self.options.timeout_seconds):
                return await _read(request, most)
        except TimeoutError:
            what = f"has not come within {self.options.timeout_seconds:g} s"
            raise refused(408, "body", what, "send it faster, or in parts") from None

    async def _answer(self, question: Question) -> dict[str, Any]:
        try:
            future = asyncio.wrap_future(self.queue.submit(question.rows, question.tasks))
            values = await asyncio.wait_for(future, self.options.timeout_seconds)
        except QueueFull:
            raise self._busy(503, "queue", f"{self.queue.waiting} rows wait for the model already") from None
        except QueueClosed:
            raise self._busy(503, "closing", "the service is shutting down") from None
        except TimeoutError:
            what = f"no answer within {self.options.timeout_seconds:g} s, the service is overloaded"
            self.instruments.rejected.labels("timeout").inc()
            raise refused(504, "server", what, "try again later, with fewer rows", 1) from None
        except RowsRefused as bad:
            fix = "repair the row, or leave it out"
            raise Refused(422, [Problem(f"row {number}", what, fix) for number, what in bad.rows.items()]) from None
        except Exception:
            log.exception("the model failed on a request")
            raise refused(500, "server", "the model failed on these rows", "see the service's log") from None
        specs, every = self.predictor.specs, question.probabilities
        return {"predictions": {task: answers(specs[task], values[task], every) for task in question.tasks}}

    def _busy(self, status: int, reason: str, what: str) -> Refused:
        self.instruments.rejected.labels(reason).inc()
        return refused(status, "server", what, "send it again after a moment", 1)

    async def about(self) -> Response:
        """GET /."""
        tasks = {
            task: {"kind": spec.kind, "columns": self.questions.columns[task], "labels": list(spec.labels)}
            for task, spec in self.predictor.specs.items()
        }
        limits = {key: getattr(self.options, key) for key in
                  ("max_batch", "max_rows", "max_body_mb", "max_requests", "max_queue", "timeout_seconds")}  # fmt: skip
        facts = {"run": self.name, "model": self.predictor.kind, "weights_mb": self.predictor.bytes / 1e6}
        return _json({**facts, "tasks": tasks, "limits": limits, "documentation": "/docs"})

    async def health(self) -> Response:
        """GET /health."""
        return _json({"status": "alive"})

    async def ready(self) -> Response:
        """GET /ready."""
        if not self.warm:
            raise refused(503, "server", "the model is not ready", "ask again after a moment", 1)
        return _json({"status": "ready"})

    async def metrics(self) -> Response:
        """GET /metrics."""
        return Response(self.instruments.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _read(request: Request, most: int) -> bytes:
    """At most so many bytes. Raises Refused as soon as there are more."""
    too_large = partial(refused, 413, "body", fix="send fewer rows at a time, or smaller files")
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > most:
        raise too_large(what=f"at most {most:,} bytes, found {int(said):,}")
    parts, size = [], 0
    try:
        async for part in request.stream():
            if (size := size + len(part)) > most:
                raise too_large(what=f"at most {most:,} bytes, and it has more")
            parts.append(part)
    except ClientDisconnect:
        raise refused(400, "body", "the connection was closed before its end", "send all of it") from None
    return b"".join(parts)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    # What is left of a body that was not read would be taken for the next request.
    unread = {"connection": "close"} if error.status in (408, 413, 415, 429) else {}
    return _json(error.body, error.status, {**error.headers, **unread})


async def _no_such_page(request: Request, error: Exception) -> Response:
    """404 and 405 in the same words as all other mistakes."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        found = refused(405, path[:80], f"{request.method} is not for this address", f"use {allowed}")
    else:
        what = f"no such address.{did_you_mean(path[:80], PATHS)}"
        found = refused(error.status_code, path[:80], what, "POST /predict; GET /docs explains all")
    return _json(found.body, found.status, dict(error.headers or {}))


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json_text(content), status, headers, media_type="application/json")
