"""Dynamic batching: rows of several requests wait for one thread, which computes together what has come in."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lmrecipes.inference.row_predictor import Row, RowsRefused

Values = dict[str, NDArray[np.float32]]
Predict = Callable[[Sequence[Row], Sequence[str]], Mapping[str, NDArray[np.float32]]]
Group = Callable[[tuple[str, ...]], Hashable]
Observe = Callable[[int, float], None]


class QueueFull(Exception):
    """As many rows wait as may."""


class QueueClosed(Exception):
    """No more rows are taken."""


@dataclass(frozen=True)
class Job:
    """The rows of one request."""

    rows: Sequence[Row]
    tasks: tuple[str, ...]
    arrived: float = field(default_factory=time.monotonic)
    answer: Future[Values] = field(default_factory=Future)


class ModelQueue:
    """Computes jobs in the order in which they came; those of one group share a batch.

    predict: called by one thread only. group: of some tasks; jobs of one group can be asked the tasks of all of them.
    max_batch: most rows of a batch, but of a larger job all. max_wait: seconds that a job waits for others. max_queue:
    rows that may wait. observe: told of every batch its rows and seconds.
    """

    def __init__(
        self, predict: Predict, group: Group, max_batch: int, max_wait: float, max_queue: int, observe: Observe
    ) -> None:
        self.predict, self.group, self.observe = predict, group, observe
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self.waiting = 0
        """Rows that wait."""
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row], tasks: Sequence[str]) -> Future[Values]:
        """Values of the tasks, in the rows' order. The future raises RowsRefused, with the numbers of these rows, and
        whatever else the model raises. Cancelled, it is not computed. Raises QueueFull, QueueClosed."""
        job = Job(rows, tuple(tasks))
        with self._changed:
            if self._closed:
                raise QueueClosed
            if self.waiting + len(rows) > self.max_queue:
                raise QueueFull
            self._jobs.append(job)
            self.waiting += len(rows)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Take no more jobs, and return when those that wait have been computed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            if running := [job for job in jobs if job.answer.set_running_or_notify_cancel()]:
                self._compute(running)

    def _next(self) -> list[Job]:
        """The jobs of the next batch; none where the queue is closed and empty."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if not self._jobs:
                return []
            until = self._jobs[0].arrived + self.max_wait
            while not self._closed and self.waiting < self.max_batch and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            chosen: list[Job] = []
            rows, group = 0, self.group(self._jobs[0].tasks)
            for job in (job for job in self._jobs if self.group(job.tasks) == group):
                if chosen and rows + len(job.rows) > self.max_batch:
                    break
                chosen.append(job)
                rows += len(job.rows)
            taken = set(map(id, chosen))
            self._jobs = deque(job for job in self._jobs if id(job) not in taken)
            self.waiting -= rows
            return chosen

    def _compute(self, jobs: Sequence[Job]) -> None:
        """Answer the jobs. Bad rows fail their own job only; so does whatever else a job makes the model raise."""
        rows = [row for job in jobs for row in job.rows]
        tasks = tuple(dict.fromkeys(task for job in jobs for task in job.tasks))
        began = time.monotonic()
        try:
            values = self.predict(rows, tasks)
        except RowsRefused as refusal:
            if others := _refuse(jobs, refusal):
                self._compute(others)
            return
        except Exception as error:  # noqa: BLE001 - it is the request's answer, and the thread must live
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
            else:
                for job in jobs:
                    self._compute([job])
            return
        self.observe(len(rows), time.monotonic() - began)
        start = 0
        for job in jobs:
            mine = slice(start, start := start + len(job.rows))
            job.answer.set_result({task: values[task][mine] for task in job.tasks})


def _refuse(jobs: Sequence[Job], refusal: RowsRefused) -> list[Job]:
    """Tell the jobs with bad rows which of their own they are; returns the other jobs."""
    good, start = [], 0
    for job in jobs:
        own = {number - start: why for number, why in refusal.rows.items() if 0 <= number - start < len(job.rows)}
        start += len(job.rows)
        if own:
            job.answer.set_exception(RowsRefused(own))
        else:
            good.append(job)
    return good
