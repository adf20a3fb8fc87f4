"""One rank of the loop's benchmark (run.py starts it): blocks of real steps and of bare ones in turn, timed.

    python benchmarks/loop/measured.py RECIPE.yaml DEEPSPEED.json|- RUN_FOLDER RESULT.json WARMUP BLOCKS STEPS_A_BLOCK

A real block goes through `Training._steps` with metrics file, mirrors and bar. A bare block is only the engine's
micro-steps and update, on the batches of the real block before it, made beforehand.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmrecipes.data.stream import Step
from lmrecipes.launching import quieten
from lmrecipes.recipe_files import find_recipe
from lmrecipes.tracking.progress import TrainingBar
from lmrecipes.tracking.record import MetricsFile
from lmrecipes.training.loop import Start, Training
from lmrecipes.training.schedule import rates_beside

MIRROR_SECONDS = 60.0
"""Longest wait for wandb's start, which is no part of a step."""


@dataclass
class Clock:
    """When the real steps ended, and the seconds spent inside named calls since the last one, step by step."""

    inside: dict[str, float] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)
    ended: float = 0.0

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with its seconds added to `name`."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.inside[name] = self.inside.get(name, 0.0) + time.perf_counter() - began

        return wrapped

    def start(self) -> None:
        """Forget what was timed before this block."""
        self.inside, self.ended = {}, time.perf_counter()

    def end_step(self) -> None:
        """Close a step: `whole` is all since the step before it ended."""
        now = time.perf_counter()
        self.steps.append({"whole": now - self.ended, **self.inside})
        self.inside, self.ended = {}, now


class TimedBar(TrainingBar):
    """The loop's own bar; its move is the last thing of a step."""

    clock: Clock

    def move(self, step: int, metrics: Any) -> None:
        """Move, then close the step."""
        super().move(step, metrics)
        self.clock.end_step()


def main() -> None:
    """Measure, and on rank 0 write `{"real": [...], "bare": [...]}`: one object per step but a block's first."""
    recipe_file, deepspeed_file, run_folder, result_file, *numbers = sys.argv[1:]
    warmup, blocks, size = map(int, numbers)
    quieten()
    deepspeed = None if deepspeed_file == "-" else json.loads(Path(deepspeed_file).read_text(encoding="utf-8"))
    recipe = find_recipe(recipe_file).build()
    training = Training(recipe, Start(deepspeed, Path(run_folder)))
    engine, clock = training.engine, Clock()
    engine.micro_step = clock.timed("compute", engine.micro_step)  # type: ignore[method-assign]
    engine.apply = clock.timed("compute", engine.apply)  # type: ignore[method-assign]
    engine.sum_over_ranks = clock.timed("all-reduce", engine.sum_over_ranks)  # type: ignore[method-assign]
    record = MetricsFile(training.run.metrics) if engine.is_main else None
    training.trackers = trackers = training._trackers() if engine.is_main else None
    real: list[dict[str, float]] = []
    bare: list[dict[str, float]] = []
    with TimedBar(recipe.schedule.steps, 0, list(training.tasks), show=engine.is_main) as bar:
        bar.clock = clock

        def real_block(steps: int) -> list[dict[str, float]]:
            training.until = training.state.step + steps
            engine.barrier()
            clock.steps = []
            clock.start()
            training._steps(record, trackers, bar)
            return clock.steps

        real_block(warmup)
        if engine.is_main and recipe.tracking.wandb != "off":
            _wait_for_wandb(training.run.path)
        for _ in range(blocks):
            first = training.state.step
            real += real_block(size)[1:]
            ahead = [training.stream.step(number) for number in range(first, first + size)]
            engine.barrier()
            bare += bare_block(training, clock, ahead)[1:]
    if trackers is not None:
        trackers.finish()
    if record is not None:
        record.close()
        for row, line in zip(real, _measured_lines(training.run.metrics, warmup, blocks, size), strict=True):
            row["data"] = line["time/data"]
        Path(result_file).write_text(json.dumps({"real": real, "bare": bare}), encoding="utf-8")
    engine.barrier()
    engine.close()


def bare_block(training: Training, clock: Clock, steps: list[Step]) -> list[dict[str, float]]:
    """Only forward, backward and update of these steps."""
    clock.steps = []
    clock.start()
    for step in steps:
        for i, micro in enumerate(step.micro_batches):
            training.engine.micro_step(micro, last=i == len(step.micro_batches) - 1)
        training.engine.apply(rates_beside(training.recipe, training.recipe.optimizer.lr))
        clock.end_step()
    return clock.steps


def _measured_lines(metrics: Path, warmup: int, blocks: int, size: int) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [lines[warmup + block * size + i] for block in range(blocks) for i in range(1, size)]


def _wait_for_wandb(run: Path) -> None:
    deadline = time.monotonic() + MIRROR_SECONDS
    while time.monotonic() < deadline and not any(run.glob("wandb/offline-run-*/*.wandb")):
        time.sleep(0.1)
    time.sleep(1.0)


if __name__ == "__main__":
    main()
