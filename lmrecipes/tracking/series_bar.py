"""What a person sees while a series of runs goes on: a live bar in a terminal, a line for each run elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn

from lmrecipes.tracking.progress import clock, terminal

TRAINING = 0.75
"""Share of a run's time that the bar gives to its training; the rest is the evaluation's."""


class SeriesBar:
    """Runs done, what the last one gave, time. Rank 0 only. noun: of one run, `proxy`, and of several."""

    def __init__(self, noun: tuple[str, str], total: int, done: int) -> None:
        self.noun, self.total, self.done = noun[0], total, done
        self.show = os.environ.get("RANK", "0") == "0"
        self.seconds: list[float] = []
        self.began = time.monotonic()
        console = terminal()
        self.live = Progress(
            TextColumn(f"[bold]{noun[1]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}/{task.total}  {task.fields[said]}  {task.fields[clock]}"),
            console=console,
            expand=True,
            disable=not (self.show and console.is_terminal),
        )
        self.task = self.live.add_task(noun[1], total=total, completed=done, count=done, said="", clock="")

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def trained(self, part: float) -> None:
        """So much of the run at hand is trained."""
        self._move(TRAINING * part)

    def evaluated(self, done: int, total: int) -> None:
        """So much of its evaluation is done."""
        self._move(TRAINING + (1 - TRAINING) * done / total)

    def finished(self, said: str, seconds: float) -> None:
        """One more run is done. said: what it gave, in a few words."""
        self.done += 1
        self.seconds.append(seconds)
        self.live.update(self.task, completed=self.done, count=self.done, said=said)
        if self.show and self.live.disable:
            line = f"{self.noun} {self.done}/{self.total}  {said}  {seconds:.1f} s  {self._left(0)} left"
            print(line, file=sys.stderr, flush=True)  # noqa: T201 (the terminal's plain twin of the bar)

    def _move(self, part: float) -> None:
        elapsed = clock(time.monotonic() - self.began)
        self.live.update(self.task, completed=self.done + part, clock=f"{elapsed} < {self._left(part)}")

    def _left(self, part: float) -> str:
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else math.nan
        return clock(mean * (self.total - self.done - part))
