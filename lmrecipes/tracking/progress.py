"""What a person sees while a run goes on: a live bar in a terminal, plain lines elsewhere. Rank 0 only."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

LINE_SECONDS = 10.0
"""Seconds between two lines where there is no terminal."""
WINDOW = 20
"""Steps that the shown loss, speed and remaining time are averaged over."""


NARROW = 80
"""Columns of a terminal below which the bar itself and the speed are left out."""


def clock(seconds: float) -> str:
    """75 -> '1:15'; 3675 -> '1:01:15'; a dash where it is not known."""
    if not math.isfinite(seconds):
        return "-"
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


@cache
def terminal() -> Console:
    """Standard error. One for all bars: an evaluation's stands below the training's only where they share it."""
    return Console(stderr=True)


class TrainingBar:
    """Step, loss (in all and by task), tokens/s and remaining time."""

    def __init__(self, total: int, done: int, tasks: list[str], show: bool = True) -> None:
        self.total, self.tasks, self.show = total, tasks, show
        self.console = terminal()
        self.recent: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self.said = time.monotonic()
        self.began = time.monotonic()
        wide = self.console.width >= NARROW
        self.bar = Progress(
            TextColumn("[bold]training"),
            *([BarColumn(bar_width=None)] if wide else []),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("loss [bold cyan]{task.fields[loss]}"),
            *([TextColumn("{task.fields[speed]} tokens/s")] if wide else []),
            TextColumn("{task.fields[elapsed]} < {task.fields[left]}"),
            console=self.console,
            expand=wide,
        )
        self.task = self.bar.add_task(
            "training", total=total, completed=done, loss="-", speed="-", elapsed="0:00", left="-"
        )
        self.live = Live(self.bar, console=self.console, refresh_per_second=4) if self._terminal else None

    @property
    def _terminal(self) -> bool:
        return self.show and self.console.is_terminal

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def move(self, step: int, metrics: Mapping[str, float]) -> None:
        """One more step is done."""
        if not self.show:
            return
        self.recent.append(metrics)
        speed = self._mean("tokens_per_second")
        left = clock(self._mean("time/step") * (self.total - step))
        if self.live is not None:
            elapsed = clock(time.monotonic() - self.began)
            loss = f"{self._mean('loss'):.4f}"
            self.bar.update(self.task, completed=step, loss=loss, speed=f"{speed:,.0f}", elapsed=elapsed, left=left)
            self.live.update(Group(self.bar, self._by_task()))
        elif time.monotonic() - self.said > LINE_SECONDS or step == self.total:
            self.said = time.monotonic()
            line = f"step {step}/{self.total}  loss {self._mean('loss'):.4f}  {speed:,.0f} tokens/s  {left} left"
            print(line, file=sys.stderr, flush=True)  # noqa: T201 (the terminal's plain twin of the bar)

    def _by_task(self) -> Padding:
        losses = [Text(f"{task} {self._mean(f'loss/{task}'):.3f}", style="dim") for task in self.tasks]
        return Padding(Columns(losses, padding=(0, 3)), (0, 0, 0, len("training ")))

    def _mean(self, key: str) -> float:
        values = [m[key] for m in self.recent if key in m]
        return sum(values) / len(values) if values else float("nan")


@contextmanager
def evaluation_bar(show: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar for an evaluation; yields `moved(done, total)`."""
    console = terminal()
    with Progress(console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task("evaluating", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
