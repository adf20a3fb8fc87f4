"""Runs one after the other in one group of processes, each a real run without its ending."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmrecipes.recipe import Recipe
from lmrecipes.series import Stopped
from lmrecipes.training.loop import Start, Training
from lmrecipes.training.signals import Signals


class Series:
    """The runs of this process. `signals`: those that ask to stop; once a run has, the same on every rank."""

    def __init__(self, deepspeed: dict[str, Any] | None) -> None:
        self.deepspeed = deepspeed
        self.engine: Any = None
        self.signals = Signals()
        self.signals.listen()

    def begin(self, recipe: Recipe, folder: Path) -> Training:
        """The next run, before its first step; what the former one held is given back first. folder: the series'. Where
        the start is refused, `engine` is None, and this process cannot start another."""
        if self.engine is not None:
            self.engine.release()
            self.engine = None
            gc.collect()  # the former model and its optimizer hang in cycles
        training = Training(recipe, Start(self.deepspeed, folder))
        training.signals = self.signals
        self.engine = training.engine
        return training

    def steps(self, training: Training) -> Iterator[dict[str, float]]:
        """Train the run and yield each step's metrics. Raises RunFailed, and Stopped on all ranks alike."""
        for step in training.stream.steps(0, training.recipe.schedule.steps):
            metrics, outcome = training.one_step(step)
            if outcome.signal:
                self.signals.asked = outcome.signal
                raise Stopped
            training.judge(outcome, metrics)
            yield metrics

    def stopped(self) -> int:
        """The exit code after a signal. Waits for all ranks: a launcher ends the others once one has ended."""
        self.engine.barrier()
        return 128 + self.signals.asked

    def close(self) -> None:
        """Leave the process group."""
        if self.engine is not None:
            self.engine.close()
