"""Runs one after the other in one group of processes, each a real run without its ending."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from lmrecipes.recipe import Recipe
from lmrecipes.series import Stopped
from lmrecipes.training.loop import Start, Training


class Series:
    """The runs of this process. `asked`: number of a signal that asks to stop, or 0, the same on every rank."""

    def __init__(self, deepspeed: dict[str, Any] | None) -> None:
        self.deepspeed = deepspeed
        self.engine: Any = None
        self.asked = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._stop)

    def begin(self, recipe: Recipe, folder: Path) -> Training:
        """The next run, before its first step; what the former one held is given back first. folder: the series'. Where
        the start is refused, `engine` is None, and this process cannot start another."""
        if self.engine is not None:
            self.engine.release()
            self.engine = None
            gc.collect()  # the former model and its optimizer hang in cycles
        training = Training(recipe, Start(self.deepspeed, folder))
        self.engine = training.engine
        return training

    def steps(self, training: Training) -> Iterator[dict[str, float]]:
        """Train the run and yield each step's metrics. Raises RunFailed, and Stopped on all ranks alike."""
        for step in training.stream.steps(0, training.recipe.schedule.steps):
            training.signal = self.asked
            metrics, outcome = training.one_step(step)
            if outcome.signal:
                self.asked = outcome.signal
                raise Stopped
            training.judge(outcome, metrics)
            yield metrics

    def stopped(self) -> int:
        """The exit code after a signal. Waits for all ranks: a launcher ends the others once one has ended."""
        self.engine.barrier()
        return 128 + self.asked

    def close(self) -> None:
        """Leave the process group."""
        if self.engine is not None:
            self.engine.close()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
